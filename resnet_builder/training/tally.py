"""What the steps report, kept on the device and brought to the host now and then."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """What the steps since the reading before reported.

    Attributes:
        losses: Mean training loss of each step.
        hits: Training images answered right, over all of them.
        first_bad: Which of them, from 0, was the first whose loss or gradient was not finite.
    """

    losses: tuple[float, ...]
    hits: float
    first_bad: int | None


class Tally:
    """Keeps what :class:`~resnet_builder.training.step.TrainStep` returns until it is read."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, row: Tensor) -> None:
        """Keep one step's row."""
        self._rows.append(row)

    def read(self) -> Reading:
        """Wait for the device and return what it reported, all at once."""
        rows = torch.stack(self._rows).tolist() if self._rows else []
        self._rows.clear()
        failed = [row[2] for row in rows]
        return Reading(
            losses=tuple(row[0] for row in rows),
            hits=sum(row[1] for row in rows),
            first_bad=failed.index(1.0) if 1.0 in failed else None,
        )
