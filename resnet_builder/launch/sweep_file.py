"""Sweep file: a base spec, axes over its keys, seeds, and how settings are chosen."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from resnet_builder.errors import Problem, ResnetBuilderError, SpecError, SpecPath
from resnet_builder.spec.diagnostics import Positions, missing_space, problems_from, shown
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.families import FAMILIES
from resnet_builder.spec.introspect import json_schema_of
from resnet_builder.spec.json_schema import DIALECT
from resnet_builder.spec.keys import FLAGS, OF_SPECS, are_of_sweep
from resnet_builder.spec.schema import is_file_name
from resnet_builder.spec.section import Count, Section, Seed, problem
from resnet_builder.spec.yaml_source import Document, Node, plain, read_yaml

MAX_RUNS = 10_000

SPEC, WITH = "spec", "with"
"""Axes of whole specs, and of fragments."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds that a text names: ``3``, ``0-4`` or ``0,3,7-9``.

    Raises:
        ValueError: It names none, or one twice.
    """
    seeds: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part)
        if match is None:
            raise ValueError("must be seeds, as 0-4 or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{part} is no range of seeds: the lower one comes first")
        if last - first >= MAX_RUNS:
            raise ValueError(f"{part} is too many seeds: at most {MAX_RUNS:,}")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is named twice")
    return tuple(seeds)


def _seeds(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_seeds(value)
        except ValueError as error:
            raise problem("out-of-range", "{reason}", reason=str(error)) from error
    is_one = isinstance(value, int) and not isinstance(value, bool)
    return (value,) if is_one else tuple(value) if isinstance(value, list) else value


def _differ(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise problem("out-of-range", "a seed is named twice")
    return values


class FamilySpec(Section):
    """Family of networks, as ``resnet-build init`` has it, instead of a spec."""

    name: Literal[tuple(FAMILIES)] = Field(description="Family: resnet, wrn, preact...")  # type: ignore[valid-type]
    depth: Count | None = Field(None, description="Layers, as the family's paper counts.")
    width: Count | None = Field(None, description="Width multiplier, for wrn.")
    groups: Count | None = Field(None, description="Groups of a block, for resnext.")
    width_per_group: Count | None = Field(None, description="Channels of a group, for resnext.")
    dataset: str | None = Field(None, description="Dataset to train on; cifar10 by default.")
    shortcut: str | None = Field(None, description="Shortcut, instead of the paper's.")
    block: str | None = Field(None, description="Block of a preact network.")


FAMILY_AXES = tuple(name for name in FamilySpec.model_fields if name != "name")
"""Axes over the options of a family."""


class RangeSpec(Section):
    """Range of numbers, from which a search chooses. It is of whole numbers if its ends are."""

    low: int | float = Field(description="Least value.")
    high: int | float = Field(description="Greatest value.")
    log: bool = Field(False, description="Whether values are chosen by their logarithm.")
    step: int | float | None = Field(None, gt=0, description="Distance of values that are tried.")

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if not self.low < self.high:
            raise problem("out-of-range", "`high` must be more than `low`", at="high")
        if self.log and self.low <= 0:
            raise problem("out-of-range", "with `log`, `low` must be more than 0", at="low")
        if self.log and self.step is not None:
            raise problem("exclusive", "`log` and `step` do not go together", at="step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are chosen."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))


def _one_or_many(value: object) -> object:
    return (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    )


def _family(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Pruning = Literal["none", "median", "successive_halving"]


class SweepFile(Section):
    """A sweep file, as it is written."""

    spec: str | None = Field(
        None, description="Base spec: a bundled name, or a path that counts from this file."
    )
    family: Annotated[FamilySpec | None, BeforeValidator(_family)] = Field(
        None, description="Family of networks, instead of `spec`, for an axis such as `depth`."
    )
    with_: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        (), alias="with", description="Fragments or recipes that are laid over every spec."
    )
    set: dict[str, Any] = Field({}, description="Keys of the spec with one value for all runs.")
    axes: dict[str, Any] = Field(
        {},
        description="Axes: a key of the spec with a list of values, or with low and high. Also "
        "`spec`, `with`, an option of the family, and the flags epochs, steps, lr, batch_size.",
    )
    seeds: Annotated[
        tuple[Seed, ...] | None, BeforeValidator(_seeds), AfterValidator(lambda s: s and _differ(s))
    ] = Field(None, description="Seeds of every setting: a list, or text such as 0-4.")
    method: Literal["grid", "random", "tpe"] = Field(
        "grid", description="Every combination, or one of Optuna's samplers."
    )
    trials: Count | None = Field(None, description="Number of trials of a search.")
    sampler_seed: Seed = Field(0, description="Seed of the search.")
    pruning: Pruning = Field(
        "none", description="Which trials of a search end early, by their validation accuracy."
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.spec is not None and self.family is not None:
            raise problem("exclusive", "give `spec` or `family`, not both", at="family")
        is_search = self.method != "grid"
        for key in ("trials", "sampler_seed", "pruning"):
            if not is_search and key in self.model_fields_set:
                message = "has no effect on a grid; give `method: tpe`, or leave it out"
                raise problem("no-effect", message, at=key)
        if is_search and self.trials is None:
            raise problem("missing-key", "a search needs a number of `trials`", at="method")
        if is_search and self.seeds is not None and len(self.seeds) > 1:
            message = "a search takes one seed; train its best setting with several afterwards"
            raise problem("out-of-range", message, at="seeds")
        return self


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis of a sweep.

    Attributes:
        name: Name in the sweep file.
        folder: Folder of the sweep file, from which paths count.
        values: Values of a list, as plain data; empty for a range.
        range: Range, if it is one.
    """

    name: str
    folder: Path
    values: tuple[Any, ...] = ()
    range: RangeSpec | None = None

    @property
    def definition(self) -> Any:
        """Plain data of the axis, for the record of the group."""
        if self.range is None:
            return list(self.values)
        return self.range.model_dump(exclude_none=True)

    def override(self, value: Any) -> str:
        """Override that lays a value over the spec."""
        text = dump_value(self._with_path(value))
        flag = f"--{self.name.replace('_', '-')}"
        return f"{flag} {text}" if self.name in FLAGS else f"{self.name}={text}"

    def _with_path(self, value: Any) -> Any:
        """Value with its path counted from the folder, if it has one."""
        key = self.name.removesuffix(".path")
        if key not in {"model.weights", "data.dataset"}:
            return value
        if isinstance(value, dict) and "path" in value:
            return {**value, "path": self._from_folder(value["path"])}
        is_path = self.name != "data.dataset"  # there, text is the name of a dataset
        return self._from_folder(value) if is_path else value

    def _from_folder(self, path: Any) -> Any:
        is_path = isinstance(path, str) and is_file_name(path)
        return os.path.realpath(self.folder / path) if is_path else path


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep file that was read.

    Attributes:
        path: The file.
        file: Its values.
        axes: Its axes, in order.
        overrides: What is laid over every spec.
        positions: Positions of its values.
    """

    path: Path
    file: SweepFile
    axes: tuple[Axis, ...]
    overrides: tuple[str, ...]
    positions: Positions

    @property
    def name(self) -> str:
        """Name of the sweep: that of its file."""
        return self.path.stem


def is_sweep(path: Path) -> bool:
    """Whether a YAML file is a sweep, and no spec. A file that cannot be read is none."""
    try:
        root = read_yaml(path).root
    except ResnetBuilderError:
        return False
    return isinstance(root.value, dict) and are_of_sweep(root.value.keys())


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file and check its form; the specs of its trials are checked later.

    Raises:
        SpecError: Everything that is wrong with it.
        StorageError: It cannot be read.
    """
    document = read_yaml(path)
    positions = Positions(document.root, [document.source])
    problems = list(document.problems)
    if not isinstance(document.root.value, dict):
        message = "a sweep is a mapping of `key: value`"
        suggestion = missing_space(document.root.value)
        raise SpecError([document.root.place.problem("wrong-type", message, suggestion=suggestion)])
    if keys := document.root.value.keys() & OF_SPECS:
        message = (
            "this file is a spec, and no sweep: a sweep names it, as `spec: ...`, and has `axes`"
        )
        meant = f"resnet-build train {shlex.quote(str(path))}"
        raise SpecError(
            [positions.problem("unknown-key", (min(keys),), message, at="key", suggestion=meant)]
        )
    file = None
    try:
        file = SweepFile.model_validate(plain(document.root))
    except ValidationError as error:
        problems += map(_in_axes, problems_from(error, positions, (), SweepFile))
    axes, found = _axes(document, positions, file)
    problems += found
    if problems or file is None:
        raise SpecError(positions.ordered(problems))
    overrides = tuple(Axis(key, path.parent).override(value) for key, value in file.set.items())
    return Sweep(path, file, axes, overrides, positions)


def _in_axes(found: Problem) -> Problem:
    """Say where a key of a spec belongs that stands beside ``axes``."""
    if found.code != "unknown-key" or "." not in (found.suggestion or ""):
        return found
    return replace(found, suggestion=f"axes: {{{found.suggestion}: [...]}}")


def _axes(
    document: Document, positions: Positions, file: SweepFile | None
) -> tuple[tuple[Axis, ...], list[Problem]]:
    """Axes of a file, and what is wrong with them."""
    root = document.root.value
    assert isinstance(root, dict), "the top level was checked"
    node = root.get("axes")
    entries = node.value if node is not None and isinstance(node.value, dict) else {}
    axes, problems = [], []
    for name, one in entries.items():
        path = ("axes", name)
        refused = list(_name_problems(name, path, positions, root))
        if not refused:
            axis = _axis(name, one, path, positions, document.source.path or Path())
            refused = list(axis) if isinstance(axis, list) else []
            if isinstance(axis, Axis):
                axes.append(axis)
                if file is not None and axis.range is not None and file.method == "grid":
                    message = "a grid takes a list of values; a range needs `method: tpe` or random"
                    refused = [positions.problem("wrong-type", path, message)]
        problems += refused
    if file is not None and not entries and file.method != "grid":
        problems.append(positions.problem("missing-key", ("axes",), "a search needs axes"))
    has_axis = {axis.name for axis in axes}
    if file is not None and not problems:
        if file.spec is None and file.family is None and SPEC not in has_axis:
            problems.append(
                positions.problem("missing-key", ("spec",), "is missing: give the base spec")
            )
        if SPEC in has_axis and (file.spec is not None or file.family is not None):
            message = "the specs are the axis `spec`; leave `spec` or `family` beside `axes` out"
            problems.append(positions.problem("exclusive", ("axes", SPEC), message, at="key"))
        for axis in axes:
            if axis.name in file.set:
                message = "is an axis and has one value for all in `set`; leave one of them out"
                problems.append(
                    positions.problem("exclusive", ("axes", axis.name), message, at="key")
                )
    return tuple(axes), problems


def _name_problems(
    name: str, path: SpecPath, positions: Positions, root: Mapping[str, Node]
) -> Iterator[Problem]:
    if name in {"seed", "train.seed", "seeds"}:
        yield positions.problem(
            "exclusive", path, "seeds have a key of their own", at="key", suggestion="seeds: 0-4"
        )
    elif name in FAMILY_AXES and "family" not in root:
        message = f"`{name}` is an option of a family: give `family: resnet` in place of `spec`"
        yield positions.problem("unknown-key", path, message, at="key")


def _axis(
    name: str, node: Node, path: SpecPath, positions: Positions, file: Path
) -> Axis | list[Problem]:
    """Axis of a node, or what is wrong with it."""
    value = plain(node)
    if isinstance(value, dict):
        if not {"low", "high"} & value.keys():
            inside = next(iter(value), "key")
            message = "must be a list of values, or a range {low: ..., high: ...}"
            meant = f"{name}.{inside}: [...]" if isinstance(value.get(inside), list) else None
            return [positions.problem("wrong-type", path, message, at="key", suggestion=meant)]
        try:
            return Axis(name, file.parent, range=RangeSpec.model_validate(value))
        except ValidationError as error:
            return problems_from(error, positions, path, RangeSpec)
    if not isinstance(value, list):
        message = (
            f"must be a list of values, or a range {{low: ..., high: ...}}, not {shown(value)}"
        )
        suggestion = None if value is None else f"[{dump_value(value)}]"
        return [positions.problem("wrong-type", path, message, suggestion=suggestion)]
    if not value:
        return [positions.problem("out-of-range", path, "an axis has at least one value")]
    texts = [dump_value(one) for one in value]
    return [
        positions.problem("out-of-range", (*path, index), f"{text} is given twice")
        for index, text in enumerate(texts)
        if text in texts[:index]
    ] or Axis(name, file.parent, tuple(value))


def sweep_json_schema_text() -> str:
    """JSON text of the JSON Schema of sweep files, for editors."""
    schema = json_schema_of(SweepFile)
    properties = {key: dict(value) for key, value in schema["properties"].items()}
    # What the file may say in more than one way.
    texts = {"type": "array", "items": {"type": "string"}}
    seeds = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    written = {
        "with": [{"type": "string"}, texts],
        "seeds": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": r"^ *\d+( *- *\d+)?( *, *\d+( *- *\d+)?)* *$"},
            seeds,
        ],
        "family": [{"enum": list(FAMILIES)}, {"$ref": "#/$defs/FamilySpec"}],
    }
    for key, forms in written.items():
        properties[key] = {"description": properties[key]["description"], "anyOf": forms}
    properties["axes"]["additionalProperties"] = {
        "anyOf": [{"type": "array", "minItems": 1}, {"$ref": "#/$defs/RangeSpec"}]
    }
    definitions = {**schema["$defs"], "RangeSpec": json_schema_of(RangeSpec)}
    found = {
        "$schema": DIALECT,
        **schema,
        "title": "A sweep of resnet-builder",
        "properties": properties,
        "$defs": definitions,
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
