"""Pydantic's errors as problems: our codes and words, at the places the values came from."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ValidationError

from resnet_builder.errors import CODES, Problem, SpecPath, dotted, nearest
from resnet_builder.spec.foreign import our_home, our_name
from resnet_builder.spec.positions import At, Positions
from resnet_builder.spec.section import PATTERN_WORDS
from resnet_builder.spec.structure import Member, field_members, homes, members
from resnet_builder.spec.words import kinds, mended, missing_space, quoted, ranges, shown

_RANGE_ERRORS = re.compile(
    "greater_than|less_than|finite_number|multiple_of|too_short|too_long|pattern_mismatch"
)


@dataclass(frozen=True, slots=True)
class _Found:
    """One of pydantic's errors, located in the spec.

    Attributes:
        path: Where in the spec it is.
        at: What to point at there.
        admitted: The kinds of value that may stand there.
        siblings: The keys that may stand beside it.
        union: Where the value stands for which this is one of several attempts, if it is.
        kind: Pydantic's name for it.
        message: Pydantic's or our own validator's.
        given: The value.
        context: What pydantic says besides.
    """

    path: SpecPath
    at: At
    admitted: tuple[Member, ...]
    siblings: tuple[str, ...]
    union: SpecPath | None
    kind: str
    message: str
    given: object
    context: dict[str, Any]

    @property
    def is_of_range(self) -> bool:
        """Whether the value is of the right kind, but out of range."""
        return _RANGE_ERRORS.search(self.kind) is not None


def problems_from(
    error: ValidationError,
    positions: Positions,
    base: SpecPath,
    model: type[BaseModel],
    *,
    unknown_key_code: str = "unknown-key",
) -> list[Problem]:
    """Say what pydantic found wrong, at the places where it is written.

    Args:
        error: What pydantic raised.
        positions: Where the values stand.
        base: The path of what was validated.
        model: What it was validated as.
        unknown_key_code: ``unknown-option``, where keys are options of a part.
    """
    found = [
        _located(details, base, (Member(model),)) for details in error.errors(include_url=False)
    ]
    reporter = _Reporter(positions, unknown_key_code)
    problems = [reporter.problem(one) for one in _decided(found) if not _is_consequence(one)]
    return _without_renamed(problems)


def _located(details: Any, base: SpecPath, admitted: tuple[Member, ...]) -> _Found:
    """Follow pydantic's location down the annotations; it names union members on the way."""
    path, here, union = base, admitted, None
    siblings: tuple[str, ...] = ()
    for step in details["loc"]:
        if len(here) > 1:
            if not all(member.is_part for member in here):
                union = path
            here = next(((member,) for member in here if _is_meant(member, step)), ())
            continue
        siblings = _keys(here)
        here = admitted = _below(here, step)
        path = (*path, step)
    context = details.get("ctx", {})
    # What is wrong with a part's name is wrong with the part.
    is_of_name = path[-1:] == ("type",) and details["type"] not in {"missing", "extra_forbidden"}
    return _Found(
        path[:-1] if is_of_name else path,
        "name" if is_of_name else "value",
        admitted,
        siblings,
        union,
        details["type"],
        details["msg"],
        details["input"],
        context,
    )


def _is_meant(member: Member, label: str) -> bool:
    """Tell whether pydantic's label means this member of a union."""
    if member.is_part and member.model is not None:
        [tag] = field_members(member.model.model_fields["type"])
        if label in tag.choices:
            return True
    if member.model is not None:
        return re.search(rf"\b{member.model.__name__}\b", label) is not None
    name = "tuple" if member.is_list else getattr(member.kind, "__name__", "literal")
    return label.removeprefix("constrained-").startswith(name)


def _keys(here: tuple[Member, ...]) -> tuple[str, ...]:
    model = here[0].model if here else None
    return () if model is None else tuple(model.model_fields)


def _below(here: tuple[Member, ...], step: str | int) -> tuple[Member, ...]:
    if not here:
        return ()
    [member] = here
    if member.model is not None:
        field = member.model.model_fields.get(str(step))
        return () if field is None else field_members(field)
    return member.item(step) if member.is_list and isinstance(step, int) else ()


def _decided(found: Sequence[_Found]) -> Iterator[_Found]:
    """Keep one error for a value that failed as each of several kinds, or those inside it."""
    for union, group in groupby(found, key=lambda one: one.union):
        attempts = list(group)
        if union is None:
            yield from attempts
            continue
        inside = [one for one in attempts if one.path != union or one.kind in CODES]
        in_range = [one for one in attempts if one.is_of_range]
        yield from inside or in_range[:1] or attempts[:1]


def _is_consequence(one: _Found) -> bool:
    """Tell whether a list counts as too short only because items in it are wrong."""
    if one.kind != "too_short" or not isinstance(one.given, list | tuple):
        return False
    return len(one.given) >= int(one.context["min_length"])


def _without_renamed(problems: Sequence[Problem]) -> list[Problem]:
    """Leave out keys that are missing because they are misspelt."""
    renamed = {
        _renamed(problem)
        for problem in problems
        if problem.code in {"unknown-key", "unknown-option"}
    }
    return [
        problem
        for problem in problems
        if problem.code != "missing-key" or problem.path not in renamed
    ]


def _renamed(problem: Problem) -> str | None:
    """Return the path that a misspelt key should have had; none, if it belongs elsewhere."""
    parent = problem.path.rpartition(".")[0]
    key = (problem.suggestion or ".").partition(":")[0]
    if "." in key:
        return None
    return f"{parent}.{key}" if parent else key


class _Reporter:
    """Turns located errors into problems."""

    def __init__(self, positions: Positions, unknown_key_code: str) -> None:
        self.positions = positions
        self.unknown_key_code = unknown_key_code

    def problem(self, one: _Found) -> Problem:
        """Put one error into our words."""
        if one.kind in CODES:
            return self._of_ours(one)
        if one.kind == "extra_forbidden":
            return self._unknown_key(one)
        if one.kind in {"missing", "union_tag_not_found"}:
            return self._missing_key(one)
        if one.kind == "union_tag_invalid":
            return self._unknown_name(one, str(one.context["tag"]), _tags(one.admitted))
        is_closed = all(member.choices for member in one.admitted)
        if one.kind == "literal_error" and isinstance(one.given, str) and is_closed:
            return self._unknown_name(one, one.given, ranges(one.admitted))
        if one.is_of_range:
            return self._out_of_range(one)
        if one.kind.endswith("_type") or one.kind == "literal_error":
            return self._wrong_type(one)
        # A validator of a part's own; what it says is all that is known.
        return self.positions.problem("out-of-range", one.path, _plain(one.message))

    def _of_ours(self, one: _Found) -> Problem:
        """Report what a validator of the schema raised, with its own code."""
        at = one.context.get("at")
        path = one.path if at is None else (*one.path, *at.split("."))
        message = one.message
        if one.kind == "wrong-type":
            message += f", not {shown(one.given)}"
        about_key: At = "key" if one.kind in {"exclusive", "no-effect"} else "value"
        suggestion = missing_space(one.given)
        return self.positions.problem(one.kind, path, message, at=about_key, suggestion=suggestion)

    def _unknown_key(self, one: _Found) -> Problem:
        key = str(one.path[-1])
        what = "option" if self.unknown_key_code == "unknown-option" else "key"
        none = "" if one.siblings else "; there is none at all"
        return self.positions.problem(
            self.unknown_key_code,
            one.path,
            f"there is no such {what}{none}",
            at="key",
            allowed=one.siblings,
            suggestion=self._meant(key, one),
        )

    def _meant(self, key: str, one: _Found) -> str | None:
        """Guess which key was meant: one of the siblings, or one that belongs elsewhere."""
        sibling = missing_space(key) or our_name(key, one.siblings)
        if sibling is None and self.unknown_key_code == "unknown-key":
            place = re.sub(r"\[\d+\]", "[]", dotted(one.path))
            if place in homes(key):
                return None  # the key of another type
            sibling = our_home(key)
        return sibling or nearest(key, one.siblings)

    def _missing_key(self, one: _Found) -> Problem:
        is_tag = one.kind == "union_tag_not_found"
        return self.positions.problem(
            "missing-key",
            (*one.path, "type") if is_tag else one.path,
            "is missing",
            at="key",
            allowed=_tags(one.admitted) if is_tag else (),
        )

    def _unknown_name(self, one: _Found, name: str, allowed: tuple[str, ...]) -> Problem:
        kind = next(step for step in reversed(one.path) if isinstance(step, str))
        return self.positions.problem(
            "unknown-name",
            one.path,
            f"no {kind} is named {quoted(name)}",
            at="name",
            allowed=allowed,
            suggestion=nearest(name, allowed),
        )

    def _out_of_range(self, one: _Found) -> Problem:
        value = one.given
        if one.kind == "string_pattern_mismatch":
            pattern = str(one.context["pattern"])
            words = PATTERN_WORDS.get(pattern, f"text that matches {pattern}")
            message = f"must be {words}, not {quoted(str(value))}"
            return self.positions.problem("out-of-range", one.path, message, at=one.at)
        allowed = ranges(one.admitted)
        if isinstance(value, list | tuple | str):
            unit = "characters" if isinstance(value, str) else "items"
            message = f"{len(value)} {unit} are too {'few' if 'short' in one.kind else 'many'}"
        elif allowed:
            message = f"{shown(value)} is out of range"
        else:
            message = f"{_plain(one.message)}, not {shown(value)}"
        return self.positions.problem("out-of-range", one.path, message, allowed=allowed)

    def _wrong_type(self, one: _Found) -> Problem:
        what = f"must be {kinds(one.admitted)}" if one.admitted else _plain(one.message)
        return self.positions.problem(
            "wrong-type",
            one.path,
            f"{what}, not {shown(one.given)}",
            at=one.at,
            suggestion=mended(one.given, one.admitted),
        )


def _tags(admitted: Iterable[Member]) -> tuple[str, ...]:
    """Return the names of the parts of a closed set."""
    models = (member.model for member in admitted if member.model is not None)
    tags = (members(model.model_fields["type"].annotation) for model in models)
    return tuple(str(choice) for [tag] in tags for choice in tag.choices)


def _plain(message: str) -> str:
    """Put pydantic's words in line with ours."""
    return message.replace("Input should be", "must be").removeprefix("Value error, ")
