"""Compilation of the CPU kernels: once, into a cache that may be damaged or missing."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from resnet_builder.cpu import KernelSupport, kernel_support
from resnet_builder.cpu import library as module
from resnet_builder.cpu.library import library
from resnet_builder.cpu.norm import FusedBatchNorm


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


def support(device: str = "cpu") -> KernelSupport:
    """Ask as a new process does."""
    module._library.cache_clear()
    return kernel_support(torch.device(device))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a program in the compiler's place."""

    def make(text: str, name: str = "compiler") -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return path

    return make


def copying(compiled: str) -> str:
    """Return the program of a compiler that takes no time."""
    return f'while [ "$1" != -o ]; do shift; done; cp "{compiled}" "$2"'


def kept(folder: Path) -> list[Path]:
    """Return the compiled files in a folder."""
    return sorted(folder.glob("*.so"))


def test_each_compiler_compiles_them_once(
    compiled: str, cache: Path, compiler: Callable[..., Path]
) -> None:
    compiler(copying(compiled))
    assert support().instructions is not None
    assert support().reason is None
    (file,) = kept(cache)
    written = file.stat().st_mtime_ns
    assert support().instructions is not None
    assert file.stat().st_mtime_ns == written
    compiler(copying(compiled), "another")
    assert support().instructions is not None
    assert len(kept(cache)) == 2


@pytest.mark.slow  # compiling takes a quarter of a minute
@pytest.mark.parametrize("known", ["vectors", "neither"])
@pytest.mark.usefixtures("cache")
def test_a_compiler_that_knows_no_tiles_compiles_all_else(
    known: str, compiler: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    unknown = "*-mamx*" if known == "vectors" else "*-mamx*|*-mavx512bf16*"
    refuse = f'case "$*" in {unknown}) echo "error: unknown" >&2; exit 1;; esac'
    older = compiler(f'{refuse}; exec c++ "$@"')
    found = support()
    assert (found.instructions == "AVX512-BF16") == (known == "vectors")
    assert found.reason == f"AMX: {older}: error: unknown"
    assert not library().has_amx()
    has_vectors = torch.backends.cpu.get_cpu_capability() == "AVX512" and sys.platform == "linux"
    assert bool(library().has_gemm_weight_gradient()) == (known == "vectors" and has_vectors)
    assert library().batch_norm_supports(64, 32)


def other_copy(compiled: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a compiled file that this process has not loaded: damage to one may crash it."""
    assert support().instructions is not None
    other = cache.parent / "other"
    shutil.copytree(cache, other / "kernels")
    monkeypatch.setattr(module, "cache_dir", lambda: other)
    (file,) = kept(other / "kernels")
    assert file.read_bytes() == Path(compiled).read_bytes()
    return file


@pytest.mark.parametrize("damage", ["empty", "truncated", "edited", "no digest", "another digest"])
def test_a_damaged_file_is_compiled_anew(
    compiled: str,
    cache: Path,
    damage: str,
    compiler: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler(copying(compiled))
    file = other_copy(compiled, cache, monkeypatch)
    whole, digest = file.read_bytes(), file.with_suffix(".sha256")
    if damage == "no digest":
        digest.unlink()
    elif damage == "another digest":
        digest.write_text("0" * 64)
    else:
        middle = len(whole) // 2
        edited = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        file.write_bytes({"empty": b"", "truncated": whole[:middle], "edited": edited}[damage])
    before = file.stat().st_ino
    assert support().instructions is not None
    assert file.stat().st_ino != before
    assert file.read_bytes() == whole
    before = file.stat().st_ino
    assert support().instructions is not None
    assert file.stat().st_ino == before


PLANTED = """
#include <cstdio>
__attribute__((constructor)) static void run() {{ std::fclose(std::fopen("{canary}", "w")); }}
"""


@pytest.mark.parametrize("folder", ["writable by all", "another user's"])
def test_code_that_another_user_can_have_written_is_not_loaded(
    folder: str,
    compiled: str,
    cache: Path,
    compiler: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if folder != "writable by all" and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    compiler(copying(compiled))
    file = other_copy(compiled, cache, monkeypatch)
    canary = cache.parent / "canary"
    source = cache.parent / "planted.cpp"
    source.write_text(PLANTED.format(canary=canary))
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(file)], check=True)
    file.with_suffix(".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())
    if folder == "writable by all":
        file.parent.chmod(0o777)
    else:
        os.chown(file.parent, 12345, 12345)
    assert support().instructions is not None
    assert not canary.exists()
    assert "compiled code is kept for this process only" in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sessions are listed in /proc")
def test_ctrl_c_does_not_end_the_compiler(
    compiled: str, cache: Path, compiler: Callable[..., Path]
) -> None:
    """A terminal sends it to all processes of its session."""
    session = cache.parent.parent / "session"
    compiler(f'cut -d" " -f6 /proc/$$/stat > "{session}"; {copying(compiled)}')
    assert support().instructions is not None
    assert int(session.read_text()) != os.getsid(0)


def test_a_folder_that_a_killed_process_left_is_removed(
    compiled: str, cache: Path, compiler: Callable[..., Path]
) -> None:
    left = cache / ".tmp-dead"
    left.mkdir(parents=True)
    cache.parent.chmod(0o700)
    (left / "norm.cpp").touch()
    compiler(copying(compiled))
    assert support().instructions is not None
    assert not left.exists()
    assert len(kept(cache)) == 1


@pytest.mark.parametrize("hindrance", ["a file in the way", "no such place"])
def test_without_a_cache_they_are_compiled_all_the_same(
    compiled: str, cache: Path, hindrance: str, compiler: Callable[..., Path]
) -> None:
    compiler(copying(compiled))
    if hindrance == "a file in the way":
        cache.parent.write_text("in the way")
    else:
        cache.parent.symlink_to("/proc/nowhere")
    assert support().instructions is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'norm.cpp:1: error: no cmath' >&2; exit 1", "COMPILER: norm.cpp:1: error: no cmath"),
        ("exec sleep 60", "COMPILER takes too long"),
        ('while [ "$1" != -o ]; do shift; done; echo x > "$2"', "they cannot be loaded"),
    ],
    ids=["fails", "never ends", "makes something else"],
)
def test_a_compiler_of_no_use_is_the_reason_why_there_are_none(
    text: str,
    reason: str,
    cache: Path,
    compiler: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_COMPILE_TIMEOUT", 0.2)
    path = compiler(text)
    assert str(support().reason).startswith(reason.replace("COMPILER", str(path)))
    assert not list(cache.glob(".tmp*"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are listed in /proc")
def test_processes_of_a_compiler_end_with_it(
    cache: Path, compiler: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMPILE_TIMEOUT", 0.5)
    started = cache.parent.parent / "started"
    compiler(f'sleep 60 & echo $! > "{started}"; wait')
    assert "takes too long" in str(support().reason)
    state = Path(f"/proc/{started.read_text().strip()}/stat")
    with suppress(FileNotFoundError):
        assert state.read_text().split()[2] in "ZX"


@pytest.mark.parametrize(
    ("content", "reason"), [("\0", "Exec format error"), (None, "Permission denied")]
)
def test_a_compiler_that_is_no_program_is_the_reason(
    content: str | None, reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = cache.parent.parent / "compiler"
    os.mkfifo(program) if content is None else program.write_text(content)
    program.chmod(0o700)
    monkeypatch.setenv("CXX", str(program))
    assert support().reason == f"{program}: {reason}"


@pytest.mark.usefixtures("cache")
def test_other_machines_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support("cuda").reason == "they are for the processor, not for cuda"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert support().reason == "there is no C++ compiler"
    monkeypatch.setattr(sys, "platform", "win32")
    assert support().reason == "they are not made for Windows"


@pytest.mark.ci
@pytest.mark.parametrize("capability", ["DEFAULT", pytest.param("AVX2", marks=pytest.mark.slow)])
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
    assert len(kept(cache)) == 1
