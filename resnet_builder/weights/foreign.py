"""Weights from other programs' files: what ``torch.save`` and safetensors wrote, made plain."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError, UsageError, visible
from resnet_builder.runs.files import storage_errors
from resnet_builder.weights.file import WeightsHeader, read_weights
from resnet_builder.weights.refusal import Refused, damaged
from resnet_builder.weights.torch_files import read_torch_pickles, read_torch_zip
from resnet_builder.weights.unwrapping import unwrap

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}

_TORCH = "torch"
_OLD_TORCH = "torch before 1.6"
_SAFETENSORS = "safetensors"
_OURS = "resnet-builder"
_OUR_ENTRIES = {"resnet_builder", "sha256"}
"""In the header of our files; any of them is enough, so that a damaged one is not let through."""

_HEAD = 512
_LENGTH = 8
_MAX_HEADER = 16 * 2**20
_TAR = slice(257, 262)


@dataclass(frozen=True, slots=True, eq=False)
class ForeignWeights:
    """A state dict, and what was done to get at it.

    Attributes:
        tensors: On the CPU, by name without any wrapper's prefix, in the file's order; floats as
            float32. All are contiguous and none shares memory with another.
        wrappers: What was taken off, outermost first: ``("state_dict", "module.")``.
        averaged: Whether they are averaged weights.
        has_other: Whether the file has the others too: averaged, or as trained.
        ignored: The other entries, by name.
        converted: The floating-point types that were made float32: ``("float16",)``.
        format: ``torch``, ``torch before 1.6``, ``safetensors`` or ``resnet-builder``.
        header: What stands beside weights that resnet-builder wrote.
    """

    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...]
    averaged: bool
    has_other: bool
    ignored: tuple[str, ...]
    converted: tuple[str, ...]
    format: str
    header: WeightsHeader | None


def read_foreign(path: Path, *, ema: bool = False) -> ForeignWeights:
    """Read weights, whichever program wrote them; nothing in the file is run.

    Args:
        path: The file; its content decides what it is, not its ending.
        ema: Take the averaged weights, not those last trained.

    Raises:
        CheckpointError: The file is missing or damaged, or holds no weights that can be read
            safely.
        NonFiniteError: A weight is infinite or not a number.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: There are no averaged weights, or a newer resnet-builder wrote the file.
    """
    with storage_errors("read", path):
        try:
            return _read(path, ema)
        except Refused as error:
            raise CheckpointError(f"{path}: {visible(str(error))}") from error


def _read(path: Path, ema: bool) -> ForeignWeights:
    content, format_, header = _read_content(path)
    found = unwrap(content, averaged=ema)
    if ema and not found.averaged:
        raise UsageError(f"{path} holds no averaged weights; take the trained ones")
    dtypes = dict.fromkeys(
        str(tensor.dtype) for tensor in found.tensors.values() if _is_converted(tensor)
    )
    return ForeignWeights(
        tensors={name: _plain(path, name, tensor) for name, tensor in found.tensors.items()},
        wrappers=found.wrappers,
        averaged=found.averaged,
        has_other=found.has_other,
        ignored=found.ignored,
        converted=tuple(dtype.removeprefix("torch.") for dtype in dtypes),
        format=format_,
        header=header,
    )


def _read_content(path: Path) -> tuple[object, str, WeightsHeader | None]:
    """Read what a file holds, whatever it is, and say in which format."""
    if not path.is_file():  # a pipe would be waited for
        raise Refused(_no_file(path))
    with path.open("rb") as file:
        format_ = _recognise(file)
        file.seek(0)
        if format_ == _TORCH:
            return read_torch_zip(file), format_, None
        if format_ == _OLD_TORCH:
            return read_torch_pickles(file), format_, None
    return _read_safetensors(path)


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "it is a directory; name the file in it"
    return "it is not a file" if path.exists() else "there is no such file"


def _recognise(file: BinaryIO) -> str:
    """Find a file's format by how it begins."""
    head = file.read(_HEAD)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise Refused("it is empty; download it again")
    if text.startswith((b"<!doctype", b"<html")):
        raise Refused("it is a web page; download the file itself, which GitHub calls 'raw'")
    if text.startswith(b"version https://git-lfs"):
        raise Refused("it is a pointer of Git LFS, not the file; fetch that by: git lfs pull")
    if head[_TAR] == b"ustar":
        raise Refused("it is a tar, as torch 0.1 wrote them; save it again, by a newer torch")
    if head.startswith(b"\x1f\x8b"):
        raise Refused("it is compressed by gzip; unpack it first")
    length = int.from_bytes(head[:_LENGTH], "little")
    if head[_LENGTH : _LENGTH + 1] == b"{" and length <= _MAX_HEADER:
        return _SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return _TORCH
    if head.startswith(b"\x80"):
        return _OLD_TORCH
    raise Refused("it is no file of torch.save or safetensors, or it is damaged")


def _read_safetensors(path: Path) -> tuple[object, str, WeightsHeader | None]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            if not _OUR_ENTRIES & (file.metadata() or {}).keys():
                return (
                    {name: file.get_tensor(name) for name in file.offset_keys()},
                    _SAFETENSORS,
                    None,
                )
    except SafetensorError as error:
        raise damaged(error) from error
    weights, header = read_weights(path)
    return weights, _OURS, header


def _is_converted(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Copy a tensor, so that it is contiguous and alone in its memory."""
    if tensor.dtype not in _FLOATS | _INTEGERS:
        raise Refused(f"'{name}' is a tensor of {tensor.dtype}; save it as float32")
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    plain = torch.empty(tensor.shape, dtype=dtype, device="cpu").copy_(tensor.detach())
    if plain.is_floating_point() and not torch.isfinite(plain).all():
        raise NonFiniteError(f"{path}: '{visible(name)}' holds a value that is not finite")
    return plain
