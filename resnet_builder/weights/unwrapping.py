"""From what a training script saved to the state dict inside."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from resnet_builder.weights.refusal import Refused

_TRAINED = (
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
_AVERAGED = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema_state",
    "ema_net",
    "ema",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
_COUNTERS = {"n_averaged", "steps"}
"""How often torch's and mmengine's averages were updated."""

_MAX_DEPTH = 8
"""Of containers, and of prefixes; a file can say that it contains itself."""

_SHOWN = 12


@dataclass(frozen=True, slots=True, eq=False)
class Unwrapped:
    """A state dict as it lies in a file, and what lies around it.

    Attributes:
        tensors: By name, without any wrapper's prefix.
        wrappers: What was taken off, outermost first.
        averaged: Whether they are averaged weights.
        has_other: Whether the file has the others too: averaged, or as trained.
        ignored: The other entries, by name.
    """

    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...]
    averaged: bool
    has_other: bool
    ignored: tuple[str, ...]


def unwrap(content: object, *, averaged: bool = False) -> Unwrapped:
    """Find the state dict in what a training script saved.

    Args:
        content: What the file holds.
        averaged: Take averaged weights where there are any.

    Raises:
        Refused: There is no state dict.
    """
    if not isinstance(content, Mapping):
        raise Refused(
            f"it holds one {type(content).__name__}, not weights by name; save model.state_dict()"
        )
    opened = _open(content, averaged)
    tensors = _named_tensors(opened.entries)
    if not tensors:
        raise Refused(f"it holds no weights; its entries are: {_shown(content)}")
    ignored = [*opened.ignored, *(str(name) for name in opened.entries if name not in tensors)]
    tensors, prefixes = _strip_prefixes(tensors)
    return Unwrapped(
        tensors,
        (*opened.names, *prefixes),
        opened.averaged,
        opened.has_other,
        tuple(ignored),
    )


@dataclass(slots=True, eq=False)
class _Opened:
    """The innermost container's entries, and how one comes to them."""

    entries: Mapping[Any, Any]
    names: list[str]
    ignored: list[str]
    averaged: bool = False
    has_other: bool = False


def _open(content: Mapping[Any, Any], averaged: bool) -> _Opened:
    """Open one container after the other."""
    opened = _Opened(content, [], [])
    for _ in range(_MAX_DEPTH):
        trained, average = _containers(opened.entries)
        name = (average if averaged else trained) or trained or average
        if name is None:
            break
        opened.averaged |= name == average
        opened.has_other |= trained is not None and average is not None
        opened.names.append(name)
        opened.ignored += [str(other) for other in opened.entries if other != name]
        opened.entries = opened.entries[name]
    return opened


def _containers(entries: Mapping[Any, Any]) -> tuple[str | None, str | None]:
    """Name the entries with the trained and with the averaged weights."""
    trained = _container(entries, _TRAINED)
    average = _container(entries, _AVERAGED)
    meta = entries.get("meta")
    if average is not None and isinstance(meta, Mapping) and "mmengine_version" in meta:
        # mmengine's EMAHook exchanges the two when it saves.
        return average, trained
    return trained, average


def _container(entries: Mapping[Any, Any], names: Iterable[str]) -> str | None:
    for name in names:
        value = entries.get(name)
        if isinstance(value, Mapping) and _holds_weights(value):
            return name
    return None


def _holds_weights(entries: Mapping[Any, Any]) -> bool:
    """Whether a tensor is here, or in a container inside."""
    waiting, seen = [entries], set()
    while waiting:
        entries = waiting.pop()
        if any(isinstance(value, Tensor) for value in entries.values()):
            return True
        seen.add(id(entries))
        inside = (entries.get(name) for name in (*_TRAINED, *_AVERAGED))
        waiting += [each for each in inside if isinstance(each, Mapping) and id(each) not in seen]
    return False


def _named_tensors(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    for name in tensors:
        if not isinstance(name, str):
            raise Refused(f"its tensors are no weights by name: one is called {name!r:.40}")
    weights = {name: value for name, value in tensors.items() if name not in _COUNTERS}
    is_average = weights and all(name.startswith("module.") for name in weights)
    return weights if is_average else tensors


def _strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    prefixes: list[str] = []
    while len(prefixes) < _MAX_DEPTH and (prefix := _common_prefix(tensors)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        prefixes.append(prefix)
    return tensors, prefixes


def _common_prefix(names: Collection[str]) -> str | None:
    for prefix in _PREFIXES:
        # Beside an mmpretrain network's backbone stands its head.
        parts = (prefix, "head.") if prefix == "backbone." else (prefix,)
        if all(name.startswith(parts) for name in names) and _can_be_stripped(prefix, names):
            return prefix
    return None


def _can_be_stripped(prefix: str, names: Collection[str]) -> bool:
    stripped = {name.removeprefix(prefix) for name in names}
    return any(name.startswith(prefix) for name in names) and len(stripped - {""}) == len(names)


def _shown(entries: Mapping[Any, Any]) -> str:
    """List the names of entries for a message."""
    if not entries:
        return "none"
    names = ", ".join(f"'{name!s:.40}'" for name in list(entries)[:_SHOWN])
    more = len(entries) - _SHOWN
    return f"{names} and {more} more" if more > 0 else names
