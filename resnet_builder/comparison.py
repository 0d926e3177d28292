"""Comparison of experiments: their specs, their networks in numbers, their accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from resnet_builder.builder import read_spec
from resnet_builder.errors import CheckpointError, SpecPath, dotted
from resnet_builder.parts import REGISTRIES
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.bundled import bundled_names
from resnet_builder.spec.differences import spec_differences
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part, Section
from resnet_builder.spec.yaml_source import parse_plain
from resnet_builder.summary import summarize
from resnet_builder.weights.file import read_weights

WEIGHTS_ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the experiments that are compared.

    Attributes:
        source: Name that the user gave.
        kind: Kind of source that the spec was stored in.
        name: Name of the spec.
        parameters: Learnt parameters.
        macs: Multiply-adds for one image.
        activation_bytes: Bytes that a training step keeps for each image, in fp32.
        depth: Depth, as in the names of He et al. 2015.
        metrics: Metrics of its weights, if it has any, by names like ``test.top1``.
    """

    source: str
    kind: Literal["spec", "run", "weights"]
    name: str
    parameters: int
    macs: int
    activation_bytes: int
    depth: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that differs.

    Attributes:
        path: Place in all specs.
        values: Plain data in each spec, without the options at their defaults; ``None`` if absent.
    """

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Diff:
    """Experiments, and the differences of their specs."""

    subjects: tuple[Subject, ...]
    differences: tuple[Difference, ...]


def compare(*sources: str, plugins: Sequence[str] = ()) -> Diff:
    """Compare experiments, wherever their specs are stored.

    Args:
        sources: Each the name of a bundled spec; else a directory is a run, a name that ends in
            ``.safetensors`` a file of weights, and all else a spec.
        plugins: Plugins that may be imported.

    Raises:
        CheckpointError: The weights are missing, damaged or another program's.
        SpecError: A spec cannot be used here; a plugin without consent, for example.
        StorageError: A file cannot be read.
        UsageError: The directory is no run, or a newer release wrote the weights.
    """
    subjects, specs = zip(*(_subject(source, plugins) for source in sources), strict=True)
    differences = tuple(
        Difference(dotted(one.path), tuple(brief(one.path, value) for value in one.values))
        for one in spec_differences(*specs)
    )
    return Diff(subjects, differences)


def _subject(source: str, plugins: Sequence[str]) -> tuple[Subject, Spec]:
    path = Path(source)
    kind: Literal["spec", "run", "weights"]
    metrics: Mapping[str, float] = {}
    if source in bundled_names() or not (path.is_dir() or path.suffix == WEIGHTS_ENDING):
        kind, spec = "spec", read_spec(source, plugins=plugins)
    elif path.is_dir():
        run = RunDirectory.open(path)
        kind, spec = "run", read_spec(run.spec, plugins=plugins)
        if run.best.is_file():
            metrics = read_weights(run.best)[1].metrics
    else:
        header = read_weights(path)[1]
        values = parse_plain(header.spec, source)
        if not isinstance(values, dict):  # text would be taken for the name of a bundled spec
            raise CheckpointError(f"{path}: its header is damaged: the spec is no mapping")
        kind, spec, metrics = "weights", read_spec(values, plugins=plugins), header.metrics
    summary = summarize(spec)
    counts = (summary.parameters, summary.macs, summary.activation_bytes, summary.depth)
    return Subject(source, kind, spec.name, *counts, metrics=dict(metrics)), spec


def brief(path: SpecPath, value: Any) -> Any:
    """Plain data of a value, as somebody would write it: without what is at its default.

    Args:
        path: Place of the value in the spec.
        value: Section, part or plain value.
    """
    if isinstance(value, tuple):
        return [brief(path, item) for item in value]
    if isinstance(value, Part):
        key = next(step for step in reversed(path) if isinstance(step, str))
        return _given(path, value.options, REGISTRIES[key].options(value.type), value.type)
    if isinstance(value, Section):
        options = {name: getattr(value, name) for name in type(value).model_fields}
        return _given(path, options, type(value), options.pop("type", None))
    return value


def _given(
    path: SpecPath, options: Mapping[str, Any], model: type[BaseModel], name: str | None
) -> Any:
    """Leave out of a section's or a part's options those at their defaults."""
    given = {}
    for key, option in options.items():
        default = model.model_fields[key].default
        # A part in a resolved spec has all its options, and as a default it has none.
        if option != default and brief((*path, key), option) != brief((*path, key), default):
            given[key] = brief((*path, key), option)
    if name is None:
        return given
    return {"type": name, **given} if given else name
