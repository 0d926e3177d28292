"""Shortcuts: options A, B and C of He et al. 2015, and others."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_builder.blocks.shortcuts import pad, projection
from tests.networks import random_images


def test_pad_puts_an_odd_zero_at_the_end() -> None:
    images = random_images(1, 2, 3, 3)
    output = pad(2, 5, 1)(images)
    assert torch.equal(output, F.pad(images, (0, 0, 0, 0, 1, 2)))


def test_pad_at_the_end_is_what_torch7_did() -> None:
    images = random_images(2, 4, 6, 6)
    output = pad(4, 8, 2, position="end")(images)
    assert torch.equal(output, F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)))


def test_pad_by_average_ignores_what_is_outside_an_odd_image() -> None:
    images = random_images(2, 4, 6, 6)
    output = pad(4, 8, 2, position="end", subsample="average")(images)
    assert torch.equal(output[:, :4], F.avg_pool2d(images, 2))
    output = pad(1, 2, 2, position="end", subsample="average")(torch.ones(1, 1, 5, 5))
    assert torch.equal(output[:, :1], torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize(("out_channels", "stride"), [(8, 1), (8, 2), (12, 3), (5, 1), (7, 2)])
def test_pad_is_for_any_width_and_stride(out_channels: int, stride: int) -> None:
    """akamaster's was for a doubled width and a stride of 2."""
    size = math.ceil(9 / stride)
    assert pad(4, out_channels, stride)(torch.ones(1, 4, 9, 9)).shape[1:] == (
        out_channels,
        size,
        size,
    )


def test_projection_projects_where_only_the_stride_changes() -> None:
    shortcut = projection(8, 8, 2, norm=nn.BatchNorm2d)
    assert shortcut(torch.ones(2, 8, 5, 5)).shape == (2, 8, 3, 3)


@pytest.mark.parametrize("subsample", ["stride", "average"])
def test_gradient_of_pad_lies_in_memory_as_the_images_do(subsample: Any) -> None:
    """Otherwise everything that meets it, back to the first layer, takes a slow path."""
    images = random_images(2, 4, 7, 5).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    output = pad(4, 8, 2, subsample=subsample)(images)
    (gradient,) = torch.autograd.grad(output.sum(), images)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
