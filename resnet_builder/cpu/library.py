"""The compiled kernels: compiled once on a machine, kept in the user's cache, loaded from there."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from resnet_builder.system import cache_dir

_SOURCES = (
    "norm.cpp",
    "gradient.cpp",
    "splitting.cpp",
    "winograd.cpp",
    "winograd_gradient.cpp",
    "shortcut.cpp",
)
_HEADERS = (
    "convolution.h",
    "filtering.h",
    "rows.h",
    "numbers.h",
    "pairs.h",
    "pair_products.h",
    "tiles.h",
    "gradient_tiles.h",
    "gradient_vectors.h",
    "winograd.h",
    "winograd_factors.h",
)

_LONGEST_COMPILATION = 120.0  # seconds; it is about five

_VECTORS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""What a compiler may use of x86 processors, by what torch found this one to have."""

_TILES = ("-mamx-tile", "-mamx-bf16")
"""And where torch found AMX; GCC knows it since version 11."""

_PAIRS = ("-mavx512bf16",)
"""And where it found instructions that multiply vectors of bf16; GCC has them since version 10."""

_QUESTIONS = frozenset(
    {"takes", "has_tiles", "has_paired_gradient", "has_winograd_fp32", "has_winograd_bf16"}
)
"""Functions that return whether something is so."""

_POINTER = ctypes.c_void_p
_FORWARD = [_POINTER, _POINTER, ctypes.c_int, *7 * [_POINTER], *2 * [ctypes.c_int64]]
_BACKWARD = [*4 * [_POINTER], ctypes.c_int, *8 * [_POINTER], *2 * [ctypes.c_int64], ctypes.c_int]
_ARGUMENTS = {
    "takes": 2 * [ctypes.c_int64],
    **{question: [] for question in _QUESTIONS - {"takes"}},
    **{
        f"{what}_gradient": [*4 * [_POINTER], ctypes.c_int]
        for what in ("paired", "winograd", "winograd_images")
    },
    **{
        way: [*4 * [_POINTER], ctypes.c_int, *2 * [_POINTER], ctypes.c_int]
        for way in ("split_fp32", "winograd_fp32", "winograd_bf16")
    },
    **{f"shortcut_{way}": [*3 * [_POINTER], ctypes.c_int] for way in ("forward", "backward")},
    **{f"forward_{t}": [*_FORWARD, *2 * [ctypes.c_double], ctypes.c_int] for t in ("bf16", "fp32")},
    **{f"backward_{t}": _BACKWARD for t in ("bf16", "fp32")},
}


class NoKernelsError(Exception):
    """There are no kernels on this machine; the text says why."""


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
    """Return which kernels a device has; they are compiled if they are not yet."""
    if device.type != "cpu":
        return KernelSupport(None, f"they are for the processor, not for {device.type}")
    try:
        return _library()[1]
    except NoKernelsError as error:
        return KernelSupport(None, str(error))


def library() -> ctypes.CDLL:
    """Load the kernels, compiling them if this machine has not done so yet.

    Raises:
        NoKernelsError: This machine cannot compile them.
    """
    return _library()[0]


@cache
def _library() -> tuple[ctypes.CDLL, KernelSupport]:
    """Load the kernels for the newest instructions that processor and compiler both know."""
    command = _command()
    missing = None
    for name, found, flags in (
        ("AMX", torch.cpu._is_amx_tile_supported, _TILES),
        ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported, _PAIRS),
    ):
        if found():
            try:
                return _compiled((*command, *flags)), KernelSupport(name, missing)
            except NoKernelsError as error:
                missing = missing or f"{name}: {error}"
    capability = torch.backends.cpu.get_cpu_capability()
    return _compiled(command), KernelSupport(capability, missing)


def _compiled(command: tuple[str, ...]) -> ctypes.CDLL:
    """Load what a command compiles, from the cache if it is there.

    Raises:
        NoKernelsError: The command fails, or its result cannot be kept or loaded.
    """
    sources = {
        name: files(__package__).joinpath("csrc", name).read_bytes()
        for name in (*_SOURCES, *_HEADERS)
    }
    parts = (*sources.values(), *map(str.encode, (*command, platform.machine())))
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    for folder in (cache_dir() / "kernels", None):
        try:
            return _kept(folder, name, command, sources)
        except OSError as error:  # a folder that cannot be written, a file that cannot be loaded
            fault = error
    raise NoKernelsError(f"they cannot be written or loaded: {fault}") from fault


def _command() -> tuple[str, ...]:
    """Return the command that compiles, without the names of files.

    Raises:
        NoKernelsError: There is none.
    """
    if sys.platform == "win32":
        raise NoKernelsError("they are not made for Windows")
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++"))), None
    )
    if compiler is None:
        raise NoKernelsError("there is no C++ compiler")
    vectors = _VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())
    flags = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden", *vectors)
    return (compiler, *flags)


def _kept(
    folder: Path | None, name: str, command: tuple[str, ...], sources: dict[str, bytes]
) -> ctypes.CDLL:
    """Load the kernels from a folder, or from one that is gone as soon as they are loaded."""
    if folder is None:
        with tempfile.TemporaryDirectory() as passing:
            return _kept(Path(passing), name, command, sources)
    path = folder / f"{name}.so"
    if path.exists():
        try:
            return _loaded(path)
        except OSError:  # damaged, or of another system that shares the folder
            pass
    folder.mkdir(parents=True, exist_ok=True)
    _compile(command, sources, path)
    return _loaded(path)


def _compile(command: tuple[str, ...], sources: dict[str, bytes], path: Path) -> None:
    """Compile beside the path, and put the file there once it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled = Path(folder, path.name)
        for source, text in sources.items():
            Path(folder, source).write_bytes(text)
        codes = [str(Path(folder, source)) for source in _SOURCES]
        try:
            subprocess.run(
                [*command, *codes, "-o", str(compiled)],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_LONGEST_COMPILATION,
            )
        except subprocess.TimeoutExpired as error:
            raise NoKernelsError(f"{command[0]} takes too long") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines()
            reason = next((line for line in said if "error" in line), "it fails")
            raise NoKernelsError(f"{command[0]}: {reason}") from error
        with compiled.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(compiled, path)


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int if name in _QUESTIONS else None
    except AttributeError as error:
        raise OSError(f"{path} has no {name}") from error
    return loaded
