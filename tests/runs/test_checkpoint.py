"""Checkpoints: the newest that holds is found, and none is lost."""

import contextlib
import errno
import os
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resnet_builder.errors import CheckpointError, NonFiniteError, StorageError, UsageError
from resnet_builder.runs import files
from resnet_builder.runs.checkpoint import (
    Checkpoint,
    checkpoint_path,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import POINTS
from resnet_builder.runs.tensor_files import write_tensors
from tests.runs.faults import CALLS, Disk, heard, names


def checkpoint(step: int) -> Checkpoint:
    state = {"seconds": 0.1 + step, "best": {"val.top1": 0.5}, "none": None, "big": 2**70}
    return Checkpoint(step, {"model/fc.weight": torch.full((8, 4), float(step))}, state)


def save(run: RunDirectory, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save_checkpoint(run, checkpoint(step), keep)


def step_of(found: Checkpoint | None) -> int | None:
    return None if found is None else found.step


def test_what_is_saved_is_loaded(run: RunDirectory) -> None:
    save(run, 3)
    found = load_newest(run)
    assert found is not None
    assert found.step == 3
    assert found.state == checkpoint(3).state
    assert found.tensors.keys() == {"model/fc.weight"}
    assert torch.equal(found.tensors["model/fc.weight"], torch.full((8, 4), 3.0))


def test_run_without_checkpoints_has_none(run: RunDirectory) -> None:
    assert load_newest(run) is None
    run.checkpoints.rmdir()
    assert load_newest(run) is None


def test_equal_states_make_equal_files(run: RunDirectory) -> None:
    save(run, 3)
    first = checkpoint_path(run, 3).read_bytes()
    save(run, 3)
    assert checkpoint_path(run, 3).read_bytes() == first


def test_steps_are_compared_as_numbers(run: RunDirectory) -> None:
    save(run, 9, 10, 1_000_000_000)
    assert names(run.checkpoints) == [
        "step-000000009.safetensors",
        "step-000000010.safetensors",
        "step-1000000000.safetensors",  # before step-00... where names are compared
    ]
    assert step_of(load_newest(run)) == 1_000_000_000
    checkpoint_path(run, 1_000_000_000).unlink()
    checkpoint_path(run, 9).rename(run.checkpoints / "step-9.safetensors")
    assert step_of(load_newest(run)) == 10


@pytest.mark.parametrize(
    "name",
    ["step-11", "step-x.safetensors", "11.safetensors", "step-12.safetensors.bak", ".tmp-12"],
    ids=lambda name: f"{name}",
)
def test_other_files_are_left_alone(name: str, run: RunDirectory) -> None:
    save(run, 9)
    (run.checkpoints / name).write_bytes(b"something else")
    assert step_of(load_newest(run)) == 9
    save(run, 10, 11, keep=2)
    assert (run.checkpoints / name).read_bytes() == b"something else"


def test_oldest_are_removed(run: RunDirectory) -> None:
    save(run, 8, 9, 10, 11, keep=2)
    assert names(run.checkpoints) == ["step-000000010.safetensors", "step-000000011.safetensors"]


def test_fewer_than_two_are_never_kept(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="keep is 1"):
        save(run, 1, keep=1)


def test_older_are_removed_only_once_the_new_one_is_published(
    disk: Disk, run: RunDirectory
) -> None:
    save(run, 1, 2)
    disk.failing = "published"
    with pytest.raises(StorageError):
        save(run, 3, keep=2)
    assert len(names(run.checkpoints)) == 3
    assert disk.events.count("rotated") == 2


def test_checkpoint_that_cannot_be_removed_is_only_told_of(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 1, 2)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    told, warn = heard()
    save_checkpoint(run, checkpoint(3), keep=2, warn=warn)
    assert told == [f"cannot remove {checkpoint_path(run, 1)}: Permission denied"]
    assert step_of(load_newest(run)) == 3


def test_state_that_is_not_finite_is_not_saved(run: RunDirectory) -> None:
    save(run, 1)
    bad = Checkpoint(2, {"model/bn1.running_var": torch.tensor([float("nan")])}, {})
    with pytest.raises(NonFiniteError, match=r"model/bn1\.running_var"):
        save_checkpoint(run, bad, keep=2)
    assert step_of(load_newest(run)) == 1
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(run, Checkpoint(2, {}, {"loss": float("nan")}), keep=2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_failing_save_leaves_the_older_ones(
    call: str, number: int, disk: Disk, run: RunDirectory
) -> None:
    save(run, 1, 2)
    older = {path: path.read_bytes() for path in run.checkpoints.iterdir()}
    disk.failing, disk.error = call, OSError(number, os.strerror(number))
    with pytest.raises(StorageError, match=r"step-000000003\.safetensors"):
        save(run, 3, keep=2)
    assert {path: path.read_bytes() for path in older} == older
    assert not [name for name in names(run.checkpoints) if name.startswith(".tmp-")]
    disk.failing = None
    save(run, 4, keep=2)
    assert step_of(load_newest(run)) == 4


def _in_a_child(act: Callable[[], None]) -> int:
    """Do something in a forked process; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            act()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_any_point_leaves_a_run_to_go_on_with(point: str, run: RunDirectory) -> None:
    save(run, 1, 2)

    def die(passed: str) -> None:
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def save_and_die() -> None:
        files.failpoint_hook = die
        with run.locked():
            save(run, 3, keep=2)

    assert _in_a_child(save_and_die) == signal.SIGKILL
    told, warn = heard()
    with run.locked(warn=warn):
        published = point in {"replaced", "published", "rotated"}
        assert step_of(load_newest(run)) == (3 if published else 2)
        save(run, 4, keep=2)
    assert len(told) == 1
    assert "ended without freeing the run" in told[0]
    assert names(run.checkpoints)[1:] == ["step-000000004.safetensors"]


def mutations(sound: bytes) -> Iterator[tuple[str, bytes]]:
    for sixteenth in range(16):
        yield f"truncated-{sixteenth}", sound[: len(sound) * sixteenth // 16]
    start = sound.index(b"}  ") if b"}  " in sound else sound.index(b"}}") + 1
    regions = {
        "length": 0,
        "length-high": 7,
        "brace": 8,
        "metadata": sound.index(b"__metadata__"),
        "state": sound.index(b"state"),
        "digest": sound.index(b'"sha256"') + 12,
        "name": sound.index(b"fc.weight"),
        "dtype": sound.index(b"F32"),
        "shape": sound.index(b"[8,4]") + 1,
        "offsets": sound.index(b"data_offsets") + 16,
        "header-end": start,
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


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = RunDirectory.create(tmp_path_factory.mktemp("sound") / "run")
    run.checkpoints.mkdir()
    save(run, 3)
    return checkpoint_path(run, 3).read_bytes()


def test_damaged_newest_is_set_aside_and_the_one_before_used(
    run: RunDirectory, sound: bytes
) -> None:
    tried = 0
    for name, damaged in mutations(sound):
        shutil.rmtree(run.checkpoints)
        run.checkpoints.mkdir()
        save(run, 1, 2)
        checkpoint_path(run, 3).write_bytes(damaged)
        told, warn = heard()
        assert step_of(load_newest(run, warn=warn)) == 2, name
        assert names(run.checkpoints) == [
            "step-000000001.safetensors",
            "step-000000002.safetensors",
            "step-000000003.safetensors.corrupt",
        ], name
        assert len(told) == 1, name
        assert told[0].startswith(f"{checkpoint_path(run, 3)}: "), name
        assert told[0].endswith("; going back to the checkpoint before it"), name
        tried += 1
    assert tried == 46


def test_corrupt_file_of_before_is_not_overwritten(run: RunDirectory, sound: bytes) -> None:
    save(run, 2)
    for contents in (b"first", b"second"):
        checkpoint_path(run, 3).write_bytes(contents)
        load_newest(run)
    assert names(run.checkpoints) == [
        "step-000000002.safetensors",
        "step-000000003.safetensors.2.corrupt",
        "step-000000003.safetensors.corrupt",
    ]
    assert (run.checkpoints / "step-000000003.safetensors.corrupt").read_bytes() == b"first"


def test_all_corrupt_is_an_error_each_time(run: RunDirectory) -> None:
    checkpoint_path(run, 1).write_bytes(b"")
    checkpoint_path(run, 2).write_bytes(b"x" * 100)
    for _ in range(2):
        with pytest.raises(CheckpointError) as error:
            load_newest(run)
        lines = str(error.value).splitlines()
        assert lines[0] == f"no checkpoint of {run.path} can be used:"
        assert lines[1].startswith(f"{checkpoint_path(run, 2)}: it is no sound safetensors file")
        assert lines[2].startswith(f"{checkpoint_path(run, 1)}: it is no sound safetensors file")
    assert len(names(run.checkpoints)) == 2


def test_what_was_set_aside_counts(run: RunDirectory) -> None:
    save(run, 1)
    checkpoint_path(run, 2).write_bytes(b"")
    load_newest(run)
    checkpoint_path(run, 1).unlink()
    with pytest.raises(CheckpointError, match=r"step-000000002\.safetensors\.corrupt: it was set"):
        load_newest(run)


def test_name_and_contents_must_agree(run: RunDirectory) -> None:
    save(run, 1, 2)
    shutil.copy(checkpoint_path(run, 1), checkpoint_path(run, 3))
    with pytest.raises(CheckpointError, match="it is of step 1, whatever its name says"):
        load_checkpoint(checkpoint_path(run, 3))
    assert step_of(load_newest(run)) == 2


def entry(run: RunDirectory, text: str) -> Path:
    """Write a checkpoint whose bytes hold together, but whose entry is as given."""
    write_tensors(checkpoint_path(run, 5), {"a": torch.ones(1)}, {"checkpoint": text})
    return checkpoint_path(run, 5)


def test_newer_form_asks_to_upgrade_and_stays(run: RunDirectory) -> None:
    save(run, 1)
    entry(run, '{"schema": 2, "whatever": "is new"}')
    with pytest.raises(UsageError, match=r"newer resnet-builder \(schema 2; .* upgrade"):
        load_newest(run)
    assert names(run.checkpoints) == ["step-000000001.safetensors", "step-000000005.safetensors"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "package": "1", "step": "x", "state": {}}'],
)
def test_entry_that_says_too_little_is_refused(text: str, run: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(entry(run, text))


def test_tensors_that_are_no_checkpoint_are_refused(run: RunDirectory) -> None:
    write_tensors(checkpoint_path(run, 5), {"a": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match="it is no checkpoint of a run"):
        load_checkpoint(checkpoint_path(run, 5))


def test_quarantine_that_fails_does_not_stop_the_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 1)
    checkpoint_path(run, 2).write_bytes(b"")

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    told, warn = heard()
    assert step_of(load_newest(run, warn=warn)) == 1
    assert told[1] == f"cannot rename {checkpoint_path(run, 2)}: Read-only file system"
