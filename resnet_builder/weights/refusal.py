"""Why a file is refused, before anyone knows its name."""

_LONGEST = 200


class Refused(Exception):
    """What a file is, in a clause that follows its name, and what to do about it."""


def damaged(sign: object) -> Refused:
    """Make the refusal of a file that does not hold together.

    Args:
        sign: What it was seen by; an error, or a clause.
    """
    lines = str(sign).splitlines() or [type(sign).__name__]
    return Refused(f"it is cut short or damaged ({lines[0]:.{_LONGEST}}); download it again")
