"""Tensors on disk: safetensors files that carry their own digests and are checked before use.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: for
each tensor its dtype, shape and span, and text under ``__metadata__``), and the tensors' bytes.
No part of it can run code. The library reads and writes the bytes; before it sees any, the
layout is checked here, since what it guarantees has varied with its versions. The digests find
accidents, not attackers.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError
from resnet_builder.runs.files import Buffer, storage_errors, write_atomically

MAX_HEADER = 16 * 2**20
"""Bytes; the header of ResNet-1202's checkpoint with an averaged copy takes 1.8 million."""

_PREFIX = 8
_ALIGNMENT = 8
_METADATA = "__metadata__"
_BODY_DIGEST = "sha256"
_HEADER_DIGEST = "header_sha256"
_BLANK = "0" * hashlib.sha256().digest_size * 2
_MAX_DIMENSIONS = 16

_ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "F16": 2,
    "BF16": 2,
    "F32": 4,
    "F64": 8,
}


class _Unsound(Exception):
    """Why a file is not what it should be."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a file, atomically; equal contents make equal bytes.

    Args:
        path: The file to make or replace.
        tensors: By name; on any device, in any memory format, none sharing memory with another.
        metadata: Text, by name.

    Raises:
        NonFiniteError: A tensor holds a value that is infinite or not a number.
        StorageError: The disk is full, read-only or failing.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in on_host.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{path} is not written: '{name}' holds a value that is not finite"
            )
    write_atomically(path, _seal(safetensors.torch.save(on_host), metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of :func:`write_tensors` and verify every byte of it.

    Returns:
        The tensors, on the CPU, and the text.

    Raises:
        CheckpointError: The file is missing, damaged or another program's, and why.
        StorageError: The disk is failing, or the file may not be read.
    """
    with storage_errors("read", path):
        try:
            return _read(path)
        except _Unsound as error:
            raise CheckpointError(f"{path}: {error}") from error
        except FileNotFoundError:
            raise CheckpointError(f"{path}: there is no such file") from None


def _seal(blob: bytes, metadata: Mapping[str, str]) -> list[Buffer]:
    """Write the library's header anew: with digests, and with text in an order that is fixed."""
    start = _PREFIX + int.from_bytes(blob[:_PREFIX], "little")
    body = memoryview(blob)[start:]
    text = dict(sorted(metadata.items()))
    text[_BODY_DIGEST] = hashlib.sha256(body).hexdigest()
    text[_HEADER_DIGEST] = _BLANK
    entries = {_METADATA: text, **json.loads(blob[_PREFIX:start])}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    digest = hashlib.sha256(header).hexdigest()
    header = header.replace(_digest_entry(_BLANK), _digest_entry(digest))
    return [len(header).to_bytes(_PREFIX, "little"), header, body]


def _digest_entry(digest: str) -> bytes:
    """The one place in a header that can read like this: inside text, quotes are escaped."""
    return f'"{_HEADER_DIGEST}":"{digest}"'.encode()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(_PREFIX)
        header = file.read(_header_length(prefix, size))
        entries = _parse(header)
        metadata = _check_metadata(entries.pop(_METADATA, {}))
        _check_layout(entries, size - _PREFIX - len(header))
        _check_header_digest(header, metadata)
        file.seek(0)
        blob = file.read(size)
    body = memoryview(blob)[_PREFIX + len(header) :]
    if hashlib.sha256(body).hexdigest() != metadata.pop(_BODY_DIGEST, None):
        raise _Unsound("the tensors do not match their SHA-256 digest: it is damaged")
    return _load(blob), metadata


def _open_file(path: Path) -> BinaryIO:
    # Opening a pipe would otherwise wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _Unsound("it is not a file")
    return open(descriptor, "rb")


def _load(blob: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(blob)
    except SafetensorError as error:
        raise _Unsound(f"safetensors refuses it: {error}") from error


def _header_length(prefix: bytes, file_size: int) -> int:
    if len(prefix) < _PREFIX:
        raise _Unsound(f"it has {file_size} bytes: it is empty or cut short")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise _Unsound(f"it says that its header has {length} bytes, more than {MAX_HEADER}")
    if length > file_size - _PREFIX:
        raise _Unsound("it is shorter than its header: it is cut short")
    return length


def _parse(header: bytes) -> dict[str, Any]:
    """Read the header as JSON, with nothing in it that two readers could read differently."""
    if not header.startswith(b"{"):
        raise _Unsound("it has no safetensors header")
    try:
        entries: dict[str, Any] = json.loads(
            header.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise _Unsound(f"its header is not JSON: {error}") from error
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice")
    return entries


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Unsound(f"its {_METADATA} is not text by name")
    return dict(metadata)


def _check_layout(entries: Mapping[str, Any], body_size: int) -> None:
    """Check that the tensors fill the body exactly, each by its own dtype and shape."""
    spans = sorted(_span(name, entry) for name, entry in entries.items())
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise _Unsound(f"'{name}' starts at byte {begin}, not at {position}")
        position = end
    if position != body_size:
        raise _Unsound(f"its tensors take {position} bytes, but it has {body_size}")


def _span(name: str, entry: object) -> tuple[int, int, str]:
    """Return the bytes, from and to, of a tensor whose description holds together."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            numbers = [begin, end, *shape]
        case _:
            raise _Unsound(f"'{name}' is not described by dtype, shape and data_offsets")
    if rest or dtype not in _ITEM_SIZES or len(shape) > _MAX_DIMENSIONS:
        raise _Unsound(f"'{name}' has a dtype, shape or key that is not known here")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise _Unsound(f"'{name}' has sizes that are not whole numbers from 0")
    if math.prod(shape) * _ITEM_SIZES[dtype] != end - begin:
        raise _Unsound(f"'{name}' of {dtype} {shape} does not take {end - begin} bytes")
    return begin, end, name


def _check_header_digest(header: bytes, metadata: dict[str, str]) -> None:
    digest = metadata.pop(_HEADER_DIGEST, None)
    if digest is None:
        raise _Unsound("it has no digests: resnet-builder did not write it")
    blank = header.replace(_digest_entry(digest), _digest_entry(_BLANK))
    if hashlib.sha256(blank).hexdigest() != digest:
        raise _Unsound("the header does not match its SHA-256 digest: it is damaged")
