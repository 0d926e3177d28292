"""The floor below a training step: what its convolutions take alone."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_builder.bench.clock import seconds_of

Kind = Literal["forward", "weight_gradient", "input_gradient"]

ROTATED_BYTES = 64 * 1024 * 1024
"""Inputs are cut from at least this much memory in turn, so that caches lose what they held."""

_ALIGNMENT = 64  # numbers: where torch's own allocator would let a tensor begin

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of given shapes.

    Attributes:
        input: Shape, ``(N, C, H, W)``.
        weight: Shape, ``(K, C / groups, h, w)``.
        output: Shape, ``(N, K, H', W')``.
        biased: Whether it adds a bias.
        settings: Stride, padding, dilation, whether transposed, output padding and groups, as
            ``torch.ops.aten.convolution`` takes them.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    biased: bool
    settings: tuple[Any, ...]

    @property
    def largest(self) -> int:
        """Numbers in the largest tensor."""
        return max(map(math.prod, (self.input, self.weight, self.output)))

    def __str__(self) -> str:
        """Tell the shapes: ``"16 x 32 x 32 to 32, 3 x 3, stride 2"``."""
        image, kernel = (" x ".join(map(str, s)) for s in (self.input[1:], self.weight[2:]))
        stride, groups = self.settings[0][0], self.settings[-1]
        more = f", stride {stride}" if stride > 1 else ""
        more += f", groups {groups}" if groups > 1 else ""
        return f"{image} to {self.weight[0]}, {kernel}{more}"


@dataclass(frozen=True, slots=True)
class Work:
    """A computation that a training step makes some times over.

    Attributes:
        convolution: Of which it is a part.
        kind: Which part; the weight's gradient includes the bias's.
        count: How often a step makes it.
    """

    convolution: Convolution
    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class FloorTimes:
    """What all convolutions of a step take.

    Attributes:
        work: Every computation, and the seconds that it takes each time.
    """

    work: tuple[tuple[Work, float], ...]

    def seconds(self, *kinds: Kind) -> float:
        """Return the time of a step's computations of some kinds; of all, if none is given."""
        return sum(
            work.count * seconds for work, seconds in self.work if not kinds or work.kind in kinds
        )


def convolutions_of(network: nn.Module, images: tuple[int, ...]) -> tuple[Work, ...]:
    """Note every convolution that a training step computes, wherever in the network it stands.

    Args:
        network: On the meta device, in training mode but for what is frozen.
        images: Shape of a batch, ``(N, C, H, W)``.
    """
    recorder = _Recorder()
    with recorder:
        network(torch.empty(images, device="meta")).sum().backward()
    return tuple(Work(*key, count) for key, count in recorder.counts.items())


class Floor:
    """Times convolutions and their gradients alone, each as often as it is asked to.

    The gradients of weight and input are two calls of ``torch.ops.aten.convolution_backward``,
    which a training step makes in one: so each has a time of its own.

    Args:
        work: What a step computes.
        device: Where to compute.
        dtype: What in.
        memory_format: Of images and weights.
    """

    def __init__(
        self,
        work: Sequence[Work],
        *,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self._device = device
        rotation = _Rotation(work, device, dtype, memory_format)
        self._calls = {each: _call(each, rotation) for each in work}
        self._times: dict[Work, list[float]] = {each: [] for each in work}
        self._time_all()  # the first time, kernels are chosen and made

    def sweep(self) -> None:
        """Time each of them once more."""
        for work, seconds in self._time_all().items():
            self._times[work].append(seconds)

    def times(self) -> FloorTimes:
        """Return the medians of all sweeps."""
        return FloorTimes(
            tuple((work, statistics.median(times)) for work, times in self._times.items())
        )

    @torch.no_grad()
    def _time_all(self) -> dict[Work, float]:
        return {work: seconds_of(call, self._device) for work, call in self._calls.items()}


class _Recorder(TorchDispatchMode):
    """Counts convolutions and their gradients while they are computed on meta."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.counts: Counter[tuple[Convolution, Kind]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _FORWARD:
            images, weight, bias, *settings = args
            convolution = _convolution(images, weight, result, bias is not None, settings)
            self.counts[convolution, "forward"] += 1
        elif func is _BACKWARD:
            gradient, images, weight, bias_sizes, *settings, mask = args
            convolution = _convolution(images, weight, gradient, bias_sizes is not None, settings)
            needs_input, needs_weight, _ = mask  # not the first convolution; nothing frozen
            if needs_weight:
                self.counts[convolution, "weight_gradient"] += 1
            if needs_input:
                self.counts[convolution, "input_gradient"] += 1
        return result


def _convolution(
    images: Tensor, weight: Tensor, output: Tensor, biased: bool, settings: Sequence[Any]
) -> Convolution:
    return Convolution(
        input=tuple(images.shape),
        weight=tuple(weight.shape),
        output=tuple(output.shape),
        biased=biased,
        settings=tuple(tuple(each) if isinstance(each, list) else each for each in settings),
    )


class _Rotation:
    """Random numbers that tensors are cut from, each behind the one before."""

    def __init__(
        self,
        work: Sequence[Work],
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        largest = max((each.convolution.largest for each in work), default=0)
        count = max(ROTATED_BYTES // dtype.itemsize, 2 * (largest + _ALIGNMENT))
        self._numbers = torch.randn(count, device=device, dtype=dtype)
        self._memory_format = memory_format
        self._next = 0

    def cut(self, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of this shape, laid out as it is in training."""
        count = math.prod(shape)
        if self._next + count > len(self._numbers):
            self._next = 0
        piece = self._numbers[self._next : self._next + count]
        self._next += -(-count // _ALIGNMENT) * _ALIGNMENT
        if self._memory_format != torch.channels_last or len(shape) != 4:
            return piece.view(shape)
        images, channels, height, width = shape
        return piece.view(images, height, width, channels).permute(0, 3, 1, 2)


def _call(work: Work, rotation: _Rotation) -> Callable[[], object]:
    """Return what makes a computation once, on other numbers each time."""
    convolution, settings = work.convolution, work.convolution.settings
    weight = rotation.cut(convolution.weight).clone()
    bias = rotation.cut(convolution.weight[:1]).clone() if convolution.biased else None
    if work.kind == "forward":
        return lambda: _FORWARD(rotation.cut(convolution.input), weight, bias, *settings)
    of_input = work.kind == "input_gradient"
    return lambda: _BACKWARD(
        rotation.cut(convolution.output),
        rotation.cut(convolution.input),
        weight,
        None if bias is None else [len(bias)],
        *settings,
        [of_input, not of_input, not of_input and convolution.biased],
    )
