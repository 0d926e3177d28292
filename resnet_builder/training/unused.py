"""Parameters that a network has and does not use."""

import copy

import torch
from torch import nn

_IMAGES = 2  # a batch norm refuses one value a channel


def unused_parameters(network: nn.Module, image: tuple[int, int, int]) -> list[str]:
    """Return the names of the parameters to train that no gradient reaches, without computing.

    Args:
        network: In training mode; it is left as it was.
        image: ``(C, H, W)``, the shape of what it is fed.
    """
    twin = copy.deepcopy(network).to("meta")
    twin(torch.empty(_IMAGES, *image, device="meta")).sum().backward()
    return [n for n, p in twin.named_parameters() if p.requires_grad and p.grad is None]
