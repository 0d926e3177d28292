"""Files of tensors: safetensors with a digest that is verified before use.

No part of such a file can run code, and the library refuses a header that does not describe its
bytes. The digest finds accidents, not attackers.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError
from resnet_builder.runs.files import Buffer, storage_errors, write_atomically

_DIGEST = "sha256"
_PREFIX = 8  # bytes of the header's length, which a file begins with


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a file, atomically; equal contents make equal bytes.

    Args:
        path: The file to make or replace.
        tensors: Tensors by name, on any device, in any memory format, none sharing memory.
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
    text = dict(sorted(metadata.items()))
    text[_DIGEST] = _digest(on_host, metadata)
    write_atomically(path, _serialize(on_host, text))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of :func:`write_tensors` and verify every byte of it.

    Returns:
        The tensors, on the CPU, and the text.

    Raises:
        CheckpointError: The file is missing, damaged or another program's.
        StorageError: The disk is failing, or the file may not be read.
    """
    with storage_errors("read", path):
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file")
        if not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: it is not a file")
        path.open("rb").close()  # Python's errors of opening name their cause
        try:
            # The header is checked before anything large is read. The tensors are then read, not
            # mapped: a failing disk is an error of reading, but kills a process that maps it.
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
            tensors = safetensors.torch.load(path.read_bytes())
        except (SafetensorError, KeyError) as error:  # a KeyError is a dtype that torch lacks
            raise CheckpointError(f"{path}: it is no sound safetensors file: {error}") from error
    expected = metadata.pop(_DIGEST, None)
    if expected is None:
        raise CheckpointError(f"{path}: it has no digest: resnet-builder did not write it")
    if _digest(tensors, metadata) != expected:
        raise CheckpointError(f"{path}: it does not match its SHA-256 digest: it is damaged")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _serialize(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[Buffer]:
    """Return a file's bytes; the library would write the text in a random order."""
    blob = safetensors.torch.save(tensors)
    start = _PREFIX + int.from_bytes(blob[:_PREFIX], "little")
    entries = {"__metadata__": metadata, **json.loads(blob[_PREFIX:start])}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [len(header).to_bytes(_PREFIX, "little"), header, memoryview(blob)[start:]]
