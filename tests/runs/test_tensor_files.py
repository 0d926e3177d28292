"""Files of tensors: what goes in comes out, and nothing else is let in."""

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
from resnet_builder.runs.tensor_files import MAX_HEADER, read_tensors, write_tensors

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
    write_tensors(path, tensors(), {"b": 'quoted "header_sha256":"', "a": "ä\n\0"})
    read, metadata = read_tensors(path)
    assert metadata == {"b": 'quoted "header_sha256":"', "a": "ä\n\0"}
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
def test_row51_tensor_that_is_not_finite_is_never_written(bad: float, path: Path) -> None:
    write_tensors(path, tensors(), {})
    before = path.read_bytes()
    with pytest.raises(NonFiniteError, match="'running_mean' holds a value that is not finite"):
        write_tensors(path, {"running_mean": torch.tensor([0.0, bad])}, {})
    assert path.read_bytes() == before


def test_row65_no_flipped_bit_goes_unnoticed(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}, {"k": "v"})
    sound = path.read_bytes()
    choose = random.Random(0)
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_tensors(path)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 1000], ids=["row65-one", "row65-many"])
def test_trailing_bytes_are_refused(extra: bytes, path: Path) -> None:
    write_tensors(path, tensors(), {})
    path.write_bytes(path.read_bytes() + extra)
    with pytest.raises(CheckpointError, match=r"its tensors take \d+ bytes, but it has \d+"):
        read_tensors(path)


def test_damage_is_told_by_digest(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3)}, {"k": "value"})
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the tensors do not match their SHA-256 digest"):
        read_tensors(path)
    path.write_bytes(sound.replace(b"value", b"vapue"))
    with pytest.raises(CheckpointError, match="the header does not match its SHA-256 digest"):
        read_tensors(path)


LAYOUTS: dict[str, tuple[object, bytes, str]] = {
    "overlapping": ({"a": HALVES, "b": HALVES}, bytes(8), "'b' starts at byte 0, not at 8"),
    "hole": (
        {"a": HALVES, "b": {**HALVES, "data_offsets": [12, 20]}},
        bytes(20),
        "'b' starts at byte 12, not at 8",
    ),
    "late-start": ({"a": {**HALVES, "data_offsets": [4, 12]}}, bytes(12), "not at 0"),
    "trailing": ({"a": HALVES}, bytes(9), "take 8 bytes, but it has 9"),
    "missing": ({"a": HALVES}, bytes(7), "take 8 bytes, but it has 7"),
    "reversed": ({"a": {**HALVES, "data_offsets": [8, 0]}}, bytes(8), "does not take -8 bytes"),
    "negative": ({"a": {**HALVES, "data_offsets": [-8, 0]}}, b"", "not whole numbers from 0"),
    "dtype-lie": ({"a": {**HALVES, "dtype": "F64"}}, bytes(8), "does not take 8 bytes"),
    "shape-lie": ({"a": {**HALVES, "shape": [3]}}, bytes(8), "does not take 8 bytes"),
    "overflow": (
        {"a": {**HALVES, "shape": [2**62, 4, 2]}},
        bytes(8),
        "does not take 8 bytes",  # but 0 bytes in 64 bits
    ),
    "huge-size": ({"a": {**HALVES, "shape": [2**63]}}, bytes(8), "not whole numbers from 0"),
    "fraction": ({"a": {**HALVES, "shape": [2.0]}}, bytes(8), "not whole numbers from 0"),
    "boolean": ({"a": {**HALVES, "shape": [2, True]}}, bytes(8), "not whole numbers from 0"),
    "dimensions": ({"a": {**HALVES, "shape": [2] + [1] * 99}}, bytes(8), "not known here"),
    "unknown-dtype": ({"a": {**HALVES, "dtype": "C64"}}, bytes(8), "not known here"),
    "unknown-key": ({"a": {**HALVES, "strides": [1]}}, bytes(8), "not known here"),
    "no-shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8), "not described by"),
    "three-offsets": ({"a": {**HALVES, "data_offsets": [0, 4, 8]}}, bytes(8), "not described by"),
    "not-a-mapping": ({"a": [1, 2]}, b"", "not described by"),
    "metadata-numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not text"),
    "metadata-list": ({"__metadata__": []}, b"", "__metadata__ is not text"),
    "no-digests": ({"a": HALVES}, bytes(8), "resnet-builder did not write it"),
    "duplicate-tensor": (
        f'{{"a":{json.dumps(HALVES)},"a":{json.dumps(HALVES)}}}',
        bytes(8),
        "a key stands twice",
    ),
    "duplicate-inside": (
        '{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        bytes(8),
        "a key stands twice",
    ),
    "escaped-duplicate": (r'{"a":1,"\u0061":1}', b"", "a key stands twice"),
    "not-a-number": ('{"a":NaN}', b"", "NaN is no JSON"),
    "array": ("[]", b"", "no safetensors header"),
    "space-first": (" {}", b"", "no safetensors header"),
    "half-json": ('{"a":', b"", "not JSON"),
    "latin-1": (b'{"\xe9":1}', b"", "not JSON"),
    "deep": ('{"a":' + "[" * 100_000, b"", "not JSON"),
    "long-number": ('{"a":' + "9" * 10_000 + "}", b"", "not JSON"),
}


@pytest.mark.parametrize("name", LAYOUTS, ids=lambda name: f"row68-{name}")
def test_layout_that_does_not_hold_together_is_refused(name: str, path: Path) -> None:
    header, body, reason = LAYOUTS[name]
    craft(path, header, body)
    with pytest.raises(CheckpointError, match=reason):
        read_tensors(path)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**32, 2**63, 2**64 - 1])
def test_row68_huge_header_is_refused_unread(length: int, path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(2**40)  # sparse: reading it would take minutes and all memory
    with pytest.raises(CheckpointError, match=f"its header has {length} bytes, more than"):
        read_tensors(path)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_row68_pickle_is_refused_unread(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path.write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(CheckpointError, match="its header has"):
        read_tensors(path)
    torch.save({"a": _Canary(canary)}, path)
    with pytest.raises(CheckpointError, match="its header has"):
        read_tensors(path)
    assert not canary.exists()


@pytest.mark.parametrize("size", range(8))
def test_row65_file_without_a_header_is_cut_short(size: int, path: Path) -> None:
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"it has {size} bytes: it is empty or cut short"):
        read_tensors(path)


def test_other_programs_tensors_are_not_trusted(path: Path) -> None:
    path.write_bytes(save({"a": torch.ones(2)}, {"format": "pt"}))
    with pytest.raises(CheckpointError, match="no digests: resnet-builder did not write it"):
        read_tensors(path)


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: there is no such file"):
        read_tensors(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="it is not a file"):
        read_tensors(path)


@pytest.mark.skipif(os.name == "nt", reason="it cannot be opened at all there")
def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is not a file"):
        read_tensors(tmp_path)


def test_failing_disk_is_not_taken_for_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(path, tensors(), {})

    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*Permission denied"):
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
