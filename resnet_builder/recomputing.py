"""Less memory for more time: blocks whose inside is computed again when gradients need it."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_builder.model import sections


def recomputing(network: nn.Module, wanted: Literal["all"] | Sequence[str]) -> nn.Module:
    """Return what computes a network with less memory, or the network itself if that is not wanted.

    Args:
        network: The network, a sequence of layers; its tensors are shared, not copied.
        wanted: The names of stages whose blocks are computed again, or ``all``.
    """
    stages = recomputed_stages(network, wanted)
    if not stages:
        return network
    twin = nn.Sequential()
    for name, layer in network.named_children():
        if name in stages:
            layer = nn.Sequential(
                OrderedDict((n, Recomputed(b)) for n, b in layer.named_children())
            )
        twin.add_module(name, layer)
    return twin


def recomputed_stages(network: nn.Module, wanted: Literal["all"] | Sequence[str]) -> frozenset[str]:
    """Return the names of the stages whose blocks are computed again."""
    if wanted == "all":
        return frozenset(sections(network).keys() - {"stem", "head"})
    return frozenset(wanted)


class Recomputed(nn.Module):
    """A block that keeps for its gradients only what enters it.

    What lies inside is computed again in the backward pass (Chen et al. 2016,
    https://arxiv.org/abs/1604.06174), to the same bits: with the same random masks, and without
    counting the batch a second time in running statistics.

    Args:
        block: The block; its tensors are shared, not copied.

    Shape:
        As the block's.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        block = self.block
        if torch.compiler.is_compiling():  # a compiled backward pass has no side effects to prevent
            return checkpoint(block, x, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _spare_buffers(block)

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _spare_buffers(block: nn.Module) -> Iterator[None]:
    """Let a block compute with copies of its buffers, and put the own ones back afterwards."""
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
