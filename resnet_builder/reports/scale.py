"""Scales of charts: linear or logarithmic, with round ticks and their texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[Any]

_GREATEST = 1e200  # numbers of greater size would overflow in differences
_FAR = 1e5  # pixels outside the image


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis of a chart.

    Attributes:
        label: Quantity.
        log: Whether the scale is logarithmic; values that are not positive are left out.
        limits: Least and greatest value shown; ``None`` for those of the data.
        unit: Text behind the numbers, such as ``%``.
    """

    label: str = ""
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Map from values to pixels.

    Attributes:
        axis: Axis that it belongs to.
        low: Value at the start.
        high: Value at the end.
        start: Pixel of ``low``.
        end: Pixel of ``high``.
        least_step: Least distance of two ticks.
    """

    axis: Axis
    low: float
    high: float
    start: float
    end: float
    least_step: float = 0

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.axis.log:
            value, low, high = log10(value), log10(low), log10(high)
        place = self.start + (value - low) / (high - low) * (self.end - self.start)
        return max(-_FAR, min(_FAR, place))

    def holds(self, value: float) -> bool:
        """Return whether a value has a pixel: finite and, on a logarithmic scale, positive."""
        return abs(value) <= _GREATEST and (value > 1 / _GREATEST or not self.axis.log)

    def ticks(self, room: float = 60) -> list[float]:
        """Return round values, about ``room`` pixels from one to the next, or more."""
        count = max(2.0, abs(self.end - self.start) / room)
        span = self._decades
        if span < 1:
            step = max(self.least_step, round_step((self.high - self.low) / count * 0.65))
            first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
            return [number * step for number in range(first, last + 1)]
        every = max(1, ceil(span / count))
        decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        factors = (1, 2, 5) if 3 * span <= 1.6 * count else (1,)
        found = [one * 10.0**power for power in decades if power % every == 0 for one in factors]
        return [one for one in found if self.low * 0.999 <= one <= self.high * 1.001]

    def tick_text(self, value: float, ticks: Sequence[float]) -> str:
        """Return the text of a tick, in the same form as those of the others."""
        if self._decades >= 1:
            return self.text(value)
        greatest = max(abs(one) for one in ticks)
        step = min((b - a for a, b in pairwise(ticks)), default=greatest) or 1.0
        if greatest >= 1e9 or step < 1e-4:
            return self.text(value)
        if greatest >= 1e4 and step >= 10 and not self.axis.unit:
            size, letter = (1e6, "M") if greatest >= 1e6 else (1e3, "k")
            return f"{value / size:g}{letter if value else ''}"
        return f"{value:,.{max(0, -floor(log10(step) + 1e-9))}f}{self._unit}"

    def text(self, value: float) -> str:
        """Return a percentage with two decimals, or a value in about four figures and its unit."""
        if self.axis.unit == "%" and abs(value) < 1e9:
            return f"{value:,.2f} %"
        if 1000 <= abs(value) < 1e9:
            return f"{value:,.0f}{self._unit}"
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e") + self._unit

    @property
    def _decades(self) -> float:
        """Decades of a logarithmic scale, whose ticks are round in logarithms if it has some."""
        return log10(self.high) - log10(self.low) if self.axis.log else 0

    @property
    def _unit(self) -> str:
        return f" {self.axis.unit}" if self.axis.unit else ""


def scale_of(
    axis: Axis,
    values: Iterable[Values],
    start: float,
    end: float,
    *,
    margin: float = 0,
    rounded: bool = False,
) -> Scale:
    """Return the scale that shows these values, and no more than that.

    Args:
        axis: Axis, whose limits go before the values.
        values: Values; those that are not finite do not count.
        start: Pixel of the least value.
        end: Pixel of the greatest value.
        margin: Fraction of the range that is added at both ends.
        rounded: Whether the range is extended to round values.
    """
    found = np.concatenate([np.zeros(0), *(np.asarray(one, dtype=float) for one in values)])
    found = found[np.abs(found) <= _GREATEST]
    if axis.log:
        found = np.log10(found[found > 1 / _GREATEST])
    limits = [log10(one) if one and axis.log else one for one in axis.limits]
    low = float(found.min() if len(found) else 0) if limits[0] is None else limits[0]
    high = float(found.max() if len(found) else 1) if limits[1] is None else limits[1]
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, or limits beside all values
        more = 0.3 if axis.log else abs(low) * 0.1 or 0.5
        low, high = low - more, low + more
    else:
        more = (high - low) * margin
        low -= more * (limits[0] is None)
        high += more * (limits[1] is None)
    if axis.log:
        return Scale(axis, 10**low, 10**high, start, end)
    if rounded:
        step = round_step((high - low) / 5)
        low = floor(low / step + 1e-9) * step if limits[0] is None else low
        high = ceil(high / step - 1e-9) * step if limits[1] is None else high
    whole = bool(len(found)) and not (found % 1).any()  # such as epochs: none lies between
    return Scale(axis, low, high, start, end, least_step=int(whole))


def round_step(step: float) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is not below a step."""
    power = 10.0 ** floor(log10(step))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= step * 0.999)
