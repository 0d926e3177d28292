"""Command line: the only package that prints, exits and changes settings of the process."""
