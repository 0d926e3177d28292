"""Conversion of other codebases' weights: match tensors by name, fold biases, report.

The names that torchvision, timm and other codebases give to layers are tables in
:mod:`resnet_builder.weights.key_maps`; files are read by :mod:`resnet_builder.weights.foreign`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import PlainSerializer
from torch import Tensor, nn

from resnet_builder.errors import CheckpointError, UsageError, counted
from resnet_builder.model import norms_by_convolution
from resnet_builder.weights.channels import adapt_weight
from resnet_builder.weights.foreign import FileReport, read_foreign
from resnet_builder.weights.key_maps import KeyMap, place_layers

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
        adapted: Weights of the first convolution, adapted to images of other channels.
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
    adapted: list[str] = field(default_factory=list)
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
    adapt_channels: bool = False,
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
        adapt_channels: Adapt the first convolution, if the file is for images of another number of
            channels, by :func:`~resnet_builder.weights.channels.adapt_weight`.
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
    found = _match(theirs, model, file, new_head=new_head, adapt_channels=adapt_channels)
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


def in_own_names(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights of a network by our names, where ``publish`` wrote them by those of timm.

    Args:
        weights: State dict, by our names or by timm's.
        network: Network that they are for; it may be on meta, and is not changed.

    Returns:
        The same tensors by our names; what has no place keeps its name.
    """
    if weights.keys() == network.state_dict().keys():
        return dict(weights)
    _, _, layers = place_layers(_layers(weights), _layers(network.state_dict()))
    ours = network.state_dict()
    found = {}
    for key, place in _places(weights, layers).items():
        name, tensor = place or key, weights[key]
        is_linear = name in ours and ours[name].dim() == 2 and tensor.shape[2:] == (1, 1)
        found[name] = tensor.flatten(1) if is_linear else tensor
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Matching:
    """New tensors of a network from a file, and what stands against them.

    Attributes:
        key_map: Names that the file has.
        report: Report, which is filled while tensors are matched.
        layers: Our name of each layer of the file that the key map has a place for.
        tensors: New value of each tensor of the network, by names of the network.
        mismatched: Names in the file of tensors of another shape, by names of the network.
        unfoldable: Biases of convolutions that no batch norm follows.
    """

    key_map: KeyMap
    report: LoadReport
    layers: dict[str, str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    unfoldable: list[str] = field(default_factory=list)


def _match(
    theirs: Mapping[str, Tensor],
    network: nn.Module,
    file: FileReport,
    *,
    new_head: bool,
    adapt_channels: bool,
) -> _Matching:
    """Find the place of each of a file's tensors in a network, which is not changed."""
    ours = network.state_dict()
    key_map, prefix, layers = place_layers(_layers(theirs), _layers(ours))
    report = LoadReport(**asdict(file), layout=key_map.name)
    found = _Matching(key_map, report, layers=dict(layers))
    # A head of another name is the last linear layer that has no other place.
    heads = [] if HEAD in layers.values() else _unplaced_heads(theirs, prefix, layers)
    layers.update(dict.fromkeys(heads[-1:], HEAD))
    places = _places(theirs, layers)
    if new_head:
        report.fresh.extend(filter(_is_head, ours))
        ours = {name: tensor for name, tensor in ours.items() if not _is_head(name)}
        left_out = {_module(layer, prefix) for layer in heads}
        places = {
            key: name
            for key, name in places.items()
            if not (_is_head(name) if name else _module(key, prefix) in left_out)
        }
    keys = {name: key for key, name in places.items()}
    if adapt_channels and (name := _first_convolution(network)) in keys:
        key = keys[name]
        if _differ_in_channels(theirs[key], ours[name]):
            theirs = {**theirs, key: adapt_weight(theirs[key], ours[name].shape[1])}
            report.adapted.append(name)
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


def _first_convolution(network: nn.Module) -> str:
    """Name of the weight that meets the images; empty if there is none, or it is grouped."""
    named = ((name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d))
    name, convolution = next(named, ("", None))
    return f"{name}.weight" if convolution is not None and convolution.groups == 1 else ""


def _differ_in_channels(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two weights of a convolution differ in the number of input channels alone."""
    if not theirs.dim() == ours.dim() == 4 or theirs.shape[1] == ours.shape[1]:
        return False
    return theirs.shape[:1] + theirs.shape[2:] == ours.shape[:1] + ours.shape[2:]


def _is_head(name: str) -> bool:
    return name.startswith(f"{HEAD}.")


def _layers(keys: Iterable[str]) -> dict[str, None]:
    """Names of layers, each once, in order."""
    return dict.fromkeys(key.rpartition(".")[0] for key in keys)


def _module(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).partition(".")[0]


def _unplaced_heads(
    theirs: Mapping[str, Tensor], prefix: str, layers: Mapping[str, str]
) -> list[str]:
    """Layers of a file that may be its head: linear, in modules that have no place otherwise."""
    placed = {_module(layer, prefix) for layer in layers}
    return [
        layer
        for layer in _layers(theirs)
        if (weight := theirs.get(f"{layer}.weight")) is not None
        and (weight.dim() == 2 or weight.shape[2:] == (1, 1))
        and _module(layer, prefix) not in placed
    ]


def _places(theirs: Iterable[str], layers: Mapping[str, str]) -> dict[str, str | None]:
    """Our name of each of a file's tensors, or ``None`` where the network has no such layer.

    Of two that would have the same name, the second has none.
    """
    keys: dict[str, str] = {}
    places: dict[str, str | None] = {}
    for key in theirs:
        layer, dot, tensor = key.rpartition(".")
        found = layers.get(layer)
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
    ours = network.state_dict()
    _refuse_unknown_names(found, theirs, ours)
    name, unsupported = found.key_map.name, found.key_map.unsupported
    if unsupported is not None:
        raise CheckpointError(f"{name}'s weights cannot be used: {unsupported}")
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
        lines[1:] = [f"  {line}" for line in lines[1:]]
        raise CheckpointError(*lines, *_advice(found, theirs, ours, _first_convolution(network)))
    if found.unfoldable:
        raise CheckpointError(
            "no part has a biased convolution, and no batch norm follows that could take in the "
            f"bias of {', '.join(found.unfoldable)}"
        )


def _refuse_unknown_names(
    found: _Matching, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> None:
    """Raise a CheckpointError if the names are of no known codebase, or nothing matches.

    A file of a deeper or a shallower network is not unknown: one of the two has most of the
    other's layers.
    """
    placed, in_file, in_network = len(found.layers), len(_layers(theirs)), len(_layers(ours))
    is_near = 2 * placed >= min(in_file, in_network)
    has_convolution = any(ours[name].dim() > 2 for name in (*found.tensors, *found.mismatched))
    if not is_near or not has_convolution:
        unknown = [key for key in theirs if key.rpartition(".")[0] not in found.layers]
        raise CheckpointError(
            f"it holds other weights, or names of no known codebase; by {found.key_map.name}'s "
            f"names, the nearest, {placed} of its {in_file} layers have a place in the network",
            f"  in the file, without a place: {_patterns(unknown)}",
            f"  in the network: {_patterns(ours)}",
            "docs/reference/checkpoints.md lists the codebases and their names",
        )


def _patterns(names: Iterable[str]) -> str:
    """Summary of tensors' layers: those that differ in numbers alone become one, counted."""
    layers = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    counts = Counter(re.sub(r"\d+", "*", layer) for layer in layers)
    shown = [
        f"{name:.80} ({n})" if n > 1 else f"{name:.80}" for name, n in counts.most_common(_SHOWN)
    ]
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return (", ".join(shown) or "nothing") + more


def _advice(
    found: _Matching, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], first: str
) -> Iterator[str]:
    """Yield a line for each kind of difference that something is likely to be done about."""
    report, key = found.report, found.mismatched.get(first)
    is_other_input = key is not None and _differ_in_channels(theirs[key], ours[first])
    heads = [name for name in (*found.mismatched, *report.missing) if _is_head(name)]
    explained = len(heads) + is_other_input
    if not report.unexpected and explained == len(found.mismatched) + len(report.missing):
        if key is not None and is_other_input:
            yield _channel_advice(theirs[key].shape[1], ours[first].shape[1])
        if heads:
            yield (
                "for other classes than the file's, take a new head: --new-head, new_head=True, or "
                "`new_head: true` in `model.weights`"
            )
    elif not found.mismatched:
        flags = [
            flag
            for flag, names in (
                ("--allow-missing", report.missing),
                ("--allow-unexpected", report.unexpected),
            )
            if names
        ]
        yield (
            f"`resnet-build import` with {' and '.join(flags)} converts the file all the same; "
            "the network then computes something else than the file's did"
        )


def _channel_advice(given: int, wanted: int) -> str:
    grey = " and add `to_rgb` to data.preprocess," if (given, wanted) == (3, 1) else ""
    return (
        f"the file is for images of {counted(given, 'channel')}: set "
        f"model.in_channels={given}{grey or ','} or adapt the first convolution: --adapt-channels, "
        "adapt_channels=True, or `adapt_channels: true` in `model.weights`"
    )


def _shape(tensor: Tensor) -> str:
    """Shape of a tensor, with its type unless that is floating-point: ``64 x 3 x 7 x 7``."""
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return shape + kind
