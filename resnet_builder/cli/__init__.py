"""The command line: the only room that prints, exits and changes settings of the process."""
