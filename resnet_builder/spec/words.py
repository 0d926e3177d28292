"""How values, and what could stand in their place, are put into words."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import get_origin

from resnet_builder.spec.scalars import AmbiguousError, resolve
from resnet_builder.spec.structure import Member

_SHOWN_TEXT = 60

# Text in which a key's colon is followed by no space, as in `steps:100`.
_UNSPACED = re.compile(r"(?:^|\s)([A-Za-z_]\w*):(\S+)$")

_KINDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
}


def shown(value: object) -> str:
    """Describe a value that is wrong, in the words of YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def quoted(text: str) -> str:
    """Quote text, on one line and not too much of it."""
    cut = text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"
    return "'" + cut.replace("\n", "\\n") + "'"


def kinds(admitted: Iterable[Member]) -> str:
    """Describe the kinds of value that may stand somewhere: ``auto or a whole number``."""
    found = list(admitted)
    if any(member.kind is float for member in found):
        found = [member for member in found if member.kind is not int]
    return " or ".join(dict.fromkeys(_kind(member) for member in found))


def _kind(member: Member) -> str:
    if member.choices:
        return " or ".join(f"`{choice}`" for choice in member.choices)
    if member.is_part:
        return "a name, or a mapping with `type`"
    if member.is_list:
        return "a list"
    if member.model is not None:
        return "a mapping"
    return _KINDS.get(get_origin(member.kind) or member.kind, str(member.kind))


def ranges(admitted: Iterable[Member]) -> tuple[str, ...]:
    """Describe the values that may stand somewhere, as far as they are limited."""
    found: list[str] = []
    for member in admitted:
        found += [str(choice) for choice in member.choices]
        found += _range(member)
    return tuple(found)


def _range(member: Member) -> list[str]:
    """Describe one kind's limits: ``1 to 16384``, ``more than 0``, ``1 to 16 items``."""
    value = _interval(
        _limit(member, "ge"), _limit(member, "gt"), _limit(member, "le"), _limit(member, "lt")
    )
    unit = "items" if member.is_list else "characters"
    length = _interval(_limit(member, "min_length"), None, _limit(member, "max_length"), None, unit)
    return [text for text in (value, length) if text]


def _limit(member: Member, name: str) -> float | None:
    found = (getattr(limit, name, None) for limit in member.limits)
    return next((limit for limit in found if limit is not None), None)


def _interval(
    least: float | None,
    above: float | None,
    most: float | None,
    below: float | None,
    unit: str = "",
) -> str:
    if least is not None and most is not None:
        text = f"{_number(least)} to {_number(most)}"
    else:
        bounds = (
            ("at least", least),
            ("more than", above),
            ("at most", most),
            ("less than", below),
        )
        text = " and ".join(f"{word} {_number(n)}" for word, n in bounds if n is not None)
    return f"{text} {unit}".rstrip() if text else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def mended(value: object, admitted: Sequence[Member]) -> str | None:
    """Spell what was probably meant by a value of the wrong kind."""
    wanted = {member.kind for member in admitted}
    if isinstance(value, str):
        return missing_space(value) or _unquoted(value, wanted)
    if isinstance(value, float) and value.is_integer() and int in wanted:
        return str(int(value))
    if isinstance(value, int | float) and str in wanted:
        return f'"{shown(value)}"'
    is_listable = any(member.is_list for member in admitted) and not isinstance(value, dict)
    return f"[{shown(value)}]" if is_listable and value is not None else None


def missing_space(value: object) -> str | None:
    """Spell the entry that text was meant to be, if it lacks the space behind its colon."""
    match = _UNSPACED.search(value) if isinstance(value, str) else None
    return match and f"{match[1]}: {match[2]}"


def _unquoted(text: str, wanted: set[object]) -> str | None:
    """Spell text as the number or truth value that it would be without quotes."""
    try:
        value, spelling = resolve(text), text
    except AmbiguousError as error:
        value, spelling = error.value, error.spelling
    kinds_met = {int, float} if type(value) is int else {type(value)}
    return spelling if kinds_met & wanted - {str} else None
