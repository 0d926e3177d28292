"""Two experiments side by side: their specs, the sizes of their networks, and their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from resnet_builder.builder import read_spec
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS
from resnet_builder.errors import SpecPath
from resnet_builder.inference import TrainedModel, load_model
from resnet_builder.parts import MODEL_PARTS
from resnet_builder.registry import Registry
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.bundled import bundled_names
from resnet_builder.spec.differences import Difference, spec_differences
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part, Section
from resnet_builder.summary import Summary, summarize

WEIGHTS_ENDING = ".safetensors"

_REGISTRIES: dict[str, Registry[Any]] = {
    **MODEL_PARTS,
    "dataset": DATASETS,
    "augment": AUGMENTATIONS,
}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is compared.

    Attributes:
        source: What the user called it.
        kind: What it is.
        spec: Its experiment, resolved.
        summary: The network, in numbers.
        trained: Its weights, if it has any.
    """

    source: str
    kind: Literal["spec", "run", "weights"]
    spec: Spec
    summary: Summary
    trained: TrainedModel | None


@dataclass(frozen=True, slots=True)
class WeightsDiff:
    """Where the weights of two networks differ.

    Attributes:
        equal: Tensors that have the same bits in both.
        differing: Tensors of the same shape and type that have other bits.
        reshaped: Tensors of another shape or type.
        only_a: Tensors that only the first network has.
        only_b: Tensors that only the second has.
        largest: The largest difference of two numbers in ``differing``; counters left out.
        largest_in: The tensor that it is in.
    """

    equal: tuple[str, ...]
    differing: tuple[str, ...]
    reshaped: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    largest: float
    largest_in: str | None

    @property
    def are_equal(self) -> bool:
        """Whether both networks have the same tensors, bit for bit."""
        return not (self.differing or self.reshaped or self.only_a or self.only_b)


@dataclass(frozen=True, slots=True, eq=False)
class Diff:
    """Two experiments, and where they differ.

    Attributes:
        a: The first.
        b: The second.
        differences: Of the specs; parts are plain data, without the options at their defaults.
        weights: Of the weights, if both have some.
    """

    a: Subject
    b: Subject
    differences: tuple[Difference, ...]
    weights: WeightsDiff | None


def read_subject(source: str, *, plugins: Sequence[str] = ()) -> Subject:
    """Read a spec, a run or a file of weights.

    Args:
        source: The name of a bundled spec; else a directory is a run, a name that ends in
            ``.safetensors`` weights, and all else a spec.
        plugins: The plugins that may be imported.

    Raises:
        CheckpointError: The weights are missing, damaged, another program's, or not of their spec.
        SpecError: The spec cannot be used here; a plugin without consent, for example.
        StorageError: A file cannot be read.
        UsageError: The directory is no run, or a newer release wrote the weights.
    """
    path = Path(source)
    if source in bundled_names() or not (path.is_dir() or path.suffix == WEIGHTS_ENDING):
        spec = read_spec(source, plugins=plugins)
        return Subject(source, "spec", spec, summarize(spec), None)
    if not path.is_dir():
        trained = load_model(path, plugins=plugins)
        return Subject(source, "weights", trained.spec, summarize(trained.spec), trained)
    run = RunDirectory.open(path)
    spec = read_spec(run.spec, plugins=plugins)
    weights = load_model(path, plugins=plugins) if run.best.is_file() else None
    return Subject(source, "run", spec, summarize(spec), weights)


def compare(a: Subject, b: Subject) -> Diff:
    """Find where two experiments differ."""
    differences = tuple(
        Difference(one.path, _brief(one.path, one.before), _brief(one.path, one.after))
        for one in spec_differences(a.spec, b.spec)
    )
    if a.trained is None or b.trained is None:
        return Diff(a, b, differences, None)
    weights = compare_weights(a.trained.network.state_dict(), b.trained.network.state_dict())
    return Diff(a, b, differences, weights)


def compare_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> WeightsDiff:
    """Find where two state dicts on the CPU differ."""
    shared = [name for name in a if name in b]
    alike = [name for name in shared if _form(a[name]) == _form(b[name])]
    differing = [name for name in alike if not _same_bits(a[name], b[name])]
    distances = {
        name: float((a[name].double() - b[name].double()).abs().max())
        for name in differing
        if a[name].is_floating_point()
    }
    largest_in = max(distances, key=lambda name: distances[name], default=None)
    return WeightsDiff(
        equal=tuple(name for name in alike if name not in differing),
        differing=tuple(differing),
        reshaped=tuple(name for name in shared if name not in alike),
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
        largest=0.0 if largest_in is None else distances[largest_in],
        largest_in=largest_in,
    )


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same bits; 0.0 and -0.0, which are equal, do not."""
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)))


def _brief(path: SpecPath, value: Any) -> Any:
    """Make plain data of a value, as somebody would write it: without what is at its default."""
    if isinstance(value, tuple):
        return [_brief(path, item) for item in value]
    if isinstance(value, Part):
        key = next(step for step in reversed(path) if isinstance(step, str))
        return _given(path, value.options, _REGISTRIES[key].options(value.type), value.type)
    if isinstance(value, Section):
        options = {name: getattr(value, name) for name in type(value).model_fields}
        return _given(path, options, type(value), options.pop("type", None))
    return value


def _given(
    path: SpecPath, options: Mapping[str, Any], model: type[BaseModel], name: str | None
) -> Any:
    """Leave out of a section's or a part's options those at their defaults."""
    given = {
        key: _brief((*path, key), option)
        for key, option in options.items()
        if option != model.model_fields[key].default
    }
    if name is None:
        return given
    return {"type": name, **given} if given else name
