"""Files of tensors: safetensors with a digest, written atomically and verified on reading.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: dtype,
shape and place of each tensor, and text under ``__metadata__``), and the tensors' bytes. No part
of it can run code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError
from resnet_builder.runs.files import Buffer, storage_errors, write_atomically

DIGEST = "sha256"
"""Name of the digest among the metadata."""

_LENGTH = 8
_METADATA = "__metadata__"
_BLANK = "0" * 64


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a file, atomically; equal contents make equal bytes.

    Args:
        path: Path of the file to make or replace.
        tensors: Tensors by name; on any device, in any memory format, none sharing memory with
            another.
        metadata: Text by name.

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
    write_atomically(path, _with_digest(safetensors.torch.save(on_host), metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of :func:`write_tensors`, and verify every byte of it by its digest.

    Returns:
        Tensors on the CPU by name, and the text by name.

    Raises:
        CheckpointError: The file is missing, damaged or another program's.
        StorageError: The disk is failing, or the file may not be read.
    """
    with storage_errors("read", path):
        content = _read_file(path)
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    try:
        # safetensors verifies the header; every tensor has its place in the file, and no other.
        tensors = safetensors.torch.load(content)
        metadata: dict[str, str] = json.loads(content[_LENGTH:start]).get(_METADATA, {})
    except Exception as error:  # safetensors has no error of its own for an unknown dtype
        raise CheckpointError(f"{path}: it is no sound safetensors file: {error}") from error
    digest = metadata.pop(DIGEST, None)
    if digest is None:
        raise CheckpointError(f"{path}: it has no digest: resnet-builder did not write it")
    blank = content[:start].replace(digest.encode(), _BLANK.encode(), 1)
    if _digest(blank, memoryview(content)[start:]) != digest:
        raise CheckpointError(f"{path}: it does not match its SHA-256 digest: it is damaged")
    return tensors, metadata


def _with_digest(content: bytes, metadata: Mapping[str, str]) -> list[Buffer]:
    """Add text and the digest to the header of a file."""
    # The library writes text in an order that changes from process to process.
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    entries = {_METADATA: {DIGEST: _BLANK, **dict(sorted(metadata.items()))}}
    text = json.dumps({**entries, **json.loads(content[_LENGTH:start])}, separators=(",", ":"))
    text += " " * (-len(text.encode()) % 8)  # the bytes of tensors are aligned
    header = len(text.encode()).to_bytes(_LENGTH, "little") + text.encode()
    body = memoryview(content)[start:]
    return [header.replace(_BLANK.encode(), _digest(header, body).encode(), 1), body]


def _digest(header: bytes, body: memoryview) -> str:
    """SHA-256 of a file in whose header the digest is blank."""
    digest = hashlib.sha256(header)
    digest.update(body)
    return digest.hexdigest()


def _read_file(path: Path) -> bytes:
    if path.is_file():
        return path.read_bytes()
    # A named pipe exists, too; opening it would wait for a writer.
    reason = "it is not a file" if path.exists() else "there is no such file"
    raise CheckpointError(f"{path}: {reason}")
