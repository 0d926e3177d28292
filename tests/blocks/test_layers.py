"""Layers: averages over pixels, and the memory format of their gradients."""

from collections import OrderedDict

import torch
from torch import nn

from resnet_builder.blocks.heads import linear_head
from resnet_builder.blocks.layers import average
from tests.networks import random_images


def test_average_is_the_mean_of_all_pixels() -> None:
    images = random_images(2, 3, 5, 7)
    torch.testing.assert_close(average(images), images.mean((2, 3), keepdim=True))


def test_average_spreads_its_gradient_without_writing_it_out() -> None:
    images = random_images(2, 3, 5, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(average(images).sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(images, 1 / 35))
    assert gradient.untyped_storage().nbytes() == 2 * 3 * 4


def test_head_averages_and_classifies_images_of_any_size() -> None:
    head = nn.Sequential(OrderedDict(linear_head(3, 4)))
    for size in ((5, 7), (1, 1)):
        images = random_images(2, 3, *size)
        expected = head[-1](images.mean((2, 3)))
        torch.testing.assert_close(head(images), expected)


def test_the_gradient_of_a_head_is_not_written_out_either() -> None:
    """In another memory format than the features', it would slow down the first steps back."""
    features = random_images(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    head = nn.Sequential(OrderedDict(linear_head(3, 4)))
    (gradient,) = torch.autograd.grad(head(features).sum(), features)
    assert gradient.untyped_storage().nbytes() == 2 * 3 * 4
