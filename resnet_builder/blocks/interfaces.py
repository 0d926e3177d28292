"""Interfaces of a network's parts, and the registry of each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from resnet_builder.registry import Registry

NormFactory = Callable[[int], nn.Module]
"""Maker of a normalisation layer, with a ``weight`` that scales, from a width.

Blocks modify the layer's output in place; its backward must not need it.
"""

ActivationFactory = Callable[[], nn.Module]
"""Maker of an activation."""

ShortcutFactory = Callable[[int, int, int], nn.Module | None]
"""Maker of the skip path from ``(in_channels, out_channels, stride)``.

``nn.Identity()`` where nothing changes; ``None`` where the block is to add nothing at all.
"""

AttentionFactory = Callable[[int], nn.Module]
"""Maker of an attention layer from a width; ``nn.Identity()`` stands for none.

Blocks add to the layer's output in place; its backward must not need it.
"""

AntialiasFactory = Callable[[int, int], nn.Module | None]
"""Maker of a subsampling filter from ``(channels, stride)``; ``None``: the convolution strides."""

# Attributes under which every block keeps the two; the names are torchvision's and timm's keys.
# Modules below them are not on the residual path: depth and receptive field leave them out.
SHORTCUT_ATTRIBUTE = "downsample"
ATTENTION_ATTRIBUTE = "se"


class Block(Protocol):
    """Residual block, which is an ``nn.Module``.

    The builder calls its class with ``(in_channels, channels)`` and, by keyword, ``stride`` and
    ``shortcut``. Other parameters of the contract of :data:`BLOCKS` are passed if the signature
    names them. All further keyword-only parameters are the block's options in a spec.

    ``dilation`` is the dilation of the stage. ``previous_dilation`` is that of the convolutions up
    to the one that strides. The two differ in the first block of a stage whose stride is replaced
    with dilation; that block's ``stride`` is 1. ``begins_stage`` is true in the first block.

    Attributes:
        out_channels: Width of the output; only the block knows its expansion.
        preactivated: True on a class whose output is a bare sum: the next block, or the head,
            normalises it first. Shortcuts of such blocks have no norm either.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    out_channels: int

    def zero_residual(self) -> None:
        """Make the residual path output zero, so that the block starts as its shortcut."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the block."""


def missing_attribute(block: object, name: str, *attributes: str) -> str | None:
    """Message about the first of these attributes that a block lacks, if it lacks one."""
    where = "see docs/tutorials/add-a-block.md"
    for attribute in attributes:
        if not hasattr(block, attribute):
            return f"block '{name}' has no attribute '{attribute}'; {where}"
    width = getattr(block, "out_channels", 1)
    if not isinstance(width, int) or width < 1:
        return f"block '{name}' has out_channels={width!r}, not a number of channels; {where}"
    return None


@dataclass(frozen=True, slots=True)
class Stem:
    """Layers before the first stage.

    Attributes:
        layers: Layers by their names in the network, in order.
        out_channels: Width of the output.
        stride: Total stride of the layers.
    """

    layers: Mapping[str, nn.Module]
    out_channels: int
    stride: int


Head = Mapping[str, nn.Module]
"""Layers after the last stage, by their names in the network, in order."""

BLOCKS: Registry[Callable[..., Any]] = Registry(
    "block",
    contract=(
        "stride",
        "previous_dilation",
        "dilation",
        "begins_stage",
        "shortcut",
        "norm",
        "activation",
        "attention",
        "drop_path",
        "antialias",
    ),
)
_HINTS = {
    "A": "option A of He et al. 2015 is `pad`",
    "B": "option B of He et al. 2015 is `projection`",
    "C": "option C of He et al. 2015 is `projection_all`; KellerJordan's C is `pad` with "
    "`subsample: average`",
    "D": "the shortcut of ResNet-D is `average_projection`",
    "identity": "where nothing changes every shortcut is one; `pad` needs no parameters anywhere",
}
SHORTCUTS: Registry[Callable[..., nn.Module | None]] = Registry(
    "shortcut", contract=("norm", "replaced_stride", "dilation"), hints=_HINTS
)
_ANY_STEM = "kernel, stride and pooling are options of the stem `conv`"
STEMS: Registry[Callable[..., Stem]] = Registry(
    "stem",
    contract=("norm", "activation", "antialias"),
    hints=dict.fromkeys(("conv5x5", "conv7x7", "conv3x3_maxpool", "patchify"), _ANY_STEM),
)
HEADS: Registry[Callable[..., Head]] = Registry("head", contract=("norm", "activation"))
NORMS: Registry[Callable[..., nn.Module]] = Registry("norm")
ACTIVATIONS: Registry[Callable[..., nn.Module]] = Registry("activation")
ATTENTIONS: Registry[Callable[..., nn.Module]] = Registry("attention")
ANTIALIAS_FILTERS: Registry[Callable[..., nn.Module | None]] = Registry("antialias filter")
