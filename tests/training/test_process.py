"""Settings of the process: made, and undone."""

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from resnet_builder.training.process import configure, keeps_memory

resource = pytest.importorskip("resource") if sys.platform != "win32" else None


@pytest.fixture(autouse=True)
def _same_afterwards() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    assert torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == precision


def cudnn() -> dict[str, bool]:
    names = ("allow_tf32", "deterministic", "benchmark")
    return {name: getattr(torch.backends.cudnn, name) for name in names}


def test_cudnn_repeats_itself_and_may_use_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = cudnn()
    undo = configure(threads=None)
    assert cudnn() == {"allow_tf32": True, "deterministic": True, "benchmark": False}
    undo()
    assert cudnn() == before


def test_threads_and_precision_are_set_and_undone() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    undo = configure(threads=before[0] + 2)
    assert torch.get_num_threads() == before[0] + 2
    assert torch.get_float32_matmul_precision() == "high"
    undo()
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_threads_are_left_alone_unless_given() -> None:
    threads = torch.get_num_threads()
    undo = configure(threads=None)
    assert torch.get_num_threads() == threads
    undo()


def faults_of(work: Callable[[], None]) -> int:
    """Count the pages that the kernel had to bring in."""
    assert resource is not None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def fill_and_free() -> None:
    """Use 48 MiB, 12 thousand pages, as a step does."""
    torch.empty(12 * 2**20).fill_(1.0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the others keep what they have")
def test_memory_of_a_step_is_kept_for_the_next() -> None:
    fill_and_free()
    if faults_of(fill_and_free) < 1000:
        pytest.skip("pages are huge here, or the allocator is another one")
    undo = configure(threads=None)
    assert keeps_memory()
    for _ in range(20):  # the first few still grow around what is small and stays
        fill_and_free()
    kept = faults_of(fill_and_free)
    undo()
    assert not keeps_memory()
    ctypes.CDLL(None).malloc_trim(0)
    assert kept < 100


def test_other_platforms_have_no_allocator_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> None:
        pytest.fail("the C library was loaded")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    undo = configure(threads=None)
    assert not keeps_memory()
    undo()


def test_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    configure(threads=None)()
