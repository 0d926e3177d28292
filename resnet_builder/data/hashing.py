"""Random numbers that are functions of what they are for: nothing to save, nothing to restore.

Every number comes from the seed, the epoch or step, the sample and the operation, mixed by the
finalizer of splitmix64 (Steele et al. 2014, figure 16). Streams are never made by adding: seed 1
in epoch 0 must not be seed 0 in epoch 1.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from resnet_builder.device import to_device

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_FIRST, _SECOND = 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
_MANTISSA_BITS = 53

CPU = torch.device("cpu")


def mix(*numbers: int) -> int:
    """Mix whole numbers, in their order, to 64 bits."""
    state = 0
    for number in numbers:
        state = _scramble((state ^ number & _MASK) + _GOLDEN & _MASK)
    return state


def tag(name: str) -> int:
    """Turn the name of an operation into a number to mix in."""
    return zlib.crc32(name.encode())


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of an epoch's images.

    Args:
        seed: The recipe's.
        epoch: Counted from 0.
        count: Number of images, N.

    Returns:
        ``(N,)`` int64: each of 0 to N - 1 once.
    """
    generator = np.random.Generator(np.random.Philox(key=mix(seed, epoch, tag("permutation"))))
    return torch.from_numpy(generator.permutation(count))


@dataclass(frozen=True)
class HashedDraws:
    """The random numbers of one operation on one batch; see :class:`data.contract.StatelessGenerator`.

    Attributes:
        seed: The recipe's.
        epoch: Counted from 0.
        step: Of the whole training, counted from 0.
        samples: ``(B,)`` int64 indices of the images in their split.
        operation: What the numbers are for, and its place in the list of augmentations.
        device: Where the numbers are wanted; they are drawn on the CPU, the same for every one.
    """

    seed: int
    epoch: int
    step: int
    samples: Tensor
    operation: str
    device: torch.device = CPU

    def once_per_sample(self, count: int) -> Tensor:
        """Return ``(B, count)`` float64 in [0, 1), the same for a sample in every epoch."""
        return self._rows(count, mix(self.seed, self._operation, tag("once")))

    def per_sample(self, count: int) -> Tensor:
        """Return ``(B, count)`` float64 in [0, 1), each row decided by its sample."""
        return self._rows(count, mix(self.seed, self.epoch, self._operation, tag("sample")))

    def _rows(self, count: int, number: int) -> Tensor:
        key = _signed(number)
        columns = torch.arange(count, dtype=torch.int64)
        keyed = _scramble_each(self.samples.to(torch.int64) ^ key)
        numbers = _scramble_each(keyed[:, None] + (columns + 1) * _signed(_GOLDEN))
        return self._moved(_fractions(numbers))

    def per_batch(self, count: int) -> Tensor:
        """Return ``(count,)`` float64 in [0, 1), decided by the step."""
        key = mix(self.seed, self.step, self._operation, tag("batch"))
        numbers = [_signed(mix(key, column)) for column in range(count)]
        return _fractions(torch.tensor(numbers, dtype=torch.int64))

    def _moved(self, numbers: Tensor) -> Tensor:
        """Bring numbers to the device; MPS has no float64."""
        return to_device(numbers.float() if self.device.type == "mps" else numbers, self.device)

    @cached_property
    def _operation(self) -> int:
        return tag(self.operation)


def _scramble(number: int) -> int:
    number = (number ^ number >> 30) * _FIRST & _MASK
    number = (number ^ number >> 27) * _SECOND & _MASK
    return number ^ number >> 31


def _scramble_each(numbers: Tensor) -> Tensor:
    """Scramble int64 numbers, whose products wrap as unsigned ones would."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _signed(_FIRST)
    numbers = (numbers ^ _shifted(numbers, 27)) * _signed(_SECOND)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch has no unsigned shift."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _fractions(numbers: Tensor) -> Tensor:
    return _shifted(numbers, 64 - _MANTISSA_BITS).to(torch.float64) * 2.0**-_MANTISSA_BITS


def _signed(number: int) -> int:
    """Read 64 bits as a signed number, which is what torch's int64 holds."""
    return number - (1 << 64) if number >> 63 else number
