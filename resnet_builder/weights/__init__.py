"""Weights files: those of a run, and those of other programs."""
