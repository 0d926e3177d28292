"""From what a training script saved to the state dict inside."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


@dataclass(frozen=True, slots=True, eq=False)
class Unwrapped:
    """A state dict and what lay around it."""

    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...]
    averaged: bool
    ignored: tuple[str, ...]


def unwrap(content: Any, *, ema: bool = False) -> Unwrapped:
    """Find the state dict in what a training script saved."""
    wrappers: list[str] = []
    ignored: list[str] = []
    while True:
        name = next((n for n in _CONTAINERS if isinstance(content.get(n), Mapping)), None)
        if name is None:
            break
        ignored += [str(other) for other in content if other != name]
        content = content[name]
        wrappers.append(name)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    ignored += [str(name) for name in content if name not in tensors]
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        wrappers.append(prefix)
    return Unwrapped(tensors, tuple(wrappers), ema, tuple(ignored))
