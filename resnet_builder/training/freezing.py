"""Layers that a training leaves exactly as they are."""

from collections.abc import Iterable
from itertools import chain

from torch import nn

from resnet_builder.errors import UsageError
from resnet_builder.model import sections


def freeze(network: nn.Module, names: Iterable[str]) -> None:
    """Keep sections of a network as they are, while the rest of it is trained.

    Their parameters need no gradient, so that the optimizer, weight decay and the norm of the
    gradient leave them out, and no backward pass goes through them unless something before them
    is trained. They are in evaluation mode: norms use their running statistics and do not change
    them; dropout and drop path do nothing.

    Args:
        network: The network; whatever puts it into training mode later must spare these layers.
        names: ``stem``, names of stages, ``head``.

    Raises:
        UsageError: There is no such section, or nothing is left to train.
    """
    for layer in _layers(network, names):
        network.get_submodule(layer).requires_grad_(False).eval()
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError("train.freeze: it leaves nothing to train")


def frozen_tensors(network: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return the names of all parameters and buffers of sections that are frozen.

    Raises:
        UsageError: There is no such section.
    """
    layers = _layers(network, names)
    named = chain(network.named_parameters(), network.named_buffers())
    return frozenset(name for name, _ in named if name.split(".", 1)[0] in layers)


def _layers(network: nn.Module, names: Iterable[str]) -> list[str]:
    known = sections(network)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"train.freeze: the network has no '{unknown[0]}'; it has {', '.join(known)}"
        )
    return [layer for name in names for layer in known[name]]
