"""Files of tensors: what goes in comes out, and nothing else is let in."""

import errno
import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError, StorageError
from resnet_builder.runs.tensor_files import read_tensors, write_tensors

HALVES = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def tensors() -> dict[str, Tensor]:
    return {
        "weight": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "count": torch.tensor(7),
        "rng": torch.arange(5, dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def craft(path: Path, header: object, body: bytes = b"") -> None:
    """Write a file with a header of one's own; text and bytes are taken as they are."""
    if isinstance(header, str):
        header = header.encode()
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def test_what_is_written_is_read(path: Path) -> None:
    write_tensors(path, tensors(), {"b": 'quoted "sha256":"', "a": "ä\n\0"})
    read, metadata = read_tensors(path)
    assert metadata == {"b": 'quoted "sha256":"', "a": "ä\n\0"}
    assert read.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        assert read[name].is_contiguous()
        assert torch.equal(read[name], tensor)


def test_order_in_memory_does_not_change_the_bytes(path: Path) -> None:
    metadata = {letter: letter for letter in "qwertyuiop"}
    write_tensors(path, tensors(), metadata)
    first = path.read_bytes()
    reordered = dict(reversed(tensors().items()))
    reordered["weight"] = reordered["weight"].contiguous()
    write_tensors(path, reordered, dict(reversed(metadata.items())))
    assert path.read_bytes() == first


def test_other_programs_read_the_file(path: Path) -> None:
    write_tensors(path, tensors(), {"a": "text"})
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == tensors().keys()
        assert file.metadata()["a"] == "text"
        assert torch.equal(file.get_tensor("weight"), tensors()["weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensor_that_is_not_finite_is_never_written(bad: float, path: Path) -> None:
    write_tensors(path, tensors(), {})
    before = path.read_bytes()
    with pytest.raises(NonFiniteError, match="'running_mean' holds a value that is not finite"):
        write_tensors(path, {"running_mean": torch.tensor([0.0, bad])}, {})
    assert path.read_bytes() == before


def test_no_flipped_bit_goes_unnoticed(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}, {"k": "v"})
    sound = path.read_bytes()
    choose = random.Random(0)
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_tensors(path)


def test_damage_is_named(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3)}, {"k": "value"})
    sound = path.read_bytes()
    for damaged in (sound[:-1] + bytes([sound[-1] ^ 1]), sound.replace(b"value", b"vapue")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="it does not match its SHA-256 digest"):
            read_tensors(path)
    for damaged in (sound[:-1], sound + b"\0", sound + b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no sound safetensors file: "):
            read_tensors(path)


LAYOUTS: dict[str, tuple[object, bytes]] = {
    "overlapping": ({"a": HALVES, "b": HALVES}, bytes(8)),
    "hole": ({"a": HALVES, "b": {**HALVES, "data_offsets": [12, 20]}}, bytes(20)),
    "late-start": ({"a": {**HALVES, "data_offsets": [4, 12]}}, bytes(12)),
    "trailing": ({"a": HALVES}, bytes(9)),
    "missing": ({"a": HALVES}, bytes(7)),
    "reversed": ({"a": {**HALVES, "data_offsets": [8, 0]}}, bytes(8)),
    "negative": ({"a": {**HALVES, "data_offsets": [-8, 0]}}, b""),
    "dtype-lie": ({"a": {**HALVES, "dtype": "F64"}}, bytes(8)),
    "shape-lie": ({"a": {**HALVES, "shape": [3]}}, bytes(8)),
    "overflow": ({"a": {**HALVES, "shape": [2**62, 4, 2]}}, bytes(8)),  # 0 bytes in 64 bits
    "huge-size": ({"a": {**HALVES, "shape": [2**63]}}, bytes(8)),
    "fraction": ({"a": {**HALVES, "shape": [2.0]}}, bytes(8)),
    "boolean": ({"a": {**HALVES, "shape": [2, True]}}, bytes(8)),
    "dimensions": ({"a": {**HALVES, "shape": [2] + [1] * 99}}, bytes(8)),
    "unknown-dtype": ({"a": {**HALVES, "dtype": "F128"}}, bytes(8)),
    "half-bytes": ({"a": {**HALVES, "dtype": "F4", "shape": [16]}}, bytes(8)),
    "no-shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "three-offsets": ({"a": {**HALVES, "data_offsets": [0, 4, 8]}}, bytes(8)),
    "not-a-mapping": ({"a": [1, 2]}, b""),
    "metadata-numbers": ({"__metadata__": {"a": 1}}, b""),
    "metadata-list": ({"__metadata__": []}, b""),
    "no-digest": ({"a": HALVES}, bytes(8)),
    "duplicate-inside": (
        '{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "not-a-number": ('{"a":NaN}', b""),
    "array": ("[]", b""),
    "space-first": (" {}", b""),
    "half-json": ('{"a":', b""),
    "latin-1": (b'{"\xe9":1}', b""),
    "deep": ('{"a":' + "[" * 100_000, b""),
    "long-number": ('{"a":' + "9" * 10_000 + "}", b""),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_header_that_does_not_describe_its_bytes_is_refused(name: str, path: Path) -> None:
    craft(path, *LAYOUTS[name])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: it "):
        read_tensors(path)


@pytest.mark.parametrize("length", [2**24 + 1, 2**32, 2**63, 2**64 - 1])
def test_huge_header_is_refused_unread(length: int, path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(2**40)  # sparse: reading it would take minutes and all memory
    with pytest.raises(CheckpointError, match="it is no sound safetensors file"):
        read_tensors(path)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickle_is_refused_unread(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for write in (
        lambda: path.write_bytes(pickle.dumps(_Canary(canary))),
        lambda: torch.save({"a": _Canary(canary)}, path),
    ):
        write()
        with pytest.raises(CheckpointError, match="it is no sound safetensors file"):
            read_tensors(path)
    assert not canary.exists()


@pytest.mark.parametrize("size", range(9))
def test_file_without_a_header_is_refused(size: int, path: Path) -> None:
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="it is no sound safetensors file"):
        read_tensors(path)


def test_other_programs_tensors_are_not_trusted(path: Path) -> None:
    path.write_bytes(save({"a": torch.ones(2)}, {"format": "pt"}))
    with pytest.raises(CheckpointError, match="no digest: resnet-builder did not write it"):
        read_tensors(path)


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: there is no such file"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="it is not a file"):
        read_tensors(tmp_path)
    if hasattr(os, "mkfifo"):  # where there are named pipes, none is waited for
        os.mkfifo(path)
        with pytest.raises(CheckpointError, match="it is not a file"):
            read_tensors(path)


def test_failing_disk_is_not_taken_for_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(path, tensors(), {})

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StorageError, match=r"cannot read .*Input/output error"):
        read_tensors(path)


def test_random_headers_never_escape_as_another_error(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3)}, {"k": "v"})
    sound = path.read_bytes()
    choose = random.Random(1)
    for _ in range(500):
        damaged = bytearray(sound)
        for _ in range(choose.randrange(1, 6)):
            start = choose.randrange(len(damaged))
            damaged[start : start + choose.randrange(4)] = choose.randbytes(choose.randrange(4))
        if damaged == sound:
            continue
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_tensors(path)
