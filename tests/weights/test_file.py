"""Own files: what goes in comes out, with its header; nothing damaged or foreign is let in."""

import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
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


def test_weights_and_header_are_read_as_they_were_saved(path: Path) -> None:
    save_weights(path, tensors(), HEADER, text={"classes": "for others"})
    read, header = read_weights(path)
    check(read, tensors())
    assert header == HEADER
    assert header.version == package_version()


def test_facts_that_an_import_does_not_know_are_left_out(path: Path) -> None:
    header = IMPORTED.model_copy(update={"mean": None, "std": None})
    save_weights(path, tensors(), header)
    _, read = read_weights(path)
    assert read == header
    assert (read.classes, read.mean, read.std, read.step) == (None, None, None, None)
    assert read.source == Origin(file="model.th", layout="akamaster")


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


def test_header_that_could_not_be_read_again_is_not_made() -> None:
    fields = HEADER.model_dump(exclude={"metrics"})
    with pytest.raises(ValidationError, match="finite number"):
        WeightsHeader(**fields, metrics={"val.loss": float("nan")})


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


@pytest.mark.parametrize("sixteenth", range(17))
def test_file_that_is_cut_short_or_too_long_is_refused(sixteenth: int, path: Path) -> None:
    save_weights(path, tensors(), HEADER)
    whole = path.read_bytes() + b"\0"
    path.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(
        CheckpointError, match=r"best\.safetensors: it is no sound safetensors file"
    ):
        read_weights(path)


def test_damage_is_found_by_the_digest(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(3)}, {"k": "value"})
    sound = path.read_bytes()
    for damaged in (sound[:-1] + bytes([sound[-1] ^ 1]), sound.replace(b"value", b"vapue")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="it does not match its SHA-256 digest"):
            read_tensors(path)


def test_random_damage_never_escapes_as_another_error(path: Path) -> None:
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


HALVES = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HEADERS = {
    "overlapping": f'{{"a":{HALVES},"b":{HALVES}}}',
    "shape-lie": '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
    "overflow": f'{{"a":{{"dtype":"F32","shape":[{2**62},4,2],"data_offsets":[0,8]}}}}',
    "late-start": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "unknown-dtype": '{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
    "metadata-numbers": f'{{"__metadata__":{{"a":1}},"a":{HALVES}}}',
    "half-json": '{"a":',
    "deep": '{"a":' + "[" * 100_000,
    "no-digest": f'{{"a":{HALVES}}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_does_not_hold_together_is_refused(name: str, path: Path) -> None:
    header = HEADERS[name].encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"best\.safetensors: it "):
        read_tensors(path)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickle_is_refused_unread(path: Path, tmp_path: Path) -> None:
    canary = _Canary(tmp_path / "canary")
    path.write_bytes(pickle.dumps(canary))
    with pytest.raises(CheckpointError, match="it is no sound safetensors file"):
        read_weights(path)
    torch.save({"a": canary}, path)
    with pytest.raises(CheckpointError, match="it is no sound safetensors file"):
        read_weights(path)
    assert not canary.path.exists()


def test_other_files_of_tensors_are_refused(path: Path) -> None:
    safetensors.torch.save_file({"conv1.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="resnet-builder did not write it"):
        read_weights(path)
    write_tensors(path, tensors(), {"checkpoint": "{}"})
    with pytest.raises(CheckpointError, match="it holds no weights that a run delivered"):
        read_weights(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_missing_file_directory_and_pipe_are_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: there is no such file"):
        read_weights(path)
    with pytest.raises(CheckpointError, match="it is not a file"):
        read_weights(path.parent)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="it is not a file"):
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
