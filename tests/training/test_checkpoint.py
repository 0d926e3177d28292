"""Checkpoints: the newest valid one is found, none is lost, and it is all that a resume needs."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    Stopped,
    StorageError,
)
from resnet_builder.runs import files
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import POINTS, ignore
from resnet_builder.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    set_aside_damaged,
)
from resnet_builder.training.provenance import Provenance
from resnet_builder.training.state import TrainState
from resnet_builder.weights.file import read_tensors, write_tensors
from tests.runs.faults import Disk, names
from tests.training.recipes import small_net
from tests.training.runs import after, experiment, small_splits, train


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "run")
    run.checkpoints.mkdir()
    return run


def checkpoint(step: int, **tensors: torch.Tensor) -> Checkpoint:
    return Checkpoint(
        state=TrainState(step=step, seconds=0.1 + step, best={"val.top1": 0.5}),
        optimizer="SGD",
        provenance=Provenance(spec="name: small"),
        metrics_bytes=7,
        tensors=tensors or {"model/fc.weight": torch.full((8, 4), float(step))},
    )


def save(run: RunDirectory, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save_checkpoint(run, checkpoint(step), keep)


def newest_step(run: RunDirectory) -> int | None:
    found = load_newest(run)
    return None if found is None else found.state.step


def test_what_is_saved_is_loaded(run: RunDirectory) -> None:
    assert load_newest(run) is None
    save(run, 3)
    first = run.checkpoint(3).read_bytes()
    found, saved = load_newest(run), checkpoint(3)
    assert found is not None
    assert found.model_dump() == saved.model_dump()
    assert found.tensors.keys() == {"model/fc.weight"}
    assert torch.equal(found.tensors["model/fc.weight"], torch.full((8, 4), 3.0))
    save(run, 3)
    assert run.checkpoint(3).read_bytes() == first


def test_steps_are_compared_as_numbers(run: RunDirectory) -> None:
    save(run, 9, 10, 1_000_000_000)
    assert names(run.checkpoints)[-1] == "step-1000000000.safetensors"
    assert newest_step(run) == 1_000_000_000
    run.checkpoint(1_000_000_000).unlink()
    run.checkpoint(9).rename(run.checkpoints / "step-9.safetensors")
    assert newest_step(run) == 10


def test_only_the_oldest_checkpoints_are_removed(run: RunDirectory) -> None:
    others = ["step-11", "step-x.safetensors", "11.safetensors", "step-12.safetensors.bak"]
    for name in others:
        (run.checkpoints / name).write_bytes(b"something else")
    save(run, 8, 9, 10, 11, keep=2)
    left = {"step-000000010.safetensors", "step-000000011.safetensors", *others}
    assert set(names(run.checkpoints)) == left
    with pytest.raises(ValueError, match="keep is 1"):
        save(run, 12, keep=1)


def test_older_ones_are_removed_only_once_the_new_one_is_published(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 1, 2)
    disk = Disk(monkeypatch)
    disk.failing = "published"
    with pytest.raises(StorageError):
        save(run, 3, keep=2)
    assert len(names(run.checkpoints)) == 3
    assert "rotated" not in disk.events


def test_state_that_is_not_finite_is_not_saved(run: RunDirectory) -> None:
    save(run, 1)
    bad = checkpoint(2, **{"model/bn1.running_var": torch.tensor([float("nan")])})
    with pytest.raises(NonFiniteError, match=r"model/bn1\.running_var"):
        save_checkpoint(run, bad, keep=2)
    assert newest_step(run) == 1


def _in_a_child(act: Callable[[], None]) -> int:
    """Do something in a forked process; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            act()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_any_point_leaves_a_run_that_resumes(point: str, run: RunDirectory) -> None:
    save(run, 1, 2)

    def die(passed: str) -> None:
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def save_and_die() -> None:
        files.failpoint_hook = die
        with run.locked():
            save(run, 3, keep=2)

    assert _in_a_child(save_and_die) == signal.SIGKILL
    told: list[str] = []
    with run.locked(warn=told.append):
        published = point in {"replaced", "published", "rotated"}
        assert newest_step(run) == (3 if published else 2)
        save(run, 4, keep=2)
    [warning] = told
    assert "ended without freeing the run" in warning
    assert names(run.checkpoints)[1:] == ["step-000000004.safetensors"]


def damaged_copies(sound: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    for sixteenth in range(16):
        yield f"truncated-{sixteenth}", sound[: len(sound) * sixteenth // 16]
    regions = {
        "length": 0,
        "length-high": 7,
        "brace": 8,
        "metadata": sound.index(b"__metadata__"),
        "state": sound.index(b"state"),
        "name": sound.index(b"fc.weight"),
        "dtype": sound.index(b"F32"),
        "shape": sound.index(b"[8,4]") + 1,
        "offsets": sound.index(b"data_offsets") + 16,
        "first-tensor-byte": len(sound) - 128,
        "last-tensor-byte": len(sound) - 1,
    }
    for name, position in regions.items():
        for bit in (0, 5):
            flipped = bytearray(sound)
            flipped[position] ^= 1 << bit
            yield f"flipped-{name}-{bit}", bytes(flipped)
    yield "trailing", sound + b"\0"
    yield "twice", sound + sound
    yield "zeros", bytes(len(sound))
    yield "pickle", pickle.dumps({"model": [1, 2, 3]})
    yield "of-another-step", other


def test_damaged_newest_is_set_aside_and_the_one_before_used(run: RunDirectory) -> None:
    save(run, 2, 3)
    other, sound = (run.checkpoint(step).read_bytes() for step in (2, 3))
    for name, damaged in damaged_copies(sound, other):
        shutil.rmtree(run.checkpoints)
        run.checkpoints.mkdir()
        save(run, 2)
        run.checkpoint(3).write_bytes(damaged)
        told: list[str] = []
        assert newest_step(run) == 2, name
        set_aside_damaged(run, 2, told.append)
        left = ["step-000000002.safetensors", "step-000000003.safetensors.corrupt"]
        assert names(run.checkpoints) == left, name
        [warning] = told
        assert warning.startswith(f"{run.checkpoint(3)}: "), name
        assert warning.endswith("; going back to the checkpoint before it"), name


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_file_that_cannot_be_removed_or_renamed_is_a_warning(
    number: int, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    told: list[str] = []
    save(run, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        save_checkpoint(run, checkpoint(3), keep=2, warn=told.append)
    run.checkpoint(4).write_bytes(b"")
    monkeypatch.setattr(os, "replace", refuse)
    set_aside_damaged(run, 3, told.append)
    assert newest_step(run) == 3
    assert [told[0], told[-1]] == [
        f"cannot remove {run.checkpoint(1)}: {os.strerror(number)}",
        f"cannot rename {run.checkpoint(4)}: {os.strerror(number)}",
    ]


def test_earlier_damaged_file_is_not_overwritten(run: RunDirectory) -> None:
    save(run, 2)
    for contents in (b"first", b"second"):
        run.checkpoint(3).write_bytes(contents)
        set_aside_damaged(run, 2, ignore)
    second, first = (run.checkpoints / name for name in names(run.checkpoints)[1:])
    assert (first.name, first.read_bytes()) == ("step-000000003.safetensors.corrupt", b"first")
    assert (second.name, second.read_bytes()) == (
        *("step-000000003.safetensors.2.corrupt", b"second"),
    )


def test_checkpoint_that_was_set_aside_counts(run: RunDirectory) -> None:
    save(run, 1)
    run.checkpoint(2).write_bytes(b"")
    set_aside_damaged(run, 1, ignore)
    run.checkpoint(1).unlink()
    with pytest.raises(CheckpointError, match=r"step-000000002\.safetensors\.corrupt: it was set"):
        load_newest(run)


def rewritten(run: RunDirectory, **changes: Any) -> Path:
    """Change the metadata of the checkpoint of step 5; its bytes hold together."""
    save(run, 5)
    path = run.checkpoint(5)
    tensors, metadata = read_tensors(path)
    text = json.dumps({**json.loads(metadata["checkpoint"]), **changes})
    write_tensors(path, tensors, {"checkpoint": text})
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": None}, "state: "),
        ({"state": {"step": "many"}}, "state.step: "),
        ({"state": {"step": -1}}, "state.step: "),
        ({"provenance": None}, "provenance: "),
        ({"provenance": {"spec": "", "data": {}}}, "provenance.data.fingerprint: "),
        ({"metrics_bytes": -1}, "metrics_bytes: "),
        ({"optimizer": []}, "optimizer: "),
        ({"tensors": {"model/a": 1}}, "tensors"),
    ],
)
def test_metadata_that_training_never_writes_is_damaged(
    change: dict[str, Any], reason: str, run: RunDirectory
) -> None:
    path = rewritten(run, **change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path} is damaged: {reason}")
    write_tensors(path, {"a": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match="it is no checkpoint of a run"):
        load_checkpoint(path)


def stopped(path: Path, **recipe: Any) -> Checkpoint:
    """Train half a run; return its checkpoint."""
    with pytest.raises(Stopped):
        train(path, experiment(**recipe), should_stop=after(7))
    found = load_newest(RunDirectory(path))
    assert found is not None
    return found


def test_checkpoint_holds_weights_average_best_and_optimizer_by_name(tmp_path: Path) -> None:
    found = stopped(tmp_path / "run", ema={"decay": 0.9})
    model = small_net()
    names, parameters = model.state_dict().keys(), dict(model.named_parameters()).keys()
    assert found.tensors.keys() == {
        *(f"{group}/{name}" for group in ("model", "ema", "best") for name in names),
        *(f"optim/{name}/momentum_buffer" for name in parameters),
    }
    assert found.state.step == 5


@pytest.mark.parametrize(
    "name", ["optim/nobody/momentum_buffer", "optim/0.weight/momentum_buffer", "optim/0.weight"]
)
def test_optimizer_state_that_fits_no_parameter_is_refused(name: str, tmp_path: Path) -> None:
    found = stopped(tmp_path / "run")
    tensors = {**found.tensors, name: torch.ones(2)}
    save_checkpoint(
        RunDirectory(tmp_path / "run"), found.model_copy(update={"tensors": tensors}), keep=2
    )
    with pytest.raises(CheckpointError, match=f"'{name[6:]}' is of no parameter of the network"):
        train(tmp_path / "run", experiment())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, "as many as before, but not the same"),
        ({"validation_indices": (3, 4)}, "as many as before, but not the same"),
        ({"train": small_splits(train=30).train}, "train: 34 images, now 30"),
    ],
)
def test_run_is_not_resumed_with_other_images(change: Any, message: str, tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        train(
            tmp_path / "run",
            experiment(),
            splits=replace(small_splits(), **change),
            allow_spec_change=True,
        )


def test_new_average_and_new_kind_of_optimizer_start_afresh(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    changed = experiment(ema={"decay": 0.5}, optimizer={"type": "adamw", "lr": 0.01})
    assert train(tmp_path / "run", changed, allow_spec_change=True).record.steps == 12
    found = load_newest(RunDirectory(tmp_path / "run"))
    assert found is not None
    assert found.tensors["optim/0.weight/step"].item() == 12 - 5


def test_restoring_keeps_memory_formats(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    model = small_net().to(memory_format=torch.channels_last)
    strides = [parameter.stride() for parameter in model.parameters()]
    with pytest.raises(Stopped):
        train(tmp_path / "run", experiment(), model=model, should_stop=after(0))
    assert [parameter.stride() for parameter in model.parameters()] == strides
