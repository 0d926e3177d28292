"""``check_block`` accepts a sound block, and finds the flaws of careless ones."""

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks.interfaces import ShortcutFactory
from resnet_builder.testing import check_block


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
        self.forget()

    def forget(self) -> None:
        """Make a mistake."""

    def zero_residual(self) -> None:
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn(self.conv(x))
        return residual if self.downsample is None else residual + self.downsample(x)


class ForgetsStride(Forgetful):
    def forget(self) -> None:
        self.conv.stride = (1, 1)


class ForgetsItsWidth(Forgetful):
    def forget(self) -> None:
        self.out_channels *= 2


class ForgetsToTellItsWidth(Forgetful):
    def forget(self) -> None:
        del self.out_channels


class ForgetsAParameter(Forgetful):
    def forget(self) -> None:
        self.scale = nn.Parameter(torch.ones(1))


class ForgetsToPickle(Forgetful):
    def forget(self) -> None:
        self.activation = lambda x: x


class LooksAtValues(Forgetful):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() < 99 else x


class ForgetsToZero(Forgetful):
    def zero_residual(self) -> None:
        pass


def test_check_block_accepts_a_sound_block() -> None:
    check_block(Forgetful)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (ForgetsStride, "images give|size of tensor"),
        (ForgetsItsWidth, "images give"),
        (
            ForgetsToTellItsWidth,
            "has no attribute 'out_channels'; see docs/tutorials/add-a-block.md",
        ),
        (ForgetsAParameter, "no gradient reaches"),
        (LooksAtValues, "cannot compute on the meta device"),
        (ForgetsToZero, "leaves a residual"),
        (ForgetsToPickle, "pickle"),
    ],
)
def test_check_block_finds(block: type[Forgetful], message: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, AttributeError), match=message):
        check_block(block)
