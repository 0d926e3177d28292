"""Trained weights as a deliverable: one file that evaluation and prediction need nothing beside."""
