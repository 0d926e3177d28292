"""Weights as files: what a run delivers."""
