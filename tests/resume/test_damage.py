"""Checkpoints that are damaged, hostile or of something else, as the command line meets them."""

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.errors import CheckpointError
from resnet_builder.training.checkpoint import load_newest
from resnet_builder.weights.file import read_tensors, write_tensors
from tests.crash.experiments import assert_same_outcome
from tests.resume.conftest import Interrupted


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_newest_costs_only_the_steps_since_the_one_before(
    damage: str, interrupted: Interrupted
) -> None:
    newest = interrupted.newest
    sound = newest.read_bytes()
    flipped = sound[:-9] + bytes([sound[-9] ^ 4]) + sound[-8:]
    newest.write_bytes(flipped if damage == "flipped" else sound[: len(sound) * 15 // 16])
    result = interrupted.resume()
    assert result.exit_code == 0, result.stderr
    assert f"warning: {newest}: " in result.stderr
    assert "; going back to the checkpoint before it\n" in result.stderr
    assert "training from step 9 of 14" in result.stderr
    assert newest.with_name(f"{newest.name}.corrupt").is_file()
    assert_same_outcome(interrupted.run.path, interrupted.expected)


def test_run_whose_checkpoints_are_all_damaged_is_never_started_over(
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


def test_directory_with_the_name_of_a_checkpoint_is_set_aside(interrupted: Interrupted) -> None:
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
    """Object that makes a directory when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._canary,)


def write_hostile(kind: str, path: Path, canary: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": _Payload(canary)}))
    elif kind == "torch-file":
        torch.save({"model": _Payload(canary)}, path)
    elif kind == "zip-bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(2**26))
    else:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", int(kind)) + b"{")
            file.truncate(2**40)  # sparse: reading it would take minutes and all memory


@pytest.mark.parametrize(
    "kind", ["pickle", "torch-file", "zip-bomb", 2**20, 2**32, 2**63, 2**64 - 1], ids=str
)
def test_hostile_checkpoint_is_refused_at_once(
    kind: Any, interrupted: Interrupted, tmp_path: Path
) -> None:
    """A number is the length of the header that a file of 1 TiB claims to have."""
    canary = tmp_path / "canary"
    for path in interrupted.run.checkpoints.iterdir():
        path.unlink()
    write_hostile(str(kind), interrupted.newest, canary)
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


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        ("layer2.0.conv2.weight", None, "has no tensor there, shape [8, 8, 3, 3] here"),
        ("layer1.0.conv1.weight", (6, 4, 3, 3), "has shape [6, 4, 3, 3] there, shape [4, 4, 3, 3]"),
        ("fc.bias", (7,), "has shape [7] there, shape [3] here"),
        (None, None, "was written by a newer resnet-builder (schema 2; this one reads up to 1): "),
    ],
    ids=["other-layers", "other-width", "other-classes", "newer"],
)
def test_checkpoint_of_something_else_is_refused(
    tensor: str | None, shape: tuple[int, ...] | None, message: str, interrupted: Interrupted
) -> None:
    """It is sound, but for a change of its tensors or of its number."""
    tensors, metadata = read_tensors(interrupted.newest)
    entry = json.loads(metadata["checkpoint"])
    if tensor is None:
        entry["schema"] = 2
    elif shape is None:
        del tensors[f"model/{tensor}"]
    else:
        tensors[f"model/{tensor}"] = torch.zeros(shape)
    write_tensors(interrupted.newest, tensors, {**metadata, "checkpoint": json.dumps(entry)})
    before = sorted(interrupted.run.checkpoints.iterdir())
    result = interrupted.resume()
    assert result.exit_code == 2
    assert (message if tensor is None else f"'{tensor}' {message}") in result.stderr
    assert sorted(interrupted.run.checkpoints.iterdir()) == before
