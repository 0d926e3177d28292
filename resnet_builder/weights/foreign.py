"""Checkpoints of other programs: read without running their code, and unwrapped to a state dict.

Files of ``torch.save`` are pickles, which name the functions to call. ``torch.load`` with
``weights_only=True`` calls those that rebuild tensors, and refuses every other name. Training
scripts save more beside their weights: options, scores, curves, a scheduler. Nothing of that is
needed here, so that the classes are neither imported nor called; an inert stub takes the place of
each.
"""

import collections
import contextlib
import errno
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from resnet_builder.errors import (
    CheckpointError,
    NonFiniteError,
    ResnetBuilderError,
    UsageError,
    visible,
)
from resnet_builder.runs.files import storage_errors
from resnet_builder.system import open_regular
from resnet_builder.weights.file import is_own_metadata, read_weights

_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}

_TRAINED = (
    *("state_dict", "model_state_dict", "model_state", "model"),
    *("net", "network", "module", "weights", "params"),
)
_AVERAGED = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model"),
    *("ema_state", "ema_net", "ema", "params_ema", "shadow"),
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "online_model.", "net.", "network.", "backbone.")

_AVERAGE_COUNTERS = {"n_averaged", "steps", "step", "initted"}
"""Counters of updates, which torch's AveragedModel, mmengine and ema-pytorch keep."""

_MAX_DEPTH = 8
"""Containers in containers, and prefixes before prefixes; a container may hold itself."""

_MOST_CLAIMED = 32
"""Bytes of weights, in fp32, for each byte of a file: quantised ones of zeros can be compressed."""

_MOST_PARTS = 1_000_000
"""Tuples that a tuple is made of, each counted as often as it is in it."""

_SHOWN = 12
"""Entries of a file that an error lists; the rest are counted."""

_BLOCKED_MODULES = {"os", "posix", "nt", "sys"}
"""Modules of which ``torch.load`` refuses every name, even if a stub is given for it."""


class InvalidCheckpoint(CheckpointError):
    """A file that holds no weights, is damaged, or cannot be read without running its code."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """Origin of the tensors that were read from a file.

    Attributes:
        wrappers: Wrappers that were taken off, outermost first: ``("state_dict", "module.")``.
        ignored: Names of the file's other entries.
        averaged: Whether these are averaged (EMA) weights.
        has_other: Whether the file has both kinds, averaged and trained.
        converted: Floating-point types that became float32: ``("float16",)``.
    """

    wrappers: tuple[str, ...]
    ignored: tuple[str, ...]
    averaged: bool
    has_other: bool
    converted: tuple[str, ...] = ()


def read_foreign(path: Path, *, ema: bool = False) -> tuple[dict[str, Tensor], FileReport]:
    """Read the weights in a file, whichever program wrote it; no code in it runs.

    Args:
        path: Path of the file. Its content decides on the format, not its suffix.
        ema: Whether to take the averaged weights instead of those last trained.

    Returns:
        Tensors on the CPU, by name without any wrapper's prefix, in the file's order; and where
        they were found. Floats are float32, all are contiguous, and none shares its memory.

    Raises:
        InvalidCheckpoint: The file is missing or damaged, or holds no weights that can be read.
        NonFiniteError: A weight is infinite or not a number.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: The file has no averaged weights, or a newer resnet-builder wrote it.
    """
    with storage_errors("read", path):
        try:
            tensors, report = _unwrap(_load(path), averaged=ema)
            # A stride of 0 makes a tensor of any size from one number.
            _check_claim(sum(4 * tensor.numel() for tensor in tensors.values()), path)
            tensors, converted = _in_fp32(tensors)
        except InvalidCheckpoint as error:
            raise InvalidCheckpoint(f"{path}: {visible(str(error))}") from error
        except (ResnetBuilderError, OSError):
            raise
        except Exception as error:  # torch raises errors of many types for a damaged file
            raise InvalidCheckpoint(f"{path}: {visible(_damaged(error))}") from error
    if ema and not report.averaged:
        raise UsageError(f"{path} holds no averaged weights; take the trained ones")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{path}: '{visible(name)}' holds a value that is not finite")
    return tensors, replace(report, converted=converted)


def _check_claim(size: int, path: Path) -> None:
    """Check that a file can hold what it claims to hold, before memory is taken for it."""
    held = os.path.getsize(path)
    if size > _MOST_CLAIMED * held + 2**20:
        raise InvalidCheckpoint(
            f"it claims to hold {size:,} bytes of weights in a file of {held:,} bytes; do not "
            "trust it"
        )


def _in_fp32(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Contiguous float32 copies of tensors, and the types of those that had another."""
    tensors: dict[str, Tensor] = {}
    converted: dict[str, None] = {}  # in place of a set, which has no order
    for name, tensor in weights.items():
        is_dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested
        if not is_dense or tensor.dtype not in _DTYPES:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise InvalidCheckpoint(
                f"'{name}' is a tensor of another kind ({kind}); save it as float32"
            )
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        if dtype != tensor.dtype:
            converted[str(tensor.dtype).removeprefix("torch.")] = None
        # Unlike clone(), a copy into new memory leaves out what else the storage holds.
        tensors[name] = torch.empty(tensor.shape, dtype=dtype, device="cpu").copy_(tensor)
    return tensors, tuple(converted)


def _damaged(error: Exception) -> str:
    """Message for a file that cannot be read, with torch's own reason in one line."""
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return (
        f"torch cannot read it safely ({reason.splitlines()[0]:.200}); it may be cut short or "
        "damaged: download it again, or save model.state_dict() alone"
    )


# Loading.


def _load(path: Path) -> object:
    """Load the content of a file in any known format."""
    try:
        opened = open_regular(path)
    except IsADirectoryError as error:
        raise InvalidCheckpoint("it is a directory; name the file in it") from error
    except FileNotFoundError as error:
        raise InvalidCheckpoint("there is no such file") from error
    with opened as file:
        head = file.read(512)
        _refuse_other_formats(head)
        if head[8:9] == b"{":
            return _load_safetensors(path)
        is_zip = head.startswith(b"PK\x03\x04")
        if is_zip:
            _check_archive(file, path)
        return _load_torch(file, is_zip=is_zip)


def _refuse_other_formats(head: bytes) -> None:
    """Raise an error that names the format, where a file is one that users mistake for weights."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise InvalidCheckpoint("it is empty; download it again")
    if text.startswith((b"<!doctype", b"<html")):
        raise InvalidCheckpoint(
            "it is a web page; download the file itself, which GitHub calls 'raw'"
        )
    if text.startswith(b"version https://git-lfs"):
        raise InvalidCheckpoint("it is a Git LFS pointer, not the file; fetch it by: git lfs pull")
    if head[257:262] == b"ustar":
        raise InvalidCheckpoint("it is a tar, as torch 0.1 wrote; save it again by a newer torch")
    if head.startswith(b"\x1f\x8b"):
        raise InvalidCheckpoint("it is compressed by gzip; unpack it first")
    if head[8:9] != b"{" and not head.startswith((b"PK\x03\x04", b"\x80")):
        raise InvalidCheckpoint("it is no file of torch.save or safetensors, or it is damaged")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            if not is_own_metadata(file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.offset_keys()}
    except SafetensorError as error:
        raise InvalidCheckpoint(
            f"it is cut short or damaged ({error}); download it again"
        ) from error
    return read_weights(path)[0]


def _load_torch(file: BinaryIO, *, is_zip: bool) -> object:
    """Load a file of ``torch.save``: a zip archive, or a sequence of pickles before torch 1.6."""
    with _no_other_safe_globals(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch's, on what is refused below
        names = _unknown_globals(file, is_zip=is_zip)
        if blocked := sorted(name for name in names if name.split(".")[0] in _BLOCKED_MODULES):
            raise InvalidCheckpoint(
                f"it calls {', '.join(blocked)}, which no weights need; do not trust it"
            )
        try:
            return _load_with_stubs(file, names)
        except pickle.UnpicklingError as error:
            if any(name.startswith("torch.nn.modules.") for name in names):
                raise InvalidCheckpoint(
                    "it holds a whole nn.Module, code and all; where that code is trusted, load "
                    "it there and save model.state_dict() alone"
                ) from error
            raise


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Check that an archive is of ``torch.save``, and the checksum of every entry."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = {PurePosixPath(entry.filename).name for entry in entries}
            if "constants.pkl" in names:
                raise InvalidCheckpoint(
                    "it is a TorchScript archive, code and all; save model.state_dict() instead"
                )
            if "data.pkl" not in names:
                raise InvalidCheckpoint("it is a zip archive, but not of torch.save; unpack it")
            _check_claim(sum(entry.file_size for entry in entries), path)
            for entry in entries:
                # torch.load does not look at checksums. torch.save writes 0 if it is told to
                # leave them out.
                if entry.CRC != 0:
                    with archive.open(entry) as stored:
                        while stored.read(2**20):
                            pass
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile looks before the start of a damaged file
            raise
        raise InvalidCheckpoint("it is a damaged zip archive; download it again") from error


@contextlib.contextmanager
def _no_other_safe_globals() -> Iterator[None]:
    """Context in which torch forgets what others in this process have allowed files to call."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(others)


def _unknown_globals(file: BinaryIO, *, is_zip: bool) -> list[str]:
    """Full names of the classes and functions in a file that ``torch.load`` would refuse."""
    file.seek(0)
    if is_zip:
        reader = torch._C.PyTorchFileReader(file)
        _check_hashes(io.BytesIO(reader.get_record("data.pkl")))
    else:
        # torch looks for names in archives alone, so that the pickle is put into one. Before it
        # stand a magic number, a version and the sizes of numbers.
        for _ in range(4):
            start = file.tell()
            _check_hashes(file)
        end = file.tell()
        _check_hashes(file)  # of the names of the storages
        file.seek(start)
        pickled, file = file.read(end - start), io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3")
    file.seek(0)
    return torch.serialization.get_unsafe_globals_in_checkpoint(file)


def _check_hashes(file: BinaryIO) -> None:
    """Read a pickle, and check that none of its tuples has more parts than can be hashed in time.

    A tuple that holds another one twice, level by level, is a few bytes. As a key it would take
    years, in which Python obeys no signal.
    """
    stack: list[int] = []  # how many tuples each object is made of
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        taken, made = list(opcode.stack_before), list(opcode.stack_after)
        if pickletools.markobject in made:
            marks.append(len(stack))
            continue
        first = len(stack) - len(taken)
        if pickletools.markobject in taken:
            first = marks.pop() - taken.index(pickletools.markobject)
        parts = sum(stack[first:])
        del stack[first:]
        if opcode.name in {"GET", "BINGET", "LONG_BINGET"}:
            parts = memo[argument]
        elif opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo[argument] = stack[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = parts
        elif "TUPLE" in opcode.name:
            parts += 1
        elif made in ([pickletools.pydict], [pickletools.pylist]):
            parts = 0  # they cannot be keys
        if parts > _MOST_PARTS:
            raise InvalidCheckpoint("it holds tuples in tuples without end; do not trust it")
        stack += [parts] * len(made)


class _Stub:
    """Inert stand-in for an object of another program: takes anything, and keeps nothing.

    Attributes:
        container: Type of what holds its items: a dict or a list, if it had any.
    """

    __slots__ = ()  # nor can a pickle give it attributes
    container: ClassVar[type | None] = None

    def __new__(cls, *args: object) -> Any:
        return super().__new__(cls) if cls.container is None else cls.container()

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_CONTAINERS = {"SETITEM": collections.OrderedDict, "append": list}
_NO_CONTAINER = re.compile(r"Can only (SETITEM|append).* but got <class '(.+)'>")
_MAX_CONTAINERS = 16  # each costs another load of the file


def _load_with_stubs(file: BinaryIO, names: Iterable[str]) -> object:
    """Load a file by ``torch.load(weights_only=True)``, with a stub for each of the names.

    torch adds items to exact dicts and lists alone, and does not say beforehand which classes
    have items. Where it refuses to fill a stub, the file is loaded again with a dict or a list
    in its place; ``defaultdict`` is such a class.
    """
    containers: dict[str, type] = {}
    while True:
        stubs: list[Any] = [
            (type(name, (_Stub,), {"__slots__": (), "container": containers.get(name)}), name)
            for name in names
        ]
        file.seek(0)
        try:
            with torch.serialization.safe_globals(stubs):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = _NO_CONTAINER.search(str(error))
            name = "" if refused is None else refused[2].removeprefix(f"{__name__}.")
            if refused is None or name in containers or len(containers) == _MAX_CONTAINERS:
                raise
            containers[name] = _CONTAINERS[refused[1]]


# Unwrapping.


def _unwrap(content: object, *, averaged: bool) -> tuple[dict[str, Tensor], FileReport]:
    """State dict in what a training script saved, with the script's own tensors."""
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InvalidCheckpoint(
            f"it holds one {kind}, not weights by name; save model.state_dict()"
        )
    entries = first = _entries(content)
    wrappers: list[str] = []
    ignored: list[str] = []
    is_average = has_other = False
    for _ in range(_MAX_DEPTH):
        trained, average = _containers(entries)
        name = (average if averaged else trained) or trained or average
        if name is None:
            break
        is_average |= name == average
        has_other |= trained is not None and average is not None
        wrappers.append(name)
        ignored += [str(other) for other in entries if other != name]
        entries = _entries(entries[name])
    tensors = _named_tensors(entries)
    own, averages = _divided(tensors)
    if own and averages:  # a network that holds its own average
        has_other, is_average = True, averaged
        tensors = averages if averaged else own
    if not tensors:
        names = ", ".join(f"'{name!s:.40}'" for name in list(first)[:_SHOWN]) or "none"
        more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
        raise InvalidCheckpoint(f"it holds no weights; its entries are: {names}{more}")
    ignored += [str(name) for name in entries if name not in tensors]
    if own and averages and averaged:
        outer = f"{next(iter(tensors)).partition('.')[0]}."
        tensors = {name.removeprefix(outer): value for name, value in tensors.items()}
        wrappers.append(outer)
    while len(wrappers) < 2 * _MAX_DEPTH and (prefix := _common_prefix(tensors)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        wrappers.append(prefix)
    return tensors, FileReport(tuple(wrappers), tuple(ignored), is_average, has_other)


def _entries(content: dict[Any, Any]) -> dict[Any, Any]:
    """Copy of a dict from a file, whose own methods a pickle may have replaced by attributes."""
    return dict(dict.items(content))


def _containers(entries: Mapping[Any, Any]) -> tuple[str | None, str | None]:
    """Names of the entries with the trained and with the averaged weights."""
    trained = next((name for name in _TRAINED if _holds_weights(entries.get(name))), None)
    average = next((name for name in _AVERAGED if _holds_weights(entries.get(name))), None)
    meta = entries.get("meta")
    if average is not None and isinstance(meta, dict) and "mmengine_version" in meta:
        return average, trained  # mmengine's EMAHook exchanges the two when it saves
    return trained, average


def _holds_weights(value: object) -> bool:
    """Whether a value is a dict that has a tensor, or a container inside that has one."""
    waiting, seen = [value], set()
    while waiting:
        container = waiting.pop()
        if isinstance(container, dict) and id(container) not in seen:
            seen.add(id(container))
            entries = _entries(container)
            if any(isinstance(one, Tensor) for one in entries.values()):
                return True
            waiting += [entries.get(name) for name in (*_TRAINED, *_AVERAGED)]
    return False


def _named_tensors(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    # A pickle may give a tensor attributes in the place of its methods; detach() leaves them.
    tensors = {
        name: Tensor.detach(value) for name, value in entries.items() if isinstance(value, Tensor)
    }
    for name in tensors:
        if not isinstance(name, str):
            raise InvalidCheckpoint(f"its tensors have no names: one is called {name!r:.40}")
    weights = {name: value for name, value in tensors.items() if name not in _AVERAGE_COUNTERS}
    is_average = weights and all(name.startswith("module.") for name in weights)
    return weights if is_average else tensors


def _divided(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained and averaged tensors of a dict that holds both, by the first parts of their names."""
    trained: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first, dot, _ = name.partition(".")
        if first in _AVERAGED and dot:
            average[name] = tensor
        elif name not in _AVERAGE_COUNTERS:
            trained[name] = tensor
    return trained, average


def _common_prefix(names: Collection[str]) -> str | None:
    """Prefix of a wrapper that can be taken off all names, so that they stay different."""
    for prefix in _PREFIXES:
        # The head of an mmpretrain network stands beside its backbone.
        parts = (prefix, "head.") if prefix == "backbone." else (prefix,)
        stripped = {name.removeprefix(prefix) for name in names} - {""}
        if (
            all(name.startswith(parts) for name in names)
            and any(name.startswith(prefix) for name in names)
            and len(stripped) == len(names)
        ):
            return prefix
    return None
