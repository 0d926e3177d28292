"""Links inside a run directory: what they lead to stays as it is."""

import os
import sys
from pathlib import Path

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import TEMPORARY
from tests.cli.experiments import call, write_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")

WRITTEN = (
    *("spec.yaml", "env.json", "data.json", "result.json", "metrics.jsonl", "train.log"),
    *("changes.jsonl", "best.safetensors", "last.safetensors", "run.lock"),
)
"""Whatever a run writes at its top."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is to go on from its first step."""
    folder = tmp_path_factory.mktemp("stopped")
    line = ("--set", "train.epochs=1", "--set", "published=null", "--out", folder / "run")
    result = call("train", write_tiny(folder), *line)
    assert result.exit_code == 0, result.stderr
    (folder / "run" / "result.json").unlink()
    return folder / "run"


def resumable(stopped: Path, folder: Path) -> Path:
    """Copy a run, without its checkpoints."""
    run = folder / "run"
    run.mkdir()
    for path in stopped.iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    return run


def led_elsewhere(path: Path, canary: Path) -> bytes | None:
    """Put a link in the place of a file; it is_main_process to the file's content, or nowhere."""
    if path.exists():
        path.rename(canary)
    path.symlink_to(canary)
    return content_of(canary)


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("name", WRITTEN, ids=lambda name: f"row35-{name}")
def test_file_that_is_a_link_is_replaced_or_refused(
    name: str, folder: Path, stopped_run: Path
) -> None:
    run, canary = resumable(stopped_run, folder), folder / "canary"
    before = led_elsewhere(run / name, canary)
    more = (
        "--set",
        "train.optimizer.lr=0.2",
        "--allow-spec-change",
        "--set",
        "train.keep_checkpoints=5",
    )
    result = call("train", "--resume", run, *more)
    assert result.exit_code in {0, 7}, result.stderr
    assert "Traceback" not in result.stderr
    assert content_of(canary) == before


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_row35_deliverable_that_is_a_link_is_replaced(
    name: str, folder: Path, stopped_run: Path
) -> None:
    run = resumable(stopped_run, folder)
    led_elsewhere(run / name, folder / "canary")
    assert call("train", "--resume", run).exit_code == 0
    assert not (run / name).is_symlink()
    assert (run / name).read_bytes() == (stopped_run / name).read_bytes()


def test_row35_checkpoints_that_are_a_link_are_refused(folder: Path, stopped_run: Path) -> None:
    run, elsewhere = resumable(stopped_run, folder), folder / "elsewhere"
    elsewhere.mkdir()
    (run / "checkpoints").symlink_to(elsewhere)
    result = call("train", "--resume", run)
    assert result.exit_code == 2
    assert f"{run / 'checkpoints'} is a link: a run keeps its files to itself" in result.stderr
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("there", [True, False], ids=["row35-leads-somewhere", "row35-dangles"])
def test_new_run_is_not_made_through_a_link(there: bool, folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    if there:
        elsewhere.mkdir()
    (folder / "out").symlink_to(elsewhere)
    result = call("train", write_tiny(folder), "--out", "out")
    assert result.exit_code == 2
    assert "out exists: choose another" in result.stderr
    assert elsewhere.exists() == there
    assert not there or list(elsewhere.iterdir()) == []


def test_row35_planted_temporary_names_are_not_written_through(
    folder: Path, stopped_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody guesses every name, which is random."""
    run, canary = resumable(stopped_run, folder), folder / "canary"
    canary.write_bytes(b"unharmed")
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (run / "checkpoints").mkdir()
    for place in (run, run / "checkpoints"):
        (place / (TEMPORARY + "0" * 16)).symlink_to(canary)
    result = call("train", "--resume", run)
    assert result.exit_code == 7
    assert canary.read_bytes() == b"unharmed"


def test_row35_crash_log_that_is_a_link_is_replaced(
    folder: Path, stopped_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    run, canary = resumable(stopped_run, folder), folder / "canary"
    canary.write_bytes(b"unharmed")
    RunDirectory(run).crash_log.symlink_to(canary)
    monkeypatch.setattr("resnet_builder.training.session.fit", fail)
    result = call("train", "--resume", run)
    assert result.exit_code == 1
    assert canary.read_bytes() == b"unharmed"
    assert "a fault of ours" in (run / "crash.log").read_text()
    assert not os.path.islink(run / "crash.log")
