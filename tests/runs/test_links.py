"""Links inside a run directory: the files that they lead to stay as they are."""

import shutil
import sys
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
