"""Conversion of other codebases' weights: match tensors by name, fold biases, report.

The names that torchvision, timm and eight other codebases give to layers are tables in
:mod:`resnet_builder.weights.key_maps`; files are read by :mod:`resnet_builder.weights.foreign`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import PlainSerializer
from torch import Tensor, nn

from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.model import norms_by_convolution
from resnet_builder.weights.foreign import FileReport, read_foreign
from resnet_builder.weights.key_maps import KeyMap, find_key_map

HEAD = "fc"
"""Name of the layer that turns features into logits."""

_BATCH_COUNTER = "num_batches_tracked"

_SHOWN = 10
"""Differences between a file and a network that an error lists; the rest are counted."""


def _pairs(names: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"theirs": theirs, "ours": ours} for theirs, ours in names.items()]


Renaming = Annotated[dict[str, str], PlainSerializer(_pairs)]
"""Our names by theirs; in JSON, a list of pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport(FileReport):
    """Outcome of loading a file: the fate of each of its tensors, and of the network's.

    Attributes:
        layout: Codebase whose names the file has, as listed in ``docs/reference/checkpoints.md``.
        matched: Tensors that have the same name on both sides.
        renamed: Our names of tensors that have another name in the file, by that name.
        reshaped: Our names of tensors whose layer is linear on one side and a 1x1 convolution
            on the other.
        folded: Running means that took in the bias of a convolution, by the bias's name.
        fresh: Tensors of the network's own head, which it kept.
        uncounted: ``num_batches_tracked`` that only one side has; no result depends on it.
        missing: Other tensors that the file lacks; the network kept its own.
        unexpected: Other tensors that the network has no place for.
    """

    layout: str
    matched: list[str] = field(default_factory=list)
    renamed: Renaming = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    folded: Renaming = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    new_head: bool = False,
    ema: bool = False,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> LoadReport:
    """Load weights from a file, this program's or another's, into a network: all or none.

    The file may have torchvision's names, as networks here do, or those of another codebase in
    ``docs/reference/checkpoints.md``. After an error the network is as it was.

    Args:
        model: Network on any device; its weights are changed in place.
        path: Path of the file.
        new_head: Keep the network's own ``fc``, as for other classes than the file's.
        ema: Take the averaged weights instead of the trained ones beside them.
        allow_missing: Let the network keep its own tensors where the file has none.
        allow_unexpected: Leave out tensors that the network has no place for.

    Returns:
        Report on every tensor of the file and of the network.

    Raises:
        CheckpointError: The file cannot be read, or does not hold the network's weights.
        NonFiniteError: A weight is infinite or not a number.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: The network is on meta, has no ``fc`` to keep, or the file has no averaged
            weights.
    """
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UsageError("the network is on meta, where there is no memory for weights")
    theirs, file = read_foreign(Path(path), ema=ema)
    found = _match(theirs, model, file, new_head=new_head)
    if new_head and not found.report.fresh:
        raise UsageError(f"the network has no `{HEAD}`, so it cannot keep a new head")
    try:
        _refuse_differences(found, theirs, model, missing=allow_missing, extra=allow_unexpected)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.args[0]}", *error.args[1:]) from None
    places = model.state_dict()
    with torch.no_grad():
        for name, tensor in found.tensors.items():
            places[name].copy_(tensor)
    return found.report


@dataclass(frozen=True, slots=True, eq=False)
class _Matching:
    """New tensors of a network from a file, and what stands against them.

    Attributes:
        key_map: Names that the file has.
        report: Report, which is filled while tensors are matched.
        tensors: New value of each tensor of the network, by names of the network.
        mismatched: Names in the file of tensors of another shape, by names of the network.
        unfoldable: Biases of convolutions that no batch norm follows.
    """

    key_map: KeyMap
    report: LoadReport
    tensors: dict[str, Tensor] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    unfoldable: list[str] = field(default_factory=list)


def _match(
    theirs: Mapping[str, Tensor], network: nn.Module, file: FileReport, *, new_head: bool
) -> _Matching:
    """Find the place of each of a file's tensors in a network, which is not changed."""
    ours = network.state_dict()
    key_map = find_key_map(_layers(theirs), _layers(ours))
    report = LoadReport(**asdict(file), layout=key_map.name)
    found = _Matching(key_map, report)
    places = _places(theirs, ours, key_map)
    if new_head:
        report.fresh.extend(filter(_is_head, ours))
        ours = {name: tensor for name, tensor in ours.items() if not _is_head(name)}
        places = {key: name for key, name in places.items() if name is None or not _is_head(name)}
    keys = {name: key for key, name in places.items()}
    for name, tensor in ours.items():
        if name in keys:
            _pair(found, keys[name], theirs[keys[name]], name, tensor)
        elif name.endswith(_BATCH_COUNTER):
            report.uncounted.append(name)
        else:
            report.missing.append(name)
    biases: dict[str, str] = {}
    for key, place in places.items():
        layer, _, tensor_name = (place or "").rpartition(".")
        if place in ours:
            continue
        weight = ours.get(f"{layer}.weight")
        if tensor_name == "bias" and weight is not None and weight.dim() > 2:
            biases[key] = layer
        elif tensor_name == _BATCH_COUNTER:
            report.uncounted.append(key)
        else:
            report.unexpected.append(key)
    if biases:
        _fold(found, theirs, biases, network)
    return found


def _is_head(name: str) -> bool:
    return name.startswith(f"{HEAD}.")


def _layers(keys: Iterable[str]) -> frozenset[str]:
    return frozenset(key.rpartition(".")[0] for key in keys)


def _places(theirs: Iterable[str], ours: Iterable[str], key_map: KeyMap) -> dict[str, str | None]:
    """Our name of each of a file's tensors, or ``None`` where the network has no such layer.

    Of two that would have the same name, the second has none.
    """
    layers = _layers(ours)
    keys: dict[str, str] = {}
    places: dict[str, str | None] = {}
    for key in theirs:
        layer, dot, tensor = key.rpartition(".")
        found = key_map.translate(layer, layers)
        name = None if found is None else f"{found}{dot}{tensor}"
        is_first = name is not None and keys.setdefault(name, key) == key
        places[key] = name if is_first else None
    return places


def _pair(found: _Matching, key: str, theirs: Tensor, name: str, ours: Tensor) -> None:
    """Take a tensor for its place, if it has the same shape, and both are floats or neither is."""
    # A linear layer and a 1x1 convolution on single pixels compute the same.
    is_linear_and_1x1 = {theirs.dim(), ours.dim()} == {2, 4} and theirs.numel() == ours.numel()
    if is_linear_and_1x1 and theirs.shape[:2] == ours.shape[:2]:
        found.report.reshaped.append(name)
        theirs = theirs.reshape(ours.shape)
    if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point():
        found.mismatched[name] = key
        return
    found.tensors[name] = theirs
    if key == name:
        found.report.matched.append(name)
    else:
        found.report.renamed[key] = name


def _fold(
    found: _Matching,
    theirs: Mapping[str, Tensor],
    biases: Mapping[str, str],
    network: nn.Module,
) -> None:
    """Subtract biases of convolutions from the running means of the batch norms that follow.

    ``biases`` has the names here of the convolutions, by the names of their biases in the file.
    """
    # A batch norm subtracts its mean from its input: x + bias with a mean gives the same as x
    # with mean - bias.
    norms = norms_by_convolution(network)
    for key, convolution in biases.items():
        norm = norms.get(convolution)
        name = f"{norm}.running_mean"
        mean = found.tensors.get(name)
        if norm is None:
            found.unfoldable.append(key)
        elif mean is None or mean.shape != theirs[key].shape:
            found.report.unexpected.append(key)
        else:
            found.tensors[name] = mean - theirs[key]
            found.report.folded[key] = name


def _refuse_differences(
    found: _Matching,
    theirs: Mapping[str, Tensor],
    network: nn.Module,
    *,
    missing: bool,
    extra: bool,
) -> None:
    """Raise a CheckpointError that names the differences, unless each is allowed."""
    name, unsupported = found.key_map.name, found.key_map.unsupported
    if unsupported is not None:
        raise CheckpointError(f"{name}'s weights cannot be used: {unsupported}")
    ours = network.state_dict()
    here = [
        f"{one}: {_shape(ours[one])} in the network, {_shape(theirs[key])} in the file"
        + (f" ({key})" if key != one else "")
        for one, key in found.mismatched.items()
    ]
    if not missing:
        here += [
            f"{one}: {_shape(ours[one])} in the network, nothing in the file"
            for one in found.report.missing
        ]
    there = [
        f"{key}: nothing in the network, {_shape(theirs[key])} in the file"
        for key in ([] if extra else found.report.unexpected)
    ]
    if here or there:
        # Either side may fill the room that the other leaves.
        room = max(_SHOWN // 2, _SHOWN - len(there))
        shown = [*here[:room], *there[: _SHOWN - min(room, len(here))]]
        lines = [f"these tensors are not the network's (by {name}'s names):", *shown]
        if more := len(here) + len(there) - len(shown):
            lines.append(f"and {more} more")
        if not found.tensors:
            lines.append("docs/reference/checkpoints.md lists whose names are understood")
        elif len(here) == sum(map(_is_head, found.mismatched)) and not there:
            lines.append("--new-head (new_head=True) keeps the network's own head instead")
        raise CheckpointError(lines[0], *(f"  {line}" for line in lines[1:]))
    if found.unfoldable:
        raise CheckpointError(
            "no part has a biased convolution, and no batch norm follows that could take in the "
            f"bias of {', '.join(found.unfoldable)}"
        )


def _shape(tensor: Tensor) -> str:
    """Shape of a tensor, with its type unless that is floating-point: ``64 x 3 x 7 x 7``."""
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return shape + kind
