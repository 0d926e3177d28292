"""What every section of a spec is made of: its base class, parts, and common ranges.

What a validator here raises is a problem with its code; ``at`` names the key to point at.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PART_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$"
PATH_PATTERN = r"^[^\x00-\x1f]+$"

PATTERN_WORDS = {
    NAME_PATTERN: "at most 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit",
    PART_PATTERN: "at most 64 letters, digits and `_`, the first a letter",
    DEVICE_PATTERN: "auto, cpu, mps, cuda or cuda:N",
    PATH_PATTERN: "a path, without control characters",
}
"""What each pattern says, in words."""

# Windows cannot make files of these names, with or without an ending.
_RESERVED_NAMES = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)
}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Side = Annotated[int, Field(ge=1, le=4_096)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Auto = Literal["auto"]


def is_name(text: str) -> bool:
    """Tell whether a spec can be called this."""
    return re.fullmatch(NAME_PATTERN, text) is not None and not _is_reserved(text)


def _is_reserved(text: str) -> bool:
    return text.split(".")[0].lower() in _RESERVED_NAMES


def _is_a_file_name(value: str) -> str:
    if _is_reserved(value):
        raise problem("out-of-range", "Windows cannot make files called '{name}'", name=value)
    return value


Name = Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_is_a_file_name)]


def problem(
    code: str, message: str, *, at: str | None = None, **context: object
) -> PydanticCustomError:
    """Make an error with one of our codes; ``at`` is the key of the section to point at."""
    return PydanticCustomError(code, message, {"at": at, **context})


class Section(BaseModel):
    """Base of every part of a spec: unknown keys are errors and values never change.

    A key whose value is null is as good as absent.

    Attributes:
        short_key: The key that a scalar in the section's place stands for, if it may stand there.
    """

    short_key: ClassVar[str | None] = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None or k not in cls.model_fields}


class Part(BaseModel):
    """A registered part: its name and the options given to it, lists among them as tuples."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: Annotated[str, Field(pattern=PART_PATTERN, description="A registered name.")]

    @model_validator(mode="before")
    @classmethod
    def _holds_no_lists(cls, value: object) -> object:
        return _without_lists(value)

    @property
    def options(self) -> dict[str, Any]:
        """The options, as plain data."""
        return dict(self.model_extra or {})


def _without_lists(value: object) -> object:
    """Make tuples of the lists inside plain data: a frozen model holds nothing that changes."""
    if isinstance(value, list | tuple):
        return tuple(_without_lists(item) for item in value)
    if isinstance(value, dict):
        return {key: _without_lists(item) for key, item in value.items()}
    return value


def part_rule(default: str | None = None) -> BeforeValidator:
    """Make the rule that holds wherever a part stands: a name, or a mapping with ``type``.

    Args:
        default: The type of a mapping without one, which then changes options of the default.
    """

    def expand(value: object) -> object:
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict):
            return value if "type" in value or default is None else {"type": default, **value}
        if isinstance(value, BaseModel):
            return value
        raise problem("wrong-type", "must be a name, or a mapping with `type`")

    return BeforeValidator(expand)


AnyPart = Annotated[Part, part_rule()]
