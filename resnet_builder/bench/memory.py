"""The most memory that training holds, as the system or the device counts it."""

import ctypes
import gc
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_RESET_PEAK = "5"  # proc_pid_clear_refs(5)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that was held at once.

    Attributes:
        bytes: By the whole process, or on the device.
        before: Of it, what was held before the first step.
    """

    bytes: int
    before: int


class PeakMeter:
    """Measures a peak from now on, once what was freed before is given back to the system.

    Args:
        device: Where training computes; on the CPU it is the whole process that is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        _give_back()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # no Linux, or not allowed to
                Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        self._before = self._held()

    def peak(self) -> Peak | None:
        """Return it; ``None`` where nobody counts."""
        held = self._held()
        if held is None or self._before is None:
            return None
        return Peak(held, self._before)

    def _held(self) -> int | None:
        """Return the most bytes held since the mark was set back."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._device.type != "cpu":
            return None
        with suppress(OSError):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                return int(found[1]) * 1024
        return None


def _give_back() -> None:
    """Return freed memory to the system, where its allocator can be told to."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
