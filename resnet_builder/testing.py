"""The contracts that built-in parts and outsiders' parts both have to keep, as checks to call."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resnet_builder.blocks import SHORTCUTS
from resnet_builder.blocks.interfaces import SHORTCUT_ATTRIBUTE
from resnet_builder.data.testing import check_augmentation, check_dataset
from resnet_builder.model import on_residual_path

__all__ = ["check_augmentation", "check_block", "check_dataset"]


def check_block(block: Callable[..., Any], **options: object) -> None:
    """Check that a block keeps the contract of :class:`resnet_builder.blocks.Block`.

    Args:
        block: The block's class.
        options: Options to make it with.

    Raises:
        AssertionError: It does not; the message says in what.
    """
    for in_channels, stride in ((8, 1), (8, 2), (4, 1), (4, 2)):
        for name, shortcut in _shortcuts(block):
            made = partial(block, in_channels, 8, stride=stride, shortcut=shortcut, **options)
            what = f"{in_channels} to 8 channels, stride {stride}, shortcut {name}"
            _check_shapes(made(), in_channels, stride, what)
            _check_gradients(made(), in_channels, what)
            _check_copies(made(), in_channels, what)
            _check_layouts(made(), in_channels, what)
            _check_shortcut(made(), name, what)
            if name != "none":
                _check_zero_residual(made(), in_channels, what)


def _shortcuts(
    block: Callable[..., Any],
) -> Iterator[tuple[str, Callable[..., nn.Module | None]]]:
    norm = nn.Identity if getattr(block, "preactivated", False) else nn.BatchNorm2d
    for name in SHORTCUTS.names():
        given = {"norm": norm} if "norm" in SHORTCUTS.accepts(name) else {}
        yield name, partial(SHORTCUTS.get(name), **given)


def _images(channels: int, height: int = 7, width: int = 5) -> Tensor:
    """Draw two images whose sides are odd and differ, without touching global randomness."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator)


def _check_shapes(block: Any, in_channels: int, stride: int, what: str) -> None:
    for height, width in ((7, 5), (8, 8), (1, 2)):
        output = block(_images(in_channels, height, width))
        wanted = (2, block.out_channels, math.ceil(height / stride), math.ceil(width / stride))
        shape = tuple(output.shape)
        assert shape == wanted, f"{what}: {height}x{width} images give {shape}, not {wanted}"


def _check_gradients(block: Any, in_channels: int, what: str) -> None:
    images = _images(in_channels).requires_grad_()
    block.eval()(images).square().sum().backward()
    unused = [name for name, parameter in block.named_parameters() if parameter.grad is None]
    assert not unused, f"{what}: no gradient reaches {unused}"
    assert images.grad is not None, f"{what}: no gradient reaches the images"


def _check_copies(block: Any, in_channels: int, what: str) -> None:
    images = _images(in_channels)
    wanted = block.eval()(images)
    for how, twin in (
        ("a deep copy", copy.deepcopy(block)),
        ("an unpickled copy", pickle.loads(pickle.dumps(block))),
    ):
        assert torch.equal(twin(images), wanted), f"{what}: {how} gives another output"


def _check_layouts(block: Any, in_channels: int, what: str) -> None:
    images = _images(in_channels)
    wanted = block.eval()(images)
    last = block.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert torch.allclose(last, wanted, atol=1e-5), f"{what}: channels-last differs"
    with torch.autocast("cpu", torch.bfloat16):
        low = block(images)
    assert low.shape == wanted.shape, f"{what}: bf16 autocast changes the shape"


def _check_shortcut(block: Any, name: str, what: str) -> None:
    skip = getattr(block, SHORTCUT_ATTRIBUTE, None)
    if name == "none":
        assert skip is None, f"{what}: `{SHORTCUT_ATTRIBUTE}` must be None"
    else:
        assert isinstance(skip, nn.Module), f"{what}: `{SHORTCUT_ATTRIBUTE}` must be the skip path"


def _check_zero_residual(block: Any, in_channels: int, what: str) -> None:
    """Check that after ``zero_residual()`` no convolution of the residual path matters."""
    images = _images(in_channels)
    block.eval().zero_residual()
    before = block(images)
    with torch.no_grad():
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d) and on_residual_path(name):
                module.weight.mul_(-3.0)
    assert torch.equal(block(images), before), f"{what}: zero_residual() leaves a residual"
