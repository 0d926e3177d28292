"""Frozen sections of a network, and activation checkpointing of its stages."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_builder.model import sections


def freeze(network: nn.Module, names: Iterable[str]) -> None:
    """Freeze sections of a network, while the rest of it is trained.

    Their parameters need no gradient, so that the optimizer, weight decay and the norm of the
    gradient leave them out, and no backward pass goes through them unless something before them
    is trained. They are in evaluation mode: norms use their running statistics and do not change
    them; dropout and stochastic depth do nothing.

    Args:
        network: The network. Whatever puts it into training mode later must leave these layers
            out.
        names: ``stem``, names of stages, ``head``.
    """
    for layer in _layers(network, names):
        network.get_submodule(layer).requires_grad_(False).eval()


def frozen_tensors(network: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return the names of the parameters and buffers of frozen sections."""
    layers = _layers(network, names)
    named = chain(network.named_parameters(), network.named_buffers())
    return frozenset(name for name, _ in named if name.split(".", 1)[0] in layers)


def _layers(network: nn.Module, names: Iterable[str]) -> list[str]:
    known = sections(network)
    return [layer for name in names for layer in known[name]]


def has_unused_parameters(network: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Return whether there are parameters to train that no gradient reaches.

    Args:
        network: The network, on any device. It is left as it was.
        input_shape: Shape of an image, ``(C, H, W)``.
    """
    twin = copy.deepcopy(network).to("meta").eval()  # nothing is computed on meta
    twin(torch.empty(1, *input_shape, device="meta")).sum().backward()
    return any(p.requires_grad and p.grad is None for p in twin.parameters())


def checkpoint_activations(
    network: nn.Module,
    stages: Literal["all"] | Sequence[str],
    prepare_block: Callable[[nn.Module], nn.Module] = lambda block: block,
) -> nn.Module:
    """Return a network whose blocks keep only their input for the backward pass.

    Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174): less memory,
    more time, and the same bits.

    Args:
        network: The network, a sequence of layers. Its tensors are shared, not copied.
        stages: Names of the stages, or ``all``. If it is empty, the network itself is returned.
        prepare_block: Applied to each block before it is wrapped, such as CPU kernels: what is
            inside the wrapper is not seen from outside.
    """
    if stages == "all":
        stages = [name for name in sections(network) if name not in {"stem", "head"}]
    if not stages:
        return network
    wrapped = nn.Sequential()
    for name, layer in network.named_children():
        if name in stages:
            blocks = layer.named_children()
            layer = nn.Sequential(
                OrderedDict((n, CheckpointedBlock(prepare_block(block))) for n, block in blocks)
            )
        wrapped.add_module(name, layer)
    return wrapped


class CheckpointedBlock(nn.Module):
    """Block whose activations are computed again in the backward pass, to the same bits.

    Random masks are the same, and running statistics do not count the batch a second time.

    Args:
        block: The block. Its tensors are shared, not copied.

    Shape:
        As that of the block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        block = self.block
        if torch.compiler.is_compiling():  # a compiled backward pass changes no buffers
            return checkpoint(block, x, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _buffers_unchanged(block)

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _buffers_unchanged(block: nn.Module) -> Iterator[None]:
    """Context in which a block uses copies of its buffers."""
    own = [
        (module._buffers, name, buffer)
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for buffers, name, buffer in own:
        buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for buffers, name, buffer in own:
            buffers[name] = buffer
