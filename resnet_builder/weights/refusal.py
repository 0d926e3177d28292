"""Why a file is refused, before anyone knows its name."""


class Refused(Exception):
    """What a file is, in a clause that follows its name, and what to do about it."""
