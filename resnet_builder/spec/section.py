"""Base classes and common types of the schema: sections, parts, names, ranges.

A validator of the schema raises :func:`problem`, with an error code of this package.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$"
PATH_PATTERN = r"^[^\x00-\x1f]+$"

PATTERN_WORDS = {
    NAME_PATTERN: "at most 64 letters (A to Z, a to z), digits, `.`, `_` and `-`, the first a "
    "letter or a digit",
    DEVICE_PATTERN: "auto, cpu, mps, cuda or cuda:N",
    PATH_PATTERN: "a path, without control characters",
}
"""Meaning of each pattern, in words."""

# Windows cannot make files of these names, with or without an ending.
_RESERVED_NAMES = {"con", "prn", "aux", "nul"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10)
}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Side = Annotated[int, Field(ge=1, le=4_096)]
Sides = Annotated[tuple[Side, Side], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Auto = Literal["auto"]


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image size, which is one number for a square."""
    return (size, size) if isinstance(size, int) else size


def simplified(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """Image size as one number if it is that of a square: equal sizes are equal values."""
    height, width = height_and_width(size)
    return height if height == width else (height, width)


ImageSize = Annotated[Side | Sides, AfterValidator(simplified)]
"""Height and width of an image: one number for a square, else ``[height, width]``."""


def is_name(text: str) -> bool:
    """Tell whether a spec can have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None and not _is_reserved(text)


def _is_reserved(text: str) -> bool:
    return text.split(".")[0].lower() in _RESERVED_NAMES


def _check_file_name(value: str) -> str:
    if _is_reserved(value):
        raise problem("out-of-range", "Windows cannot make files called '{name}'", name=value)
    return value


Name = Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_check_file_name)]


def problem(
    code: str, message: str, *, at: str | None = None, **context: object
) -> PydanticCustomError:
    """Validation error with an error code; ``at`` is the key of the section to point at."""
    return PydanticCustomError(code, message, {"at": at, **context})


class Section(BaseModel):
    """Base of a spec's sections: unknown keys are errors, and values never change.

    A key whose value is null is as good as absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None or k not in cls.model_fields}


class Part(BaseModel):
    """A registered part: its name and the options given to it, with tuples for lists."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: str = Field(description="A registered name.")

    @model_validator(mode="before")
    @classmethod
    def _holds_no_lists(cls, value: object) -> object:
        return _without_lists(value)

    @property
    def options(self) -> dict[str, Any]:
        """Options, as plain data."""
        return dict(self.model_extra or {})


def _without_lists(value: object) -> object:
    """Make tuples of the lists inside plain data: a frozen model holds nothing that changes."""
    if isinstance(value, list | tuple):
        return tuple(_without_lists(item) for item in value)
    if isinstance(value, dict):
        return {key: _without_lists(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class PartRule:
    """Annotation of a part's place: a name, or a mapping with ``type``.

    Attributes:
        default: Type of a mapping without one, which then changes options of the default.
    """

    default: str | None = None

    def expand(self, value: object) -> object:
        """Make a mapping with ``type`` of a name or a mapping."""
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict):
            is_whole = "type" in value or self.default is None
            return value if is_whole else {"type": self.default, **value}
        if isinstance(value, BaseModel):
            return value
        raise problem("wrong-type", "must be a name, or a mapping with `type`")

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Expand a value before pydantic validates it."""
        return core_schema.no_info_before_validator_function(self.expand, handler(source))


AnyPart = Annotated[Part, PartRule()]
