"""The run directory: every file that training leaves, and how it is written and read."""
