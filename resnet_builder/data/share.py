"""What one of several processes computes of every batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's images of every batch: those at positions rank, rank + of, rank + 2 of, ...

    Attributes:
        rank: The number of the process, from 0.
        of: How many processes there are; they divide every batch.
    """

    rank: int = 0
    of: int = 1

    def window(self, batch_size: int, reach: int | None) -> tuple[Tensor, Tensor]:
        """Return the positions that have to be computed, and where its own are among them.

        Own images that are mixed with those that follow them find these right behind them in the
        window too: it is in order, and goes round as the batch does.

        Args:
            batch_size: Images in a batch.
            reach: By how many of the following an image is changed; ``None`` if by any.

        Returns:
            Two tensors of int64, ascending.
        """
        own = torch.arange(self.rank, batch_size, self.of)
        if reach is None or reach >= self.of - 1:
            return torch.arange(batch_size), own
        positions = ((own[:, None] + torch.arange(reach + 1)) % batch_size).unique()
        return positions, torch.searchsorted(positions, own)


WHOLE = Shard()
