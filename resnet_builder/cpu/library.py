"""Compiled kernels: built from ``csrc`` once on a machine, kept in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from resnet_builder.errors import StorageError
from resnet_builder.system import (
    cache_dir,
    code_cache,
    open_regular,
    safe_path,
    temporary_cache,
)

_COMPILE_TIMEOUT = 120.0  # seconds; compiling takes about five

_TEMPORARY, _DIGEST = ".tmp-", ".sha256"

_VECTOR_FLAGS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""Compiler flags for x86 processors, by the capability that torch finds."""

_BF16_FLAGS = {
    "AMX": ("-mamx-tile", "-mamx-bf16"),  # GCC has them since version 11
    "AVX512-BF16": ("-mavx512bf16",),  # since version 10
}
"""Compiler flags besides, by the instructions that multiply bf16; the faster ones first."""

_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_FORWARD = [_POINTER, _POINTER, _INT, *7 * [_POINTER], *2 * [_INT64], *2 * [ctypes.c_double], _INT]
_BACKWARD = [*4 * [_POINTER], _INT, *8 * [_POINTER], *2 * [_INT64], _INT]
_GRADIENT = [*4 * [_POINTER], _INT]
_CONVOLUTION = [*4 * [_POINTER], _INT, *2 * [_POINTER], _INT]

_PREDICATES: Mapping[str, Sequence[Any]] = {
    "batch_norm_supports": 2 * [_INT64],
    "has_amx": [],
    "has_gemm_weight_gradient": [],
    "has_winograd_fp32": [],
    "has_winograd_bf16": [],
}
"""Arguments of functions that return a truth value."""

_KERNELS: Mapping[str, Sequence[Any]] = {
    "batch_norm_forward_bf16": _FORWARD,
    "batch_norm_forward_fp32": _FORWARD,
    "batch_norm_backward_bf16": _BACKWARD,
    "batch_norm_backward_fp32": _BACKWARD,
    "gemm_weight_gradient": _GRADIENT,
    "winograd_weight_gradient": _GRADIENT,
    "winograd_input_gradient": _GRADIENT,
    "winograd_fp32": _CONVOLUTION,
    "winograd_bf16": _CONVOLUTION,
    "pad_shortcut_forward": [*3 * [_POINTER], _INT],
    "pad_shortcut_backward": [*3 * [_POINTER], _INT],
}
"""Arguments of functions that return nothing."""


class NoKernelsError(Exception):
    """This machine has no kernels; the message says why."""


@dataclass(frozen=True, slots=True)
class KernelSupport:
    """CPU kernels that a machine has.

    Attributes:
        instructions: Instruction set that they are compiled for, such as ``"AMX"``; ``None`` where
            there are no kernels.
        reason: Why there are none, or why they do without newer instructions of the processor;
            ``None`` where nothing is missing.
    """

    instructions: str | None
    reason: str | None = None


def kernel_support(device: torch.device) -> KernelSupport:
    """CPU kernels that a device has; they are compiled if they are not yet."""
    if device.type != "cpu":
        return KernelSupport(None, f"they are for the processor, not for {device.type}")
    try:
        return _library()[1]
    except NoKernelsError as error:
        return KernelSupport(None, str(error))


def library() -> ctypes.CDLL:
    """Compiled kernels, which are compiled if this machine has not done so yet.

    Raises:
        NoKernelsError: This machine cannot compile them.
    """
    return _library()[0]


@cache
def _library() -> tuple[ctypes.CDLL, KernelSupport]:
    """Load the kernels for the newest instructions that processor and compiler both know."""
    with safe_path():
        command = _command()
        missing = None
        for name, found in (
            ("AMX", torch.cpu._is_amx_tile_supported),
            ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported),
        ):
            if found():
                try:
                    return _compiled((*command, *_BF16_FLAGS[name])), KernelSupport(name, missing)
                except NoKernelsError as error:
                    missing = missing or f"{name}: {error}"
        capability = torch.backends.cpu.get_cpu_capability()
        return _compiled(command), KernelSupport(capability, missing)


def _compiled(command: tuple[str, ...]) -> ctypes.CDLL:
    """Kernels that a command compiles, from the cache if they are there.

    Raises:
        NoKernelsError: The command fails, or its result cannot be kept or loaded.
    """
    folder = files(__package__).joinpath("csrc")
    sources = {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith((".h", ".cpp"))
    }
    # The name is a digest of all that the result depends on, so that an update compiles anew.
    parts = (*sources.values(), *map(str.encode, (*command, platform.machine())))
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    try:
        path = code_cache(cache_dir() / "kernels") / f"{name}.so"
        try:
            return _load_or_compile(path, command, sources)
        except (OSError, NotImplementedError) as error:  # a full disk, or one without file locks
            notice = f"compiled code is kept for this process only: {path.parent}: {error}"
        return _load_or_compile(code_cache(temporary_cache(notice)) / path.name, command, sources)
    except (OSError, StorageError) as error:
        raise NoKernelsError(f"they cannot be written: {error}") from error


def _command() -> tuple[str, ...]:
    """Command that compiles, without the names of files.

    Raises:
        NoKernelsError: There is none.
    """
    if sys.platform == "win32":
        raise NoKernelsError("they are not made for Windows")
    candidates = (os.environ.get("CXX", ""), "c++", "g++")
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    if compiler is None:
        raise NoKernelsError("there is no C++ compiler")
    vectors = _VECTOR_FLAGS.get(torch.backends.cpu.get_cpu_capability(), ())
    flags = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden", *vectors)
    return (os.path.abspath(compiler), *flags)


def _load_or_compile(
    path: Path, command: tuple[str, ...], sources: dict[str, bytes]
) -> ctypes.CDLL:
    if (kept := _load_kept(path)) is not None:
        return kept
    # One process compiles and the others wait, so that a temporary folder there is a dead one's.
    with FileLock(path.with_name("lock"), timeout=_COMPILE_TIMEOUT, mode=0o600):
        if (kept := _load_kept(path)) is not None:
            return kept
        for left in path.parent.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        _compile(command, sources, path)
        try:
            return _load(path)
        except OSError as error:
            raise NoKernelsError(f"they cannot be loaded: {error}") from error


def _load_kept(path: Path) -> ctypes.CDLL | None:
    """Load what was compiled before, if it is whole: loading a damaged file may crash."""
    with suppress(OSError, ValueError):  # it may be of another system that shares the folder
        if _digest(path) == path.with_suffix(_DIGEST).read_text(encoding="ascii"):
            return _load(path)
    return None


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compile(command: tuple[str, ...], sources: dict[str, bytes], path: Path) -> None:
    """Compile beside the path, and move the file there once it is whole."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=path.parent) as name:
        folder = Path(name)
        compiled, digest = folder / path.name, folder / "digest"
        for file, text in sources.items():
            (folder / file).write_bytes(text)
        units = [str(folder / file) for file in sources if file.endswith(".cpp")]
        try:
            _run(
                [*command, *units, "-o", str(compiled)],
                env={**os.environ, "TMPDIR": name},
                cwd=name,  # relative folders of CPATH and the like are not the user's current one
            )
        except OSError as error:
            raise NoKernelsError(f"{command[0]}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise NoKernelsError(f"{command[0]} takes too long") from error
        except subprocess.CalledProcessError as error:
            output = error.stderr.decode(errors="replace").strip().splitlines()
            reason = next((line for line in output if "error" in line), "it fails")
            raise NoKernelsError(f"{command[0]}: {reason}") from error
        digest.write_text(_digest(compiled), encoding="ascii")
        for new, target in ((compiled, path), (digest, path.with_suffix(_DIGEST))):
            new.chmod(0o700)  # whatever the umask says
            with new.open("rb+") as written:
                os.fsync(written.fileno())
            new.replace(target)


def _run(command: Sequence[str], *, env: Mapping[str, str], cwd: str) -> None:
    """Run a compiler; the processes that it has started end with it."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
        # Ctrl-C of the terminal stops this process after a step. The compiler would end at once,
        # and the run would be without kernels for good.
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=_COMPILE_TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    try:
        for functions, result in ((_PREDICATES, _INT), (_KERNELS, None)):
            for name, arguments in functions.items():
                function = getattr(loaded, name)
                function.argtypes = arguments
                function.restype = result
    except AttributeError as error:
        raise OSError(f"{path} has no {name}") from error
    return loaded
