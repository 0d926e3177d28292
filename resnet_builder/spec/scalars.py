"""What a plain (unquoted) word means in YAML 1.2, and which words YAML 1.1 reads otherwise."""

import re

from resnet_builder.spec.source import Scalar

# YAML 1.2.2, section 10.3.2.
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{
        f"{sign}{word}": float(f"{sign}inf")
        for sign in ("", "+", "-")
        for word in (".inf", ".Inf", ".INF")
    },
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

# YAML 1.1 reads these otherwise.
_SWITCHES = {
    **dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), False),
}
_ZERO_FIRST = re.compile(r"([-+]?)0+([0-9]+)")
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")


class AmbiguousError(ValueError):
    """A plain word that versions of YAML read differently.

    Attributes:
        value: What was probably meant.
        spelling: How to write that.
    """

    def __init__(self, message: str, value: Scalar, spelling: str) -> None:
        super().__init__(message)
        self.value = value
        self.spelling = spelling


def resolve(text: str) -> Scalar:
    """Return what a plain word means in YAML 1.2.

    Raises:
        AmbiguousError: YAML 1.1 reads it otherwise, and so do many programs.
    """
    _refuse_ambiguous(text)
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def is_text(text: str) -> bool:
    """Tell whether a plain word means itself, so that text needs no quotes on this account."""
    try:
        return isinstance(resolve(text), str)
    except ValueError:  # ambiguous, or a number too long for Python
        return False


def _refuse_ambiguous(text: str) -> None:
    if text in _SWITCHES:
        value = _SWITCHES[text]
        spelling = "true" if value else "false"
        raise AmbiguousError(
            f"'{text}' is {spelling} in YAML 1.1 and text in YAML 1.2: "
            f'write {spelling} or "{text}"',
            value,
            spelling,
        )
    if match := _ZERO_FIRST.fullmatch(text):
        sign, digits = match[1], match[2].lstrip("0") or "0"
        decimal = f"{sign}{digits}".removeprefix("+")
        octal = f"0o{digits} for octal, " if not sign and _OCTAL.fullmatch(f"0o{digits}") else ""
        raise AmbiguousError(
            f"'{text}' is ambiguous, as YAML 1.1 reads a leading zero as octal: "
            f'write {decimal}, {octal}or "{text}" for text',
            int(decimal),
            decimal,
        )
    bare = text.replace("_", "")
    if bare != text and _UNDERSCORED.fullmatch(text):
        raise AmbiguousError(
            f"'{text}' is a number in YAML 1.1 and text in YAML 1.2: write {bare} or \"{text}\"",
            float(bare) if not _INTEGER.fullmatch(bare) else int(bare),
            bare,
        )
