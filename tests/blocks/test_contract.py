"""Every registered block keeps the contract, with its options and with every shortcut."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks import BLOCKS
from resnet_builder.blocks.antialias import blur
from resnet_builder.blocks.attention import efficient_channel_attention, squeeze_excitation
from resnet_builder.blocks.interfaces import ShortcutFactory
from resnet_builder.blocks.layers import gelu, silu
from resnet_builder.testing import check_block


def four_groups(width: int) -> nn.Module:
    return nn.GroupNorm(4, width)


def squeeze(width: int) -> nn.Module:
    return squeeze_excitation(width, reduction=4)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("basic", {}),
    ("basic", {"dropout": 0.3, "drop_path": 0.2}),
    ("basic", {"dilation": 2}),
    ("basic", {"norm": four_groups}),
    ("basic", {"attention": squeeze, "activation": gelu, "antialias": blur}),
    ("bottleneck", {}),
    ("bottleneck", {"stride_in": "conv1x1"}),
    ("bottleneck", {"groups": 4, "width_per_group": 16, "dropout": 0.3}),
    ("bottleneck", {"dilation": 2, "drop_path": 0.2}),
    ("bottleneck", {"attention": efficient_channel_attention, "antialias": blur}),
    ("bottleneck", {"stride_in": "conv1x1", "activation": silu, "antialias": blur}),
    ("preact_basic", {}),
    ("preact_basic", {"dropout": 0.3, "drop_path": 0.2, "shared": "never"}),
    ("preact_basic", {"first_activation": False, "last_norm": True, "attention": squeeze}),
    ("preact_basic", {"begins_stage": True, "shared": "first", "norm": four_groups}),
    ("preact_bottleneck", {}),
    ("preact_bottleneck", {"stride_in": "conv1x1", "shared": "never", "dilation": 2}),
    ("preact_bottleneck", {"groups": 4, "width_per_group": 16, "last_norm": True}),
    ("preact_bottleneck", {"begins_stage": True, "shared": "first", "dropout": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_registered_block_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    check_block(BLOCKS.get(name), **options)


def test_every_registered_block_is_among_the_variants() -> None:
    assert {name for name, _ in VARIANTS} == set(BLOCKS.names())


class Forgetful(nn.Module):
    """A block that a careless author could write; each flaw is a class below."""

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, shortcut: ShortcutFactory
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def zero_residual(self) -> None:
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn(self.conv(x))
        return residual if self.downsample is None else residual + self.downsample(x)


class ForgetsStride(Forgetful):
    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.conv.stride = (1, 1)


class ForgetsItsWidth(Forgetful):
    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.out_channels = 2 * channels


class ForgetsAParameter(Forgetful):
    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.scale = nn.Parameter(torch.ones(1))


class ForgetsToZero(Forgetful):
    def zero_residual(self) -> None:
        pass


class ForgetsToPickle(Forgetful):
    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.activation = lambda x: x


def test_check_block_accepts_a_sound_block() -> None:
    check_block(Forgetful)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (ForgetsStride, "images give|size of tensor"),
        (ForgetsItsWidth, "images give"),
        (ForgetsAParameter, "no gradient reaches"),
        (ForgetsToZero, "leaves a residual"),
        (ForgetsToPickle, "pickle"),
    ],
)
def test_check_block_finds(block: type[Forgetful], message: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, AttributeError), match=message):
        check_block(block)
