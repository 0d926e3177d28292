"""Own files: what goes in comes out, with its header; nothing damaged or foreign is let in."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError, StorageError, UsageError
from resnet_builder.runs.records import package_version
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb
from resnet_builder.weights.file import (
    Origin,
    WeightsHeader,
    read_tensors,
    read_weights,
    save_weights,
    write_tensors,
)

HEADER = WeightsHeader(
    spec='name: "tiny"\n',
    classes=("Katze", "犬"),
    mean=(0.1, 1 / 3, 0.5),
    std=(0.2, 0.25, 0.3),
    preprocess=(
        ToRgb(type="to_rgb"),
        Resize(type="resize", size=40),
        CenterCrop(type="center_crop", size=32),
    ),
    metrics={"val.top1": 0.9251, "test.top1": 1 / 3},
    step=64_000,
)

IMPORTED = WeightsHeader(
    spec='name: "tiny"\n',
    mean=(0.1,),
    std=(0.2,),
    source=Origin(file="model.th", layout="akamaster"),
)


UNKNOWN = IMPORTED.model_copy(update={"mean": None, "std": None})


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
    return tmp_path / "best.safetensors"


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].is_contiguous()
        assert torch.equal(found[name], tensor)


def test_tensors_and_text_are_read_as_they_were_written(path: Path) -> None:
    text = {"b": 'quoted "sha256":"', "a": "ä\n\0", "zeros": "0" * 64}
    write_tensors(path, tensors(), text)
    read, metadata = read_tensors(path)
    assert metadata == text
    check(read, tensors())


@pytest.mark.parametrize("header", [HEADER, IMPORTED, UNKNOWN], ids=["run", "import", "unknown"])
def test_weights_and_header_are_read_as_they_were_saved(header: WeightsHeader, path: Path) -> None:
    save_weights(path, tensors(), header, text={"classes": "for others"})
    read, found = read_weights(path)
    check(read, tensors())
    assert found == header
    assert found.version == package_version()


def test_equal_contents_make_equal_bytes(path: Path) -> None:
    text = {letter: letter for letter in "qwertyuiop"}
    write_tensors(path, tensors(), text)
    first = path.read_bytes()
    reordered = dict(reversed(tensors().items()))
    reordered["weight"] = reordered["weight"].contiguous()
    write_tensors(path, reordered, dict(reversed(text.items())))
    assert path.read_bytes() == first


def test_other_programs_read_the_file(path: Path) -> None:
    write_tensors(path, tensors(), {"a": "text"})
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == tensors().keys()
        assert file.metadata()["a"] == "text"
        assert torch.equal(file.get_tensor("weight"), tensors()["weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_replace_nothing(bad: float, path: Path) -> None:
    save_weights(path, tensors(), HEADER)
    before = path.read_bytes()
    with pytest.raises(NonFiniteError, match="'running_mean' holds a value that is not finite"):
        save_weights(path, {"running_mean": torch.tensor([0.0, bad])}, HEADER)
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
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="it does not match its SHA-256 digest"):
        read_tensors(path)


HALVES = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HEADERS = {
    "overlapping": f'{{"a":{HALVES},"b":{HALVES}}}',
    "shape-overflow": f'{{"a":{{"dtype":"F32","shape":[{2**62},4,2],"data_offsets":[0,8]}}}}',
    "shape-lie": '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
    "unknown-dtype": '{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
    "metadata-numbers": f'{{"__metadata__":{{"a":1}},"a":{HALVES}}}',
    "deep": '{"a":' + "[" * 100_000,
    "no-digest": f'{{"a":{HALVES}}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_does_not_hold_together_is_refused(name: str, path: Path) -> None:
    header = HEADERS[name].encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"best\.safetensors: it "):
        read_tensors(path)


class Canary:
    """Object that makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickle_is_refused_unread(path: Path, tmp_path: Path) -> None:
    torch.save({"a": Canary(tmp_path / "canary")}, path)
    with pytest.raises(CheckpointError, match="convert it first: resnet-build import"):
        read_weights(path)
    assert not (tmp_path / "canary").exists()


def test_other_files_of_tensors_are_refused(path: Path) -> None:
    safetensors.torch.save_file({"conv1.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="resnet-builder did not write it"):
        read_weights(path)
    write_tensors(path, tensors(), {"checkpoint": "{}"})
    with pytest.raises(CheckpointError, match="it is a checkpoint, which only resumes its run"):
        read_weights(path)


def test_file_that_is_cut_short_or_too_long_is_refused(path: Path) -> None:
    save_weights(path, tensors(), HEADER)
    whole = path.read_bytes()
    for content in (whole + b"\0", *(whole[: len(whole) * part // 16] for part in range(16))):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"best\.safetensors: it is not a valid safetensors"
        ):
            read_weights(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_missing_file_directory_and_pipe_are_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: there is no such file"):
        read_weights(path)
    with pytest.raises(StorageError, match="it is a directory, not a regular file"):
        read_weights(path.parent)
    os.mkfifo(path)
    with pytest.raises(StorageError, match="it is a FIFO, not a regular file"):
        read_weights(path)


def test_failing_disk_is_not_taken_for_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(path, tensors(), {})

    def refuse(*arguments: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*Permission denied"):
        read_tensors(path)


def test_newer_header_asks_to_upgrade(path: Path) -> None:
    write_tensors(path, tensors(), {"resnet_builder": '{"format": 2, "all": "is different"}'})
    with pytest.raises(UsageError, match=r"newer resnet-builder \(schema 2; .* upgrade"):
        read_weights(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON"),
        ("{}", "format: Field required"),
        ('{"format": 1}', "spec: Field required"),
        (HEADER.model_dump_json().replace("to_rgb", "to_cmyk"), r"preprocess\.0: .*'to_cmyk'"),
        (HEADER.model_dump_json(exclude={"classes"}), "classes: Field required"),
        (HEADER.model_dump_json(exclude={"step"}), "step: Field required"),
        (IMPORTED.model_dump_json(exclude={"std"}), "std: Field required"),
        (IMPORTED.model_dump_json(exclude={"mean"}), "mean: Field required"),
    ],
)
def test_header_that_says_too_little_is_named(text: str, reason: str, path: Path) -> None:
    write_tensors(path, tensors(), {"resnet_builder": text})
    with pytest.raises(CheckpointError, match=f"its header is damaged: {reason}"):
        read_weights(path)
