"""Initialisation of a network's weights."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Initializer = Callable[[Tensor], object]
"""Function that fills a convolution's weight in place."""


def weight_initializer(
    type: str, *, mode: str = "fan_out", std: float = 0.01
) -> Initializer | None:
    """Function of :mod:`torch.nn.init` for the weights of convolutions.

    Args:
        type: Type of ``model.init`` in a spec: ``kaiming_normal``, ``kaiming_uniform``,
            ``xavier_normal``, ``xavier_uniform``, ``normal``, or ``default``.
        mode: For kaiming, the number that scales: ``fan_in`` or ``fan_out``.
        std: For ``normal``, the standard deviation.

    Returns:
        The function; ``None`` for ``default``, which leaves convolutions to PyTorch.
    """
    if type == "default":
        return None
    if type == "normal":
        return partial(nn.init.normal_, std=std)
    function: Callable[..., object] = getattr(nn.init, f"{type}_")
    if type.startswith("kaiming"):
        return partial(function, mode=mode, nonlinearity="relu")
    return function


def init_weights(network: nn.Module, initializer: Initializer | None) -> None:
    """Draw a network's first weights from torch's global generator.

    Biases of convolutions become zero. Modules other than convolutions reset themselves, as
    PyTorch's do; tensors of modules that cannot stay as the constructors made them.

    Args:
        network: Network, whose modules are visited in order.
        initializer: Function that fills the weights of convolutions; ``None`` leaves convolutions
            to PyTorch too.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and initializer is not None:
                initializer(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            # The class is asked: a registered attribute of that name would be a weight.
            elif (reset := getattr(type(module), "reset_parameters", None)) is not None:
                reset(module)
