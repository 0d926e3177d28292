"""Settings of the whole process, which only the command line makes; each can be undone."""

import ctypes
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_KEPT = 2**31 - 1
_DEFAULT_THRESHOLD = 128 * 1024

_threshold = _DEFAULT_THRESHOLD  # glibc itself tells nobody


def configure(*, threads: int | None) -> Callable[[], None]:
    """Set the process up for training.

    Besides the threads: fp32 may be computed in TF32 where the hardware has it; cuDNN takes
    only convolutions that repeat themselves to the bit, and does not try which is fastest, for
    that would be another one on another day; and glibc keeps the memory that a step frees for
    the next one, instead of giving it back to the system and asking for it again.

    Args:
        threads: Threads that an operation may use; ``None`` leaves them as they are.

    Returns:
        A function that undoes it.
    """
    undo = ExitStack()
    if threads is not None:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high")
    for name, value in {"allow_tf32": True, "deterministic": True, "benchmark": False}.items():
        undo.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        setattr(torch.backends.cudnn, name, value)
    if _keep_memory(_KEPT):
        undo.callback(_keep_memory, _DEFAULT_THRESHOLD)
    return undo.close


def keeps_memory() -> bool:
    """Tell whether glibc keeps the memory that a step frees, as :func:`configure` has it do."""
    return _threshold == _KEPT


def _keep_memory(threshold: int) -> bool:
    """Have glibc give back or map blocks only above a size; tell whether this is glibc."""
    global _threshold
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, min(threshold, 2**30)) and mallopt(
            _M_TRIM_THRESHOLD, threshold
        ):
            _threshold = threshold
            return True
    return False
