"""Initialisation of a network's weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def init_weights(
    network: nn.Module, type: str, *, mode: str = "fan_out", std: float = 0.01
) -> None:
    """Draw a network's first weights from torch's global generator.

    Weights of convolutions are drawn by a function of :mod:`torch.nn.init`, and their biases become
    zero. Modules other than convolutions reset themselves, as PyTorch's do; tensors of modules that
    cannot stay as the constructors made them.

    Args:
        network: Network, whose modules are visited in order.
        type: Type of ``model.init`` in a spec: ``kaiming_normal``, ``kaiming_uniform``,
            ``xavier_normal``, ``xavier_uniform``, ``normal``, or ``default``, which leaves
            convolutions to PyTorch too.
        mode: For kaiming, the number that scales: ``fan_in`` or ``fan_out``.
        std: For ``normal``, the standard deviation.
    """
    draw: Callable[..., object] | None = getattr(nn.init, f"{type}_", None)  # no `default_`
    options: dict[str, Any] = {"std": std} if type == "normal" else {}
    if type.startswith("kaiming"):
        options = {"mode": mode, "nonlinearity": "relu"}
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and draw is not None:
                draw(module.weight, **options)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            # The class is asked: a registered attribute of that name would be a weight.
            elif (reset := getattr(module.__class__, "reset_parameters", None)) is not None:
                reset(module)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Context in which torch's CPU generator has a seed; its state is restored afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        # The generator looks at the low 32 bits of a seed only: fold the high ones in.
        torch.default_generator.manual_seed((seed ^ (seed >> 32) * 0x9E3779B1) & 0xFFFFFFFF)
        yield
