"""Links, FIFOs, devices and folders in place of the files of a run.

What a link leads to stays as it is, nothing is waited for, and nothing endless is read.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")

WRITTEN = (
    *("spec.yaml", "env.json", "data.json", "result.json", "metrics.jsonl", "train.log"),
    *("changes.jsonl", "best.safetensors", "last.safetensors", "run.lock", "run.lock.json"),
)
"""Every file that a run writes beside its checkpoints."""


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without checkpoints and result: it goes on from its first step."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    line = ("--set", "train.epochs=1", "--set", "published=null", "--out", run)
    result = call("train", write_tiny(run.parent), *line)
    assert result.exit_code == 0, result.stderr
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints")
    return run


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", WRITTEN)
def test_file_that_is_a_link_is_replaced_or_refused(name: str, run: Path) -> None:
    canary = run.with_name("canary")
    if (run / name).exists():
        (run / name).rename(canary)
    (run / name).symlink_to(canary)
    before = canary.read_bytes() if canary.exists() else None
    line = ("--set", "train.optimizer.lr=0.2", "--set", "train.keep_checkpoints=5")
    result = call("train", "--resume", run, *line, "--allow-spec-change")
    assert result.exit_code in {0, 7}, result.stderr
    assert "Traceback" not in result.stderr
    assert (canary.read_bytes() if canary.exists() else None) == before
    if "safetensors" in name:
        assert result.exit_code == 0
        assert not (run / name).is_symlink()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("fifo", name) for name in WRITTEN if name != "spec.yaml"),
        *(
            pytest.param("folder", name, marks=[] if name == "result.json" else pytest.mark.slow)
            for name in WRITTEN
            if name != "spec.yaml"
        ),
        *(("device", name) for name in ("env.json", "metrics.jsonl", "changes.jsonl", "train.log")),
    ],
)
def test_file_that_is_none_is_replaced_or_refused_at_once(kind: str, name: str, run: Path) -> None:
    path = run / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    line = ("--set", "train.optimizer.lr=0.2", "--set", "train.keep_checkpoints=5")
    result = call("train", "--resume", run, *line, "--allow-spec-change")
    assert result.exit_code in {0, 7}, result.stderr
    assert "Traceback" not in result.stderr
    if result.exit_code:
        assert re.search(rf"error: cannot .* {re.escape(str(path))}", result.stderr), result.stderr
    call("list", "runs", run.parent)
    call("evaluate", run)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_checkpoint_that_is_no_file_is_set_aside(make: Callable[[Path], None], run: Path) -> None:
    assert call("train", "--resume", run).exit_code == 0
    (run / "result.json").unlink()
    [*_, newest] = sorted((run / "checkpoints").iterdir())
    unreal = newest.with_name("step-000000099.safetensors")
    make(unreal)
    result = call("train", "--resume", run)
    assert result.exit_code == 0, result.stderr
    assert f"warning: {unreal}: it is not a file; going back" in result.stderr


def test_checkpoints_that_are_a_link_are_refused(run: Path) -> None:
    elsewhere = run.with_name("elsewhere")
    elsewhere.mkdir()
    (run / "checkpoints").symlink_to(elsewhere)
    result = call("train", "--resume", run)
    assert result.exit_code == 2
    assert f"{run / 'checkpoints'} is a link: a run keeps its files to itself" in result.stderr
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("there", [True, False], ids=["leads-somewhere", "dangles"])
def test_new_run_is_not_made_through_a_link(there: bool, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.mkdir()
    (tmp_path / "out").symlink_to(elsewhere)
    result = call("train", write_tiny(tmp_path), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "out exists: choose another" in result.stderr
    assert elsewhere.exists() == there
    assert not there or list(elsewhere.iterdir()) == []


def test_crash_log_that_is_a_link_is_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    canary, crash_log = run.with_name("canary"), run / "crash.log"
    canary.write_bytes(b"unharmed")
    crash_log.symlink_to(canary)
    monkeypatch.setattr("resnet_builder.training.trainer.fit", fail)
    assert call("train", "--resume", run).exit_code == 1
    assert canary.read_bytes() == b"unharmed"
    assert "a fault of ours" in crash_log.read_text()
    assert not crash_log.is_symlink()
