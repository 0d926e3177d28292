"""Weights as files: what a run delivers, and what other programs wrote."""
