"""Head: the average over all pixels, and the memory format of its gradient."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from resnet_builder.blocks.heads import linear_head
from tests.networks import random_images


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_head_classifies_the_average_and_does_not_write_its_gradient_out(
    size: tuple[int, int],
) -> None:
    """In another memory format than the features', it would slow down the first steps back."""
    features = random_images(2, 3, *size).contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    head: Any = nn.Sequential(OrderedDict(linear_head(3, 4)))
    logits = head(features)
    torch.testing.assert_close(logits, head[-1](features.mean((2, 3))))
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    wanted = head[-1].weight.sum(0)[:, None, None] / (size[0] * size[1])
    torch.testing.assert_close(gradient, wanted.expand_as(features))
    assert gradient.untyped_storage().nbytes() == 2 * 3 * 4
