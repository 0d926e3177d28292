"""What a pickle of weights may name, call and take, so that reading it is safe.

It lets pass what ``torch.save`` writes for tensors and the few kinds of objects that training
scripts save beside them, and names anything else. ``torch.load(weights_only=True)``, which
follows, is the second wall against code; but it makes tensors of any size that a file asks for.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from resnet_builder.weights.pickle_walk import OBJECT, Name
from resnet_builder.weights.refusal import Refused, damaged

_SAVE_WEIGHTS = "where that code is trusted, save model.state_dict() alone"
_SHOWN = 3
_MAX_GROWTH = 4
"""How many times the file's size its tensors may take: some share memory."""

_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETER = "torch._utils._rebuild_parameter"
_OTHER_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
    "torch._utils._rebuild_tensor_v3": "a tensor of a dtype that weights do not have",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._tensor._rebuild_from_type_v2": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of an unusual device",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of an unusual device",
}
_ITEM_SIZES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    # Of tensors that are refused, but by their own names.
    "torch.QUInt8Storage": 1,
    "torch.QInt8Storage": 1,
    "torch.QInt32Storage": 4,
    "torch.storage.UntypedStorage": 1,
}
_FUNCTIONS = {
    "collections.OrderedDict",  # every state dict
    "collections.Counter",  # the milestones of torch's MultiStepLR
    "torch.Size",
    "torch.device",  # among the options
    "torch.serialization._get_layout",
    "_codecs.encode",  # how protocol 2 writes bytes
    "builtins.set",
}
_CONSTANTS = {
    str(value) for value in vars(torch).values() if isinstance(value, torch.dtype | torch.qscheme)
}
_KNOWN = {_PARAMETER, *_TENSORS, *_OTHER_TENSORS, *_ITEM_SIZES, *_FUNCTIONS, *_CONSTANTS}

_TENSOR = object()


@dataclass(frozen=True, slots=True)
class _Memory:
    """What tensors keep their values in."""

    items: int
    item_size: int


class PickleRules:
    """The rules for the pickles of one file; what they ask for is added up.

    Args:
        file_size: In bytes.
        harmless: Full names of the classes that may stand in it beside torch's.
    """

    def __init__(self, file_size: int, harmless: Collection[str]) -> None:
        self._unknown: dict[str, None] = {}
        self._is_network = False
        self._file_size = file_size
        self._harmless = harmless
        self._memories: dict[str, _Memory] = {}
        self._memory_bytes = 0
        self._tensor_bytes = 0

    def name(self, path: str) -> None:
        """Note a name that is not allowed."""
        if path not in _KNOWN and path not in self._harmless:
            self._unknown[path] = None
            self._is_network |= path.startswith("torch.nn.modules.")

    def call(self, path: str, arguments: tuple[Any, ...], entry: str | None) -> object:
        """Check a call: of those allowed, only a tensor's can take memory."""
        if path in _OTHER_TENSORS:
            which = "one of its tensors" if entry is None else f"'{entry}'"
            raise Refused(f"{which} is {_OTHER_TENSORS[path]}; save it as a plain one, in float32")
        if path in _TENSORS:
            self._count_tensor(arguments)
            return _TENSOR
        if path == _PARAMETER:
            return arguments[0]
        if path not in _FUNCTIONS and path not in self._harmless:
            self._unknown[path] = None
        return OBJECT

    def memory(self, identity: Any) -> object:
        """Check that what all tensors keep their values in has place in the file."""
        match identity:
            case ("storage", Name(path), str(key), _, int(items), *view) if path in _ITEM_SIZES:
                memory = self._memory(key, _Memory(items, _ITEM_SIZES[path]))
            case ("module", Name() as network, *_):  # torch before 1.6 kept its source beside it
                self._is_network = True
                return network
            case _:
                raise damaged("its tensors' memory is not described")
        match view:
            case [] | [None]:
                return memory
            case [(str(key), int(start), int(items))] if (
                0 <= start <= start + items <= memory.items
            ):
                return self._memories.setdefault(key, _Memory(items, memory.item_size))
        raise damaged("its tensors' memory is not described")

    def refuse_unknown(self) -> None:
        """Name what is not allowed: all of it, which says more than the first of it.

        Raises:
            Refused: There is any.
        """
        if not self._unknown:
            return
        names = ", ".join(list(self._unknown)[:_SHOWN])
        if len(self._unknown) > _SHOWN:
            names += f" and {len(self._unknown) - _SHOWN} more"
        if self._is_network:
            raise Refused(f"it holds a whole nn.Module, code and all ({names}); {_SAVE_WEIGHTS}")
        raise Refused(f"it asks for code that is not run from files ({names}); {_SAVE_WEIGHTS}")

    def _memory(self, key: str, asked: _Memory) -> _Memory:
        if key not in self._memories:
            self._memory_bytes += asked.items * asked.item_size
            self._memories[key] = asked
        if asked.items < 0 or self._memory_bytes > self._file_size:
            raise damaged("its tensors are larger than the file")
        return self._memories[key]

    def _count_tensor(self, arguments: tuple[Any, ...]) -> None:
        """Check that a tensor lies in its memory: torch would let the memory grow."""
        match arguments:
            case (_Memory() as memory, int(start), tuple(shape), tuple(strides), *_):
                pass
            case _:
                raise damaged("a tensor is not described")
        numbers = (start, *shape, *strides)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise damaged("a tensor's sizes are no whole numbers from 0")
        steps = zip(shape, strides, strict=True)
        end = start + 1 + sum((size - 1) * stride for size, stride in steps)
        if math.prod(shape) and end > memory.items:
            raise damaged("a tensor is larger than its memory")
        self._tensor_bytes += math.prod(shape) * memory.item_size
        if self._tensor_bytes > _MAX_GROWTH * self._file_size:
            raise Refused("it is made to deceive: its tensors are far larger than the file")
