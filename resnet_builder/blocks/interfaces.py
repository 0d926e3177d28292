"""What the parts of a network must be, and the registries of each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from resnet_builder.registry import Registry

NormFactory = Callable[[int], nn.Module]
"""Makes a normalisation layer, with a ``weight`` that scales, from a width.

Blocks change what it gives in place, so its own gradient must not need that.
"""

ActivationFactory = Callable[[], nn.Module]
"""Makes an activation."""

ShortcutFactory = Callable[[int, int, int], nn.Module | None]
"""Makes the skip path from ``(in_channels, out_channels, stride)``.

``nn.Identity()`` where nothing changes; ``None`` where the block is to add nothing at all.
"""

AttentionFactory = Callable[[int], nn.Module]
"""Makes an attention layer from a width; ``nn.Identity()`` is none.

Blocks add to what it gives in place, so its own gradient must not need that.
"""

FilterFactory = Callable[[int, int], nn.Module | None]
"""Makes what subsamples, from ``(channels, stride)``; ``None`` leaves that to a convolution."""

SHORTCUT_ATTRIBUTE = "downsample"
ATTENTION_ATTRIBUTE = "se"
"""Where every block keeps the two, after torchvision's and timm's keys.

What lies below them is not on the residual path: depth and receptive field leave it out.
"""


class Block(Protocol):
    """A residual block, which is an ``nn.Module``.

    Its class is called with ``(in_channels, channels)`` and by keyword with ``stride`` and
    ``shortcut``; of the other parameters in :data:`BLOCKS`' contract it is given those that its
    signature names. Any further keyword-only parameters are its options in a spec.

    ``first_dilation`` is that of convolutions up to the one that strides, ``dilation`` that of
    those after it; they differ where dilation stands in for the block's stride, which is 1 then.
    ``begins_stage`` tells the first block of a stage.

    Attributes:
        out_channels: Width of the output; only the block knows its expansion.
        preactivated: Set on the class of a block whose output is a bare sum: the next block, or
            the head, begins by normalising it. The shortcuts it is given have no norm either.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    out_channels: int

    def zero_residual(self) -> None:
        """Make the residual path output zero, so that the block starts as its shortcut."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the block."""


@dataclass(frozen=True, slots=True)
class Stem:
    """The layers before the first stage.

    Attributes:
        layers: By the names they get in the network, in order.
        out_channels: Width of what they give.
        stride: By how much they shrink an image.
    """

    layers: Mapping[str, nn.Module]
    out_channels: int
    stride: int


Head = Mapping[str, nn.Module]
"""The layers after the last stage, by the names they get in the network, in order."""

BLOCKS: Registry[Callable[..., Any]] = Registry(
    "block",
    contract=(
        "stride",
        "first_dilation",
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
    "shortcut", contract=("norm", "undone_stride", "dilation"), hints=_HINTS
)
STEMS: Registry[Callable[..., Stem]] = Registry(
    "stem", contract=("norm", "activation", "antialias")
)
HEADS: Registry[Callable[..., Head]] = Registry("head", contract=("norm", "activation"))
NORMS: Registry[Callable[..., nn.Module]] = Registry("norm")
ACTIVATIONS: Registry[Callable[..., nn.Module]] = Registry("activation")
ATTENTIONS: Registry[Callable[..., nn.Module]] = Registry("attention")
ANTIALIAS_FILTERS: Registry[Callable[..., nn.Module | None]] = Registry("downsample filter")
