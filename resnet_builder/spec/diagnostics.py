"""Diagnostics of a spec: pydantic's errors as problems, with place, allowed values, suggestion."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from resnet_builder.errors import CODES, Problem, SpecPath, dotted, nearest
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.introspect import (
    Schema,
    alternatives,
    choices,
    is_part,
    json_schema_of,
    kinds,
    ranges,
)
from resnet_builder.spec.keys import KEY_ALIASES, key_homes
from resnet_builder.spec.schema import short_key
from resnet_builder.spec.section import NAME_PATTERN, PATTERN_WORDS, is_name
from resnet_builder.spec.yaml_source import AmbiguousError, Node, Place, Source, plain, resolve

At = Literal["value", "key", "name"]


class Positions:
    """Positions of a spec's values in their sources.

    Args:
        root: Nodes of the spec.
        sources: Sources of them, in the order in which their problems are shown.
    """

    def __init__(self, root: Node, sources: Iterable[Source] = ()) -> None:
        self._root = root
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, source in enumerate(sources):
            argument = "" if source.has_lines else source.text
            self._ranks.setdefault((source.name, argument), rank)

    def place(self, path: SpecPath, *, at: At = "value") -> Place:
        """Place of a value; of one that is not written, the key of the mapping it would be in.

        Args:
            path: Path of the value.
            at: The value itself, its key, or the name in a part or the path in a file of weights.
        """
        node, is_written = self._nearest(path)
        if at == "key" or not is_written:
            return node.key_place or node.place
        name = node.value.get(short_key(path) or "type") if isinstance(node.value, dict) else None
        return node.place if at == "value" or name is None else name.place

    def problem(
        self,
        code: str,
        path: SpecPath,
        message: str,
        *,
        at: At = "value",
        allowed: Iterable[str] = (),
        suggestion: str | None = None,
    ) -> Problem:
        """Problem of a value.

        Args:
            code: One of :data:`resnet_builder.errors.CODES`.
            path: Path of the value, of which as much is followed as is written.
            message: Message in one line.
            at: Where to point, as in :meth:`place`.
            allowed: Values that are allowed there.
            suggestion: Value that was probably meant.
        """
        place = self.place(path, at=at)
        return place.problem(code, message, path=path, allowed=allowed, suggestion=suggestion)

    def base_dir(self, path: SpecPath) -> Path:
        """Folder from which a relative path counts: that of the file in which it is written."""
        file = self._nearest(path)[0].place.source.path
        return Path.cwd() if file is None else file.parent

    def replaced_value(self, path: SpecPath) -> Node | None:
        """Value of a missing option in the part that another part was laid over, if it had one."""
        part, _ = self._nearest(path[:-1])
        before = part.replaces.value if part.replaces is not None else None
        return before.get(str(path[-1])) if isinstance(before, dict) else None

    def part_name(self, path: SpecPath) -> str | None:
        """Name of the part at a path, if it is written."""
        found = plain(self._nearest(path)[0])
        name = found.get("type") if isinstance(found, dict) else found
        return name if isinstance(name, str) else None

    def ordered(self, problems: Iterable[Problem]) -> tuple[Problem, ...]:
        """Problems in the order of their places: the spec's first, then other sources'."""

        def rank(problem: Problem) -> tuple[int, int, int]:
            argument = "" if problem.line is not None else problem.snippet or ""
            source = self._ranks.get((problem.file, argument), len(self._ranks))
            return source, problem.line or 0, problem.col or 0

        return tuple(sorted(problems, key=rank))

    def _nearest(self, path: SpecPath) -> tuple[Node, bool]:
        """Last node that is written on the way down, and whether it is that of the whole path."""
        node = self._root
        for step in path:
            child = None
            if isinstance(node.value, dict) and isinstance(step, str):
                child = node.value.get(step)
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                child = node.value[step]
            if child is None:
                return node, False
            node = child
        return node, True


def problems_from(
    error: ValidationError,
    positions: Positions,
    base: SpecPath,
    model: type[BaseModel],
    *,
    unknown_key_code: str = "unknown-key",
) -> list[Problem]:
    """Problems that pydantic found, at the places where the values are written.

    Args:
        error: Pydantic's error.
        positions: Positions of the values.
        base: Path of what was validated.
        model: Model that it was validated as.
        unknown_key_code: ``unknown-option``, where keys are options of a part.
    """
    root = json_schema_of(model)
    located = [_located(details, base, root) for details in error.errors(include_url=False)]
    problems = [
        _problem(one, positions, unknown_key_code)
        for one in _without_attempts(located)
        # A list counts as too short, too, if items in it are wrong.
        if one.kind != "too_short" or len(one.given) < one.context["min_length"]
    ]
    # A key that is misspelt is not missing as well.
    misspelt = {_intended(one) for one in problems if one.code == unknown_key_code}
    return [one for one in problems if one.code != "missing-key" or one.path not in misspelt]


@dataclass(frozen=True, slots=True)
class _Located:
    """One of pydantic's errors, located in the spec.

    Attributes:
        path: Place in the spec.
        at: Where to point there.
        admitted: Schemas of the values that may stand there; null is left out.
        siblings: Keys that may stand beside it.
        union: Path of the value for which this is one of several attempts, if it is.
        kind: Pydantic's type of the error.
        message: Message of pydantic, or of a validator of the schema.
        given: The value.
        context: Further details of pydantic.
    """

    path: SpecPath
    at: At
    admitted: tuple[Schema, ...]
    siblings: tuple[str, ...]
    union: SpecPath | None
    kind: str
    message: str
    given: Any
    context: dict[str, Any]

    @property
    def is_of_range(self) -> bool:
        """Whether the value is of the right kind, but out of range."""
        return _RANGE_ERRORS.search(self.kind) is not None


_RANGE_ERRORS = re.compile(
    "greater_than|less_than|finite_number|multiple_of|too_short|too_long|pattern_mismatch"
)


def _located(details: Any, base: SpecPath, root: Schema) -> _Located:
    """Follow pydantic's location down the schema; it names members of unions on the way."""
    definitions = root.get("$defs", {})
    path, union = base, None
    here = admitted = alternatives(root, definitions)
    siblings: tuple[str, ...] = ()
    for step in details["loc"]:
        if len(here) > 1:
            if not all(map(is_part, here)):
                union = path
            here = next(((one,) for one in here if _is_member(one, step)), ())
            continue
        parent = here[0] if here else {}
        siblings = tuple(parent.get("properties", ()))
        if isinstance(step, int):
            items = parent.get("prefixItems", ())
            below = items[step] if step < len(items) else parent.get("items")
        else:
            below = parent.get("properties", {}).get(step)
        here = admitted = alternatives(below, definitions) if below else ()
        path = (*path, step)
    kind = details["type"]
    # What is wrong with a part's name is wrong with the part.
    is_of_name = path[-1:] == ("type",) and kind not in {"missing", "extra_forbidden"}
    return _Located(
        path[:-1] if is_of_name else path,
        "name" if is_of_name else "value",
        admitted,
        siblings,
        union,
        kind,
        details["msg"].replace("Input should be", "must be").removeprefix("Value error, "),
        details["input"],
        details.get("ctx", {}),
    )


def _is_member(schema: Schema, label: str) -> bool:
    """Tell whether pydantic's label means this member of a union."""
    if is_part(schema):
        return label in choices(schema["properties"]["type"])
    if "title" in schema:
        return re.search(rf"\b{schema['title']}\b", label) is not None
    return schema.get("type") == "array" and label.startswith(("tuple", "list"))


def _without_attempts(found: Sequence[_Located]) -> Iterator[_Located]:
    """Keep one error for a value that failed as each of several kinds, or those inside it."""
    for union, group in groupby(found, key=lambda one: one.union):
        attempts = list(group)
        inside = [one for one in attempts if one.path != union or one.kind in CODES]
        in_range = [one for one in attempts if one.is_of_range]
        yield from attempts if union is None else inside or in_range[:1] or attempts[:1]


def _intended(problem: Problem) -> str | None:
    """Path that a misspelt key should have had; none, if the key belongs elsewhere."""
    parent = problem.path.rpartition(".")[0]
    key = (problem.suggestion or ".").partition(":")[0]
    if "." in key:
        return None
    return f"{parent}.{key}" if parent else key


def _problem(one: _Located, positions: Positions, unknown_key_code: str) -> Problem:
    def problem(code: str, message: str, *, at: At = one.at, **more: Any) -> Problem:
        return positions.problem(code, more.pop("path", one.path), message, at=at, **more)

    if one.kind in CODES:  # raised by a validator of the schema
        below = one.context["at"].split(".") if one.context.get("at") else ()
        return problem(
            one.kind,
            one.message + (f", not {shown(one.given)}" if one.kind == "wrong-type" else ""),
            path=(*one.path, *below),
            at="key" if one.kind in {"exclusive", "no-effect"} else "value",
            suggestion=missing_space(one.given),
        )
    if one.kind == "extra_forbidden":
        message = f"there is no such {unknown_key_code.removeprefix('unknown-')}"
        return problem(
            unknown_key_code,
            message if one.siblings else f"{message}; {_optionless(one.path, positions)}",
            at="key",
            allowed=one.siblings,
            suggestion=_meant_key(one, is_option=unknown_key_code == "unknown-option"),
        )
    if one.kind == "missing":
        message, key = "is missing", one.path[-1]
        if (before := positions.replaced_value(one.path)) is not None:
            message += f": a new `type` drops the options of the part before it, and `{key}` "
            message += f"was {dump_value(plain(before))} there; give `{key}` again"
        return problem("missing-key", message, at="key")
    if one.kind == "union_tag_not_found":
        path = (*one.path, "type")
        return problem(
            "missing-key", "is missing", path=path, at="key", allowed=_tags(one.admitted)
        )
    is_closed = all(choices(schema) for schema in one.admitted)
    is_word = one.kind == "literal_error" and isinstance(one.given, str) and is_closed
    if is_word or one.kind == "union_tag_invalid":
        name = one.given if is_word else one.context["tag"]
        allowed = ranges(one.admitted) if is_word else _tags(one.admitted)
        key = next(step for step in reversed(one.path) if isinstance(step, str))
        message = f"no {key} is named {quoted(name)}"
        if is_word and one.path[-1] != key:  # one of several, in a list
            message = f"must be {kinds(one.admitted)}, not {shown(name)}"
        suggestion = nearest(name, allowed)
        return problem("unknown-name", message, at="name", allowed=allowed, suggestion=suggestion)
    if one.kind == "string_pattern_mismatch":
        pattern = one.context["pattern"]
        words = PATTERN_WORDS.get(pattern, f"text that matches {pattern}")
        return problem("out-of-range", f"must be {words}, not {quoted(one.given)}")
    if one.is_of_range:
        allowed = ranges(one.admitted)
        if isinstance(one.given, list | tuple):
            lengths = (
                len(schema["prefixItems"]) for schema in one.admitted if "prefixItems" in schema
            )
            allowed = tuple(f"{length} items" for length in lengths) or allowed
        if isinstance(one.given, list | tuple | str):
            unit = "characters" if isinstance(one.given, str) else "items"
            amount = "few" if "short" in one.kind else "many"
            message = f"{len(one.given)} {unit} are too {amount}"
        else:
            value = shown(one.given)
            message = f"{value} is out of range" if allowed else f"{one.message}, not {value}"
        return problem("out-of-range", message, at="value", allowed=allowed)
    if one.kind.endswith("_type") or one.kind == "literal_error":
        words = kinds(one.admitted)
        message = f"{f'must be {words}' if words else one.message}, not {shown(one.given)}"
        return problem("wrong-type", message, suggestion=_mended(one.given, one.admitted))
    # A validator of a part's own; its message is all that is known.
    return problem("out-of-range", one.message, at="value")


def _optionless(option: SpecPath, positions: Positions) -> str:
    """Say that a part has no options; of a dataset, that images of one's own need another one."""
    part = positions.part_name(option[:-1])
    message = f"`{part}` has none" if part else "this part has none"
    is_own = option == ("data", "dataset", "path")
    return f"{message}; a folder of images needs `type: image_folder`" if is_own else message


def _meant_key(one: _Located, *, is_option: bool) -> str | None:
    """Guess which key was meant: one of the siblings, or one that belongs elsewhere."""
    key = str(one.path[-1])
    names = [ours for ours, others in KEY_ALIASES.items() if key.casefold() in others]
    sibling = next((name for name in names if name in one.siblings), None)
    found = missing_space(key) or sibling
    if found is None and not is_option:
        homes = key_homes()
        if re.sub(r"\[\d+\]", "[]", dotted(one.path)) in homes.get(key, ()):
            return None  # the key of another type
        found = next((homes[name][0] for name in (key, *names) if name in homes), None)
    return found or nearest(key, one.siblings)


def _tags(admitted: Iterable[Schema]) -> tuple[str, ...]:
    """Names of the parts of a closed set."""
    return tuple(str(name) for one in admitted for name in choices(one["properties"]["type"]))


_SHOWN_TEXT = 60


def shown(value: object) -> str:
    """A wrong value, in the words of YAML."""
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


def file_name_problem(file: str, stem: str) -> Problem:
    """Problem of a spec without a name, whose file has a name that no spec can have."""
    is_reserved = re.fullmatch(NAME_PATTERN, stem) is not None
    reason = "Windows reserves it" if is_reserved else f"a name has {PATTERN_WORDS[NAME_PATTERN]}"
    name = re.sub("[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:64]
    return Problem(
        "missing-key",
        "name",
        f"is missing, and the file name {quoted(stem)} cannot be used instead: {reason}; "
        "add a line `name: ...`, or rename the file",
        file=file,
        suggestion=f"name: {name}" if is_name(name) else None,
    )


def quoted(text: str) -> str:
    """Text in quotes, on one line and not too much of it."""
    cut = text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"
    return "'" + cut.replace("\n", "\\n") + "'"


def _mended(value: object, admitted: Sequence[Schema]) -> str | None:
    """Spell what was probably meant by a value of the wrong kind."""
    wanted = {schema.get("type") for schema in admitted if not choices(schema)}
    if isinstance(value, str):
        # A part's schema has no type of its own: `augment: random_crop` lacks only the brackets.
        lists = (schema["items"].get("type", "string") for schema in admitted if "items" in schema)
        as_item = f"[{value}]" if "string" in lists and value.isprintable() else None
        return missing_space(value) or _unquoted(value, wanted) or as_item
    if isinstance(value, float) and value.is_integer() and "integer" in wanted:
        return str(int(value))
    if isinstance(value, int | float) and "string" in wanted:
        return f'"{shown(value)}"'
    has_any_length = any("items" in schema for schema in admitted)
    is_listable = has_any_length and value is not None and not isinstance(value, dict)
    return f"[{shown(value)}]" if is_listable else None


def _unquoted(text: str, wanted: set[str | None]) -> str | None:
    """Spell text as the number or truth value that it would be without quotes."""
    try:
        value, spelling = resolve(text), text
    except AmbiguousError as error:
        value, spelling = error.value, error.spelling
    names = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}}
    return spelling if names.get(type(value), set()) & wanted else None


# Text in which a key's colon is followed by no space, as in `steps:100`.
_UNSPACED = re.compile(r"(?:^|\s)([A-Za-z_]\w*):(\S+)$")


def missing_space(value: object) -> str | None:
    """Spell the entry that text was meant to be, if it lacks the space behind its colon."""
    match = _UNSPACED.search(value) if isinstance(value, str) else None
    return match and f"{match[1]}: {match[2]}"
