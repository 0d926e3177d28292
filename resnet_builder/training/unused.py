"""Parameters that a network has and does not use."""

import copy

import torch
from torch import nn
from torch.autograd.graph import Node


def unused_parameters(network: nn.Module, image: tuple[int, int, int]) -> list[str]:
    """Return the names of the parameters to train that no gradient reaches, without computing.

    Args:
        network: On any device; it is left as it was.
        image: ``(C, H, W)``, the shape of what it is fed.
    """
    twin = copy.deepcopy(network).to("meta").eval()
    output = twin(torch.empty(1, *image, device="meta"))
    reached = _leaves(output.grad_fn)
    return [n for n, p in twin.named_parameters() if p.requires_grad and p not in reached]


def _leaves(last: Node | None) -> set[torch.Tensor]:
    """Return what the gradients of a computation end in."""
    leaves: set[torch.Tensor] = set()
    seen: set[Node] = set()
    left = [] if last is None else [last]
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            leaves |= {node.variable} if hasattr(node, "variable") else set()
            left += [before for before, _ in node.next_functions if before is not None]
    return leaves
