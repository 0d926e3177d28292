"""Less memory for more time: blocks whose inside is computed again when gradients need it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_builder.model import sections


def recomputing(network: nn.Module, wanted: Literal["all"] | Sequence[str]) -> nn.Module:
    """Return what computes a network with less memory, or the network itself if that is not wanted.

    Args:
        network: The network; it shares its tensors.
        wanted: The names of stages whose blocks are computed again, or ``all``.
    """
    stages = recomputed_stages(network, wanted)
    return Recomputing(network, stages) if stages else network


def recomputed_stages(network: nn.Module, wanted: Literal["all"] | Sequence[str]) -> frozenset[str]:
    """Return the names of the stages whose blocks are computed again."""
    if wanted == "all":
        return frozenset(sections(network).keys() - {"stem", "head"})
    return frozenset(wanted)


class Recomputing(nn.Module):
    """A network that keeps for its gradients only what enters the blocks of some stages.

    What lies inside such a block is computed again in the backward pass (Chen et al. 2016,
    https://arxiv.org/abs/1604.06174), to the same bits: with the same random masks, and without
    counting the batch a second time in running statistics.

    Args:
        network: The network, a sequence of layers; its tensors are shared, not copied.
        stages: The names of those of its layers whose blocks are computed again.

    Shape:
        As the network's.
    """

    def __init__(self, network: nn.Module, stages: Collection[str]) -> None:
        super().__init__()
        self.network = network
        self.stages = frozenset(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network."""
        for name, layer in self.network.named_children():
            if name not in self.stages:
                x = layer(x)
                continue
            for block in layer.children():
                x = _computed_again(block, x)
        return x


def _computed_again(block: nn.Module, x: Tensor) -> Tensor:
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
