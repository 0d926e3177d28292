"""Copies of blocks on the meta device, in a fraction of the time of their constructors."""

import io
import pickle
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Mould:
    """A block, to make others of that differ from it in nothing but their tensors.

    Attributes:
        pickled: The block without its tensors; no file is involved.
        tensors: They, on meta.
    """

    pickled: bytes
    tensors: tuple[Tensor, ...]

    def cast(self) -> nn.Module:
        """Make a block."""
        block: nn.Module = _Unpickler(self).load()
        return block


def mould_of(block: nn.Module) -> Mould | None:
    """Make a mould of a block, if it can be pickled: a plugin's may hold what cannot."""
    file = io.BytesIO()
    pickler = _Pickler(file, pickle.HIGHEST_PROTOCOL)
    try:
        pickler.dump(block)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return Mould(file.getvalue(), tuple(pickler.tensors))


class _Pickler(pickle.Pickler):
    """Leaves out tensors of which shape and type are all there is to know."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: object) -> int | None:
        """Return the number of a tensor to leave out; anything else is pickled."""
        if not isinstance(value, Tensor) or not _is_bare(value):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


def _is_bare(tensor: Tensor) -> bool:
    """Tell whether a tensor has no values yet, is of no further class, and bears no attributes."""
    return tensor.is_meta and type(tensor) in {Tensor, nn.Parameter} and not vars(tensor)


class _Unpickler(pickle.Unpickler):
    """Puts new tensors in their places; the same one where the same one was."""

    def __init__(self, mould: Mould) -> None:
        super().__init__(io.BytesIO(mould.pickled))
        self._tensors = mould.tensors
        self._made: dict[int, Tensor] = {}

    def persistent_load(self, number: int) -> Tensor:
        """Return the new tensor with this number."""
        if number not in self._made:
            tensor = self._tensors[number]
            made = tensor.detach()
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, tensor.requires_grad)
            self._made[number] = made
        return self._made[number]
