"""Stateless random numbers: functions of seed, epoch, step, sample and operation.

There is no state to save or to restore, and a sample's numbers do not depend on its batch. All
numbers are made by the finalizer of splitmix64 (Steele et al. 2014, figure 16). Seeds are mixed,
never added: seed 1 in epoch 0 must not be seed 0 in epoch 1.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_builder.data.transfer import to_device

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_FIRST, _SECOND = 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
_MANTISSA_BITS = 53

CPU = torch.device("cpu")

_Words = NDArray[np.uint64]
"""Whole numbers of 64 bits; torch has no shift without the sign."""


def hash_seed(*parts: int | str) -> int:
    """Mix whole numbers and names, in their order, to 64 bits."""
    state = 0
    for part in parts:
        state = _fold_in(state, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return state


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of an epoch's images.

    Args:
        seed: Seed of the recipe.
        epoch: Epoch, counted from 0.
        count: Number of images, N.

    Returns:
        ``(N,)`` int64: each of 0 to N - 1 once.
    """
    return torch.from_numpy(_philox(seed, epoch, "permutation").permutation(count))


def balanced_draws(seed: int, epoch: int, labels: Tensor) -> Tensor:
    """Draw the images of an epoch in which each class is equally likely at each position.

    The images of a class come in shuffled decks: all of them once, before any comes again.

    Args:
        seed: Seed of the recipe.
        epoch: Epoch, counted from 0.
        labels: ``(N,)`` int64.

    Returns:
        ``(N,)`` int64: ``i + r * N`` is image ``i``, drawn for the ``r``-th time after the first.
    """
    numbers, count = labels.numpy(), len(labels)
    draws = _philox(seed, epoch, "balanced")
    _, sizes = np.unique(numbers, return_counts=True)
    images = np.split(np.argsort(numbers, kind="stable"), sizes.cumsum()[:-1])
    chosen = draws.integers(len(images), size=count)  # class of each position
    wanted = np.bincount(chosen, minlength=len(images))
    positions = np.split(np.argsort(chosen, kind="stable"), wanted.cumsum()[:-1])
    order = np.empty(count, dtype=np.int64)
    for deck, places in zip(images, positions, strict=True):
        repeats = range(-(-len(places) // len(deck)))
        drawn = [draws.permutation(deck) + repeat * count for repeat in repeats]
        order[places] = np.concatenate([deck[:0], *drawn])[: len(places)]
    return torch.from_numpy(order)


@dataclass(frozen=True)
class StatelessGenerator:
    """Random numbers of one operation on one batch.

    They are drawn on the CPU, so that they are the same for every device.

    Attributes:
        seed: Seed of the recipe.
        epoch: Epoch, counted from 0.
        step: Step of the whole training, counted from 0.
        samples: ``(B,)`` int64 numbers of the images, on the CPU: index in the split, plus N for
            each time that a balanced sampler drew it before in the epoch.
        operation: Name of the operation, and its place in the list of augmentations.
        device: Device on which the numbers are wanted.
    """

    seed: int
    epoch: int
    step: int
    samples: Tensor
    operation: str
    device: torch.device = CPU

    def per_sample(self, count: int) -> Tensor:
        """Return ``(B, count)`` float64 in [0, 1), each row decided by (seed, epoch, sample)."""
        return self._rows(count, hash_seed(self.seed, self.epoch, self.operation, "sample"))

    def once_per_sample(self, count: int) -> Tensor:
        """Return ``(B, count)`` float64 in [0, 1), the same for a sample in every epoch."""
        return self._rows(count, hash_seed(self.seed, self.operation, "once"))

    def per_batch(self, count: int) -> Tensor:
        """Return ``(count,)`` float64 in [0, 1), decided by (seed, step), on the CPU."""
        key = hash_seed(self.seed, self.step, self.operation, "batch")
        numbers = [hash_seed(key, column) for column in range(count)]
        return _fractions(np.array(numbers, dtype=np.uint64))

    def beta(self, alpha: float) -> float:
        """Return one number of Beta(alpha, alpha), decided by (seed, step)."""
        return float(_philox(self.seed, self.step, self.operation, "beta").beta(alpha, alpha))

    def map_seeded(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Apply a function that draws from torch's global generator to each image.

        The generator is seeded by (seed, epoch, sample) before each image, and left as it was.
        Transforms of torchvision take no generator of their own.

        Args:
            function: Function of ``(C, H, W)``.
            images: ``(B, C, H, W)``.

        Returns:
            The results, stacked.
        """
        before = torch.default_generator.get_state()
        results = []
        try:
            for image, seed in zip(images, self._sample_seeds, strict=True):
                # torch.manual_seed would seed CUDA too, where nothing is drawn.
                torch.default_generator.manual_seed(seed)
                results.append(function(image))
        finally:
            torch.default_generator.set_state(before)
        return torch.stack(results)

    @cached_property
    def _sample_seeds(self) -> list[int]:
        """Return 32 bits for each sample: all that torch's CPU generator looks at."""
        key = hash_seed(self.seed, self.epoch, self.operation, "generator")
        seeds: list[int] = (self._keyed(key) >> np.uint64(32)).tolist()
        return seeds

    def _rows(self, count: int, key: int) -> Tensor:
        columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        numbers = _fractions(_scramble_each(self._keyed(key)[:, None] + columns))
        # MPS has no float64.
        return to_device(numbers.float() if self.device.type == "mps" else numbers, self.device)

    def _keyed(self, key: int) -> _Words:
        """Return 64 bits for each sample."""
        return _scramble_each(self.samples.numpy().astype(np.uint64) ^ np.uint64(key))


def _philox(*parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=hash_seed(*parts)))


def _fold_in(state: int, number: int) -> int:
    """Mix one whole number into a state of 64 bits."""
    state = (state ^ number & _MASK) + _GOLDEN & _MASK
    state = (state ^ state >> 30) * _FIRST & _MASK
    state = (state ^ state >> 27) * _SECOND & _MASK
    return state ^ state >> 31


def _scramble_each(numbers: _Words) -> _Words:
    """Scramble numbers as :func:`_fold_in` does; products wrap around."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(_FIRST)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(_SECOND)
    return numbers ^ numbers >> np.uint64(31)


def _fractions(numbers: _Words) -> Tensor:
    mantissas = numbers >> np.uint64(64 - _MANTISSA_BITS)
    return torch.from_numpy(mantissas.astype(np.float64) * 2.0**-_MANTISSA_BITS)
