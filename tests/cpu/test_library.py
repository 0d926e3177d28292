"""Compilation of the CPU kernels: once, into a cache that may be damaged or missing."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from resnet_builder.cpu import KernelSupport, kernel_support
from resnet_builder.cpu import library as module
from resnet_builder.cpu.library import library
from resnet_builder.cpu.norm import FusedBatchNorm

CPU = torch.device("cpu")


@pytest.fixture
def compiled() -> str:
    """The path of this machine's kernels."""
    return str(library()._name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the kernels a cache of their own, as on a new machine."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(module, "cache_dir", lambda: folder)
    module._library.cache_clear()
    yield folder / "kernels"
    module._library.cache_clear()


def compiler(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the compiler's place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def copier(path: Path, compiled: str, monkeypatch: pytest.MonkeyPatch, *, first: str = "") -> None:
    """Put a program in the compiler's place that takes no time."""
    text = f'{first}\nwhile [ "$1" != -o ]; do shift; done; cp "{compiled}" "$2"'
    compiler(path, text, monkeypatch)


def kept(folder: Path) -> list[str]:
    return [path.suffix for path in folder.iterdir()]


def test_they_are_compiled_once(
    compiled: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier(tmp_path / "compiler", compiled, monkeypatch)
    assert kernel_support(CPU).instructions is not None
    assert kernel_support(CPU).reason is None
    assert kept(cache) == [".so"]
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    module._library.cache_clear()
    assert kernel_support(CPU).instructions is not None
    assert file.stat().st_mtime_ns == written


def test_another_compiler_compiles_anew(
    compiled: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier(tmp_path / "mine", compiled, monkeypatch)
    assert kernel_support(CPU).instructions is not None
    copier(tmp_path / "other", compiled, monkeypatch)
    module._library.cache_clear()
    assert kernel_support(CPU).instructions is not None
    assert kept(cache) == [".so", ".so"]


@pytest.mark.ci  # compiling takes a quarter of a minute
@pytest.mark.parametrize("known", ["vectors", "neither"])
def test_a_compiler_that_knows_no_tiles_compiles_all_else(
    cache: Path, tmp_path: Path, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    unknown = "*-mamx*" if known == "vectors" else "*-mamx*|*-mavx512bf16*"
    older = f'case "$*" in {unknown}) echo "error: unknown" >&2; exit 1;; esac; exec c++ "$@"'
    compiler(tmp_path / "older", older, monkeypatch)
    assert kernel_support(CPU).instructions is not None
    assert kernel_support(CPU).reason == f"AMX: {tmp_path / 'older'}: error: unknown"
    assert not library().has_amx()
    has_vectors = torch.backends.cpu.get_cpu_capability() == "AVX512" and sys.platform == "linux"
    assert bool(library().has_gemm_weight_gradient()) == (known == "vectors" and has_vectors)
    assert library().batch_norm_supports(64, 32)


def test_a_compiler_that_knows_no_tiles_is_asked_for_vectors(
    compiled: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    refuse = 'case "$*" in *-mamx*) echo "error: unknown" >&2; exit 1;; esac'
    copier(tmp_path / "older", compiled, monkeypatch, first=refuse)
    reason = f"AMX: {tmp_path / 'older'}: error: unknown"
    assert kernel_support(CPU) == KernelSupport("AVX512-BF16", reason)


@pytest.mark.parametrize("damage", [b"", b"nonsense" * 100])
def test_a_damaged_file_is_compiled_anew(
    compiled: str, cache: Path, tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier(tmp_path / "compiler", compiled, monkeypatch)
    assert kernel_support(CPU).instructions is not None
    (whole,) = cache.iterdir()
    damaged = tmp_path / "other" / "kernels" / whole.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(damage)
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "other")
    module._library.cache_clear()
    assert kernel_support(CPU).instructions is not None
    assert damaged.stat().st_size == whole.stat().st_size


@pytest.mark.parametrize("hindrance", ["a file in the way", "no such place"])
def test_without_a_cache_they_are_compiled_all_the_same(
    compiled: str, cache: Path, tmp_path: Path, hindrance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier(tmp_path / "compiler", compiled, monkeypatch)
    if hindrance == "a file in the way":
        cache.parent.write_text("in the way")
    else:
        cache.parent.symlink_to("/proc/nowhere")
    assert kernel_support(CPU).instructions is not None


def test_without_a_compiler_there_are_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert kernel_support(CPU).reason == "there is no C++ compiler"


def test_what_a_compiler_says_is_passed_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken"
    compiler(path, "echo 'norm.cpp:1: fatal error: cmath: No such file' >&2; exit 1", monkeypatch)
    said = f"{path}: norm.cpp:1: fatal error: cmath: No such file"
    assert kernel_support(CPU).reason == said
    assert kept(cache) == []


def test_a_compiler_that_makes_something_else_is_of_no_use(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'while [ "$1" != -o ]; do shift; done; echo nothing > "$2"'
    compiler(tmp_path / "odd", text, monkeypatch)
    assert str(kernel_support(CPU).reason).startswith("they cannot be written or loaded: ")


def test_a_compiler_that_never_ends_is_not_waited_for(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path / "endless", "exec sleep 60", monkeypatch)
    monkeypatch.setattr(module, "_COMPILE_TIMEOUT", 0.2)
    assert str(kernel_support(CPU).reason).endswith("takes too long")


def test_other_devices_have_none() -> None:
    assert kernel_support(torch.device("cuda")).reason == "they are for the processor, not for cuda"


def test_windows_has_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert kernel_support(CPU).reason == "they are not made for Windows"


@pytest.mark.ci
@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_older_processors_compute_the_same(
    capability: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler may contract products and sums differently, so that bits are not the same."""
    x = torch.randn(4, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    here = FusedBatchNorm(torch.nn.BatchNorm2d(32), relu=True)(x)
    cache = request.getfixturevalue("cache")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    older = FusedBatchNorm(torch.nn.BatchNorm2d(32), relu=True)(x)
    torch.testing.assert_close(older, here)
    assert kept(cache) == [".so"]
