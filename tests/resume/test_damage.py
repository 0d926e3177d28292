"""Checkpoints that are damaged, hostile or of something else, as the command line meets them."""

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.errors import CheckpointError
from resnet_builder.runs.records import EnvRecord
from resnet_builder.training.checkpoint import load_newest
from resnet_builder.weights.file import read_tensors, write_tensors
from tests.crash.experiments import left
from tests.crash.killing import assert_equal
from tests.resume.conftest import Interrupted

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda sound: sound[: len(sound) * 15 // 16],
    "empty": lambda _: b"",
    "flipped": lambda sound: sound[:-9] + bytes([sound[-9] ^ 4]) + sound[-8:],
    "trailing": lambda sound: sound + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda name: f"row65-{name}")
def test_damaged_newest_costs_only_the_steps_since_the_one_before(
    damage: str, interrupted: Interrupted
) -> None:
    newest = interrupted.newest
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    result = interrupted.resume()
    assert result.exit_code == 0, result.stderr
    assert f"warning: {newest}: " in result.stderr
    assert "; going back to the checkpoint before it\n" in result.stderr
    assert "training from step 9 of 14" in result.stderr
    assert newest.with_name(f"{newest.name}.corrupt").is_file()
    assert_equal(left(interrupted.run.path), interrupted.expected)


def test_row66_run_whose_checkpoints_are_all_damaged_is_never_started_over(
    interrupted: Interrupted,
) -> None:
    paths = sorted(interrupted.run.checkpoints.iterdir())
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    damaged = {path: path.read_bytes() for path in paths}
    for _ in range(2):
        result = interrupted.resume()
        assert result.exit_code == 4
        error, *reasons = result.stderr.splitlines()[-1 - len(paths) :]
        assert error == f"error: no checkpoint of {interrupted.run.path} can be used:"
        named = [path for path in paths for line in reasons if line.startswith(f"{path}: ")]
        assert named == paths
    assert {path: path.read_bytes() for path in interrupted.run.checkpoints.iterdir()} == damaged


def test_row67_directory_with_the_name_of_a_checkpoint_is_set_aside(
    interrupted: Interrupted,
) -> None:
    unreal = interrupted.run.checkpoints / "step-000000012.safetensors"
    unreal.mkdir()
    (interrupted.run.checkpoints / ".tmp-0123").write_bytes(b"half")
    (interrupted.run.checkpoints / "notes.txt").write_bytes(b"mine")
    result = interrupted.resume()
    assert result.exit_code == 0, result.stderr
    assert f"warning: {unreal}: it is not a file; going back" in result.stderr
    assert not (interrupted.run.checkpoints / ".tmp-0123").exists()
    assert (interrupted.run.checkpoints / "notes.txt").read_bytes() == b"mine"


class _Payload:
    """What makes a directory when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._canary,)


def _pickled(canary: Path) -> bytes:
    return pickle.dumps({"model": _Payload(canary)})


def _torch_file(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"model": _Payload(canary)}, file)
    return file.getvalue()


def _zip_bomb(_: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    return file.getvalue()


def _crafted(header: object, body: int = 8) -> Callable[[Path], bytes]:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda _: struct.pack("<Q", len(raw)) + raw + bytes(body)


def _long(length: int) -> Callable[[Path], bytes]:
    return lambda _: struct.pack("<Q", length) + b"{}"


_TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "pickle": _pickled,
    "torch-file": _torch_file,
    "zip-bomb": _zip_bomb,
    "header-2^63": _long(2**63),
    "header-2^64-1": _long(2**64 - 1),
    "overlapping-offsets": _crafted({"a": _TWO, "b": _TWO}),
    "hole": _crafted({"a": _TWO, "b": {**_TWO, "data_offsets": [12, 20]}}, 20),
    "duplicate-key": _crafted(b'{"a":%b,"a":%b}' % ((json.dumps(_TWO).encode(),) * 2)),
    "shape-overflow": _crafted({"a": {**_TWO, "shape": [2**62, 4, 2]}}),
    "dtype-lie": _crafted({"a": {**_TWO, "dtype": "F64"}}),
    "deep": _crafted(b'{"a":' + b"[" * 100_000),
    "no-digests": _crafted({"a": _TWO}),
}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: f"row68-{name}")
def test_hostile_checkpoint_is_refused_at_once(
    name: str, interrupted: Interrupted, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    for path in interrupted.run.checkpoints.iterdir():
        path.unlink()
    interrupted.newest.write_bytes(HOSTILE[name](canary))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CheckpointError):
        load_newest(interrupted.run)
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 2**24
    result = interrupted.resume()
    assert result.exit_code == 4
    assert f"{interrupted.newest}: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not canary.exists()


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Write a checkpoint again, sound but for a change of its tensors or of its entry."""
    tensors, metadata = read_tensors(path)
    entry = json.loads(metadata["checkpoint"])
    change(tensors, entry)
    write_tensors(path, tensors, {**metadata, "checkpoint": json.dumps(entry)})


def _other_network(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    del tensors["model/layer2.0.conv2.weight"]


def _other_width(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors["model/layer1.0.conv1.weight"] = torch.zeros(6, 4, 3, 3)


def _other_classes(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors["model/fc.bias"] = torch.zeros(7)


def _newer(_: dict[str, Any], entry: dict[str, Any]) -> None:
    entry["schema"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_network, "'layer2.0.conv2.weight' has no tensor there, shape [8, 8, 3, 3] here"),
        (
            _other_width,
            "'layer1.0.conv1.weight' has shape [6, 4, 3, 3] there, shape [4, 4, 3, 3] here",
        ),
        (_other_classes, "'fc.bias' has shape [7] there, shape [3] here"),
        (_newer, "was written by a newer resnet-builder (schema 2; this one reads up to 1): upg"),
    ],
    ids=["row69-layer", "row69-width", "row69-classes", "row69-newer"],
)
def test_checkpoint_of_something_else_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    message: str,
    interrupted: Interrupted,
) -> None:
    rewritten(interrupted.newest, change)
    before = sorted(interrupted.run.checkpoints.iterdir())
    result = interrupted.resume()
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(interrupted.run.checkpoints.iterdir()) == before


@pytest.mark.parametrize(
    ("choice", "was"), [("device", "cuda"), ("threads", 7)], ids=["row72-device", "row72-threads"]
)
def test_run_of_another_machine_goes_on_if_it_need_not_be_to_the_same_bits(
    choice: str, was: Any, interrupted: Interrupted
) -> None:
    env = EnvRecord.read(interrupted.run.env)
    runtime = env.runtime.model_copy(update={choice: was})
    env.model_copy(update={"runtime": runtime}).write(interrupted.run.env)
    result = interrupted.resume()
    assert result.exit_code == 2
    now = getattr(env.runtime, choice)
    assert f"cannot go on to the same bits: {choice} was {was} and is {now}" in result.stderr
    result = interrupted.resume("--allow-inexact")
    assert result.exit_code == 0, result.stderr
    assert f"but not to the same bits: {choice} was {was} and is {now}" in result.stderr


def test_row72_other_version_is_told_of(interrupted: Interrupted) -> None:
    env = EnvRecord.read(interrupted.run.env)
    env.model_copy(update={"versions": {**env.versions, "torch": "2.0"}}).write(interrupted.run.env)
    result = interrupted.resume()
    assert result.exit_code == 0, result.stderr
    now = env.versions["torch"]
    assert f"may not go on to the same bits: torch was 2.0 and is {now}" in result.stderr
