"""Which tensor of a file is which of a network, and what does not fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from resnet_builder.folding import RUNNING_MEAN, norms_by_convolution
from resnet_builder.weights.layouts import Layout, recognise

HEAD = "fc"
"""The layer that turns features into logits."""

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that only a file or only a network has, or that has another form in each.

    Attributes:
        name: In the network; in the file, if the network has no place for it.
        ours: Its form in the network, as ``64 x 3 x 7 x 7``, if it has one.
        theirs: Its form in the file, if it has one.
        source: Its name in the file, if that is another.
    """

    name: str
    ours: str | None
    theirs: str | None
    source: str | None = None

    def __str__(self) -> str:
        here, there = self.ours or "nothing", self.theirs or "nothing"
        source = "" if self.source is None else f" ({self.source})"
        return f"{self.name}: {here} in the network, {there} in the file{source}"


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """What becomes of each tensor of a file, and of a network.

    Attributes:
        layout: Whose names the file has.
        tensors: What each tensor of the network is to be, by our names.
        sources: What each of these is called in the file.
        reshaped: Which of them are of a layer that is linear on one side and a 1x1 convolution
            on the other.
        folded: The running means that biases of convolutions are taken from, by the biases'
            names.
        unfoldable: Biases of convolutions that no batch norm follows.
        fresh: Tensors of the network's head, if it keeps its own.
        uncounted: Counters of batches that only one side has; nothing is computed from them.
        missing: Other tensors that only the network has.
        unexpected: Other tensors that only the file has.
        mismatched: Tensors that have another form in each.
    """

    layout: Layout
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    folded: dict[str, str] = field(default_factory=dict)
    unfoldable: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    missing: list[Difference] = field(default_factory=list)
    unexpected: list[Difference] = field(default_factory=list)
    mismatched: list[Difference] = field(default_factory=list)


def match(theirs: Mapping[str, Tensor], network: nn.Module, *, new_head: bool = False) -> Matching:
    """Find the place of each of a file's tensors in a network, which is not changed.

    Args:
        theirs: The file's tensors, by its names.
        network: What they are for.
        new_head: Whether the network keeps its own head.
    """
    ours = network.state_dict()
    matching = Matching(recognise(_layers(theirs), _layers(ours)))
    places = _places(theirs, ours, matching.layout)
    if new_head:
        matching.fresh.extend(filter(is_head, ours))
        ours = {name: tensor for name, tensor in ours.items() if not is_head(name)}
        places = {key: name for key, name in places.items() if name is None or not is_head(name)}
    _sort_ours(matching, ours, theirs, places)
    biases = _sort_theirs(matching, ours, theirs, places)
    if biases:
        _fold(matching, theirs, biases, network)
    return matching


def is_head(name: str) -> bool:
    """Tell whether a tensor of a network is its head's."""
    return name.startswith(f"{HEAD}.")


def _layers(keys: Iterable[str]) -> frozenset[str]:
    return frozenset(key.rpartition(".")[0] for key in keys)


def _places(theirs: Iterable[str], ours: Iterable[str], layout: Layout) -> dict[str, str | None]:
    """Return what a network calls each tensor of a file; nothing if it has no such layer.

    Of two that would have the same name, the second has none.
    """
    layers = _layers(ours)
    keys: dict[str, str] = {}
    places: dict[str, str | None] = {}
    for key in theirs:
        layer, dot, tensor = key.rpartition(".")
        found = layout.translate(layer, layers)
        name = None if found is None else f"{found}{dot}{tensor}"
        is_first = name is not None and keys.setdefault(name, key) == key
        places[key] = name if is_first else None
    return places


def _sort_ours(
    matching: Matching,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    places: Mapping[str, str | None],
) -> None:
    """Find a tensor of the file for each of the network."""
    keys = {name: key for key, name in places.items()}
    for name, tensor in ours.items():
        if name in keys:
            _pair(matching, keys[name], theirs[keys[name]], name, tensor)
        elif name.endswith(_COUNTER):
            matching.uncounted.append(name)
        else:
            matching.missing.append(Difference(name, _form(tensor), None))


def _pair(matching: Matching, key: str, theirs: Tensor, name: str, ours: Tensor) -> None:
    """Take a tensor for its place, if it is like what stands there."""
    if _is_linear_as_convolution(theirs, ours):
        matching.reshaped.append(name)
        theirs = theirs.reshape(ours.shape)
    if theirs.shape == ours.shape and theirs.is_floating_point() == ours.is_floating_point():
        matching.tensors[name] = theirs
        matching.sources[name] = key
    else:
        source = None if key == name else key
        matching.mismatched.append(Difference(name, _form(ours), _form(theirs), source))


def _is_linear_as_convolution(theirs: Tensor, ours: Tensor) -> bool:
    """Tell whether one is the weight of a linear layer and the other of a 1x1 convolution."""
    return (
        {theirs.dim(), ours.dim()} == {2, 4}
        and theirs.shape[:2] == ours.shape[:2]
        and theirs.numel() == ours.numel()
    )


def _sort_theirs(
    matching: Matching,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    places: Mapping[str, str | None],
) -> dict[str, str]:
    """Sort the tensors of the file that the network has none for.

    Returns:
        Biases of convolutions that have none in the network: what these are called there, by
        the biases' names.
    """
    convolutions: dict[str, str] = {}
    for key, name in places.items():
        if name in ours:
            continue
        layer, _, tensor = (name or "").rpartition(".")
        if tensor == "bias" and _is_convolution(ours.get(f"{layer}.weight")):
            convolutions[key] = layer
        elif tensor == _COUNTER:
            matching.uncounted.append(key)
        else:
            matching.unexpected.append(Difference(key, None, _form(theirs[key])))
    return convolutions


def _is_convolution(weight: Tensor | None) -> bool:
    return weight is not None and weight.dim() > 2


def _form(tensor: Tensor) -> str:
    """Write a tensor's shape, and its type unless that is of real numbers: ``64 x 3 x 7 x 7``."""
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return shape + kind


def _fold(
    matching: Matching,
    theirs: Mapping[str, Tensor],
    convolutions: Mapping[str, str],
    network: nn.Module,
) -> None:
    """Take biases of convolutions from the means of the norms that follow.

    A batch norm subtracts the mean of what it is given, so that ``x + bias`` with ``mean`` gives
    what ``x`` gives with ``mean - bias``.

    Args:
        matching: What is known of the other tensors.
        theirs: The file's tensors.
        convolutions: What the network calls the convolutions, by the names of their biases.
        network: What the tensors are for.
    """
    norms = norms_by_convolution(network)
    for key, convolution in convolutions.items():
        norm = norms.get(convolution)
        name = f"{norm}.{RUNNING_MEAN}"
        mean = matching.tensors.get(name)
        if norm is None:
            matching.unfoldable.append(key)
        elif mean is None or mean.shape != theirs[key].shape:
            matching.unexpected.append(Difference(key, None, _form(theirs[key])))
        else:
            matching.tensors[name] = mean - theirs[key]
            matching.folded[key] = name
