"""``train --seeds``: runs of one spec that differ by their seeds, in one directory."""

import errno
import json
import os
import signal
import statistics
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from resnet_builder.cli.group_progress import GroupLines, GroupScreen
from resnet_builder.launch.plan import plan_seeds
from resnet_builder.launch.sweep_file import parse_seeds
from resnet_builder.runs.status import RunStatus
from tests.cli.experiments import call, write_tiny
from tests.launch.stand_in import train_in_process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own, which has the tiny experiment."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (3,)), ("0-2", (0, 1, 2)), ("0,3,7-9", (0, 3, 7, 8, 9)), ("4, 2", (4, 2))],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,0", "1-", "-1", "0-99999999", "1.5"])
def test_other_texts_are_no_seeds(text: str) -> None:
    with pytest.raises(ValueError, match="seed"):
        parse_seeds(text)


def test_seeds_are_trained_to_the_bits_of_single_runs_and_continued_by_the_same_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_second(arguments: Sequence[str]) -> int | None:
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            return 143
        return None

    line = ("train", "tiny.yaml", "--seeds", "0,3", "--epochs", "1", "--no-report")
    started = train_in_process(monkeypatch, stop_at_second)
    stopped = call(*line)
    assert stopped.exit_code == 143
    assert (
        "to continue: resnet-build train tiny.yaml --seeds 0,3 --epochs 1 --no-report"
        in stopped.stderr
    )

    group = folder / "runs" / "tiny-seeds"
    assert call("list", "runs", group).stdout.count("waiting") == 1
    started = train_in_process(monkeypatch)
    done = call(*line)
    assert done.exit_code == 0, done.stderr
    assert [one[-2] for one in started] == ["runs/tiny-seeds/seed=3"]
    alone = call("train", *line[1:2], "--epochs=1", "--seed=3", "--no-report", "--out", "alone")
    assert alone.exit_code == 0
    for name in ("best.safetensors", "spec.yaml", "data.json"):
        assert (group / "seed=3" / name).read_bytes() == (folder / "alone" / name).read_bytes()

    predictions = group / "seed=0" / "predictions.npz"
    before = predictions.read_bytes()
    predictions.unlink()  # as a kill cannot, but a user
    again = call(*line, "--json")
    assert len(started) == 1, "finished runs are kept"
    assert predictions.read_bytes() == before
    [found] = json.loads(again.stdout)["settings"]
    tops = [
        json.loads((group / f"seed={seed}" / "result.json").read_text())["test.top1"]
        for seed in (0, 3)
    ]
    assert found["n"] == 2
    assert found["test_mean"] == pytest.approx(statistics.fmean(tops))
    assert found["test_std"] == pytest.approx(statistics.stdev(tops))
    mean, std = 100 * statistics.fmean(tops), 100 * statistics.stdev(tops)
    text = f"test top-1: mean {mean:.2f} %, sample standard deviation {std:.2f}, n = 2"
    assert text in done.stdout

    refused = call("train", "tiny.yaml", "--seeds", "0,3", "--epochs", "2")
    assert refused.exit_code == 2
    assert "tiny: train.epochs: 1 there, 2 now" in refused.stderr
    assert "choose another directory with --out" in refused.stderr
    longer = ("--epochs", "2", "--no-report", "--allow-spec-change")
    more = call("train", "tiny.yaml", "--seeds", "3", *longer)
    assert more.exit_code == 0, more.stderr
    assert json.loads((group / "seed=3" / "result.json").read_text())["planned_steps"] == 8
    summary = call("list", "runs").stdout.splitlines()
    assert summary[1].split()[1:3] == ["2", "finished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml", "--seeds", "x"], "must be seeds, as 0-4 or 0,3,7"),
        (["tiny.yaml", "--seeds", "0-1", "--seed", "3"], "leave the other one out"),
        (["--seeds", "0-1", "--resume", "runs/x"], "--seeds needs a SPEC"),
        (
            ["tiny.yaml", "--seeds", "0-1", "--resume", "runs/x"],
            "repeat the line without --resume",
        ),
        (["tiny.yaml", "--jobs", "2"], "--jobs needs --seeds"),
        (["tiny.yaml", "--seeds", "0-1", "--out", "."], "is no group of runs"),
        (["tiny.yaml", "--seeds", "0-1", "--set", "model.shortcut=padd"], "did you mean: pad"),
    ],
)
def test_line_that_cannot_be_meant_is_refused_before_a_directory_exists(
    arguments: list[str], message: str, folder: Path
) -> None:
    result = call("train", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert {path.name for path in folder.iterdir()} == {"tiny.yaml"}


def test_seeds_on_changed_images_have_no_mean(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch)
    line = ("train", "tiny.yaml", "--epochs", "1", "--no-report", "--seeds", "0-1")
    assert call(*line).exit_code == 0
    file = folder / "runs" / "tiny-seeds" / "seed=0" / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "0" * 64}))
    again = call(*line)
    assert "the images changed between these runs" in again.stderr
    assert again.stdout.count("test top-1: mean") == 2
    assert "n = 2" not in again.stdout


def test_record_names_no_run_outside_its_directory(folder: Path) -> None:
    group = folder / "group"
    group.mkdir()
    run = {"name": "../tiny", "spec": "tiny", "seed": 0}
    record = {"schema": 1, "kind": "seeds", "name": "tiny", "runs": [run]}
    (group / "group.json").write_text(json.dumps(record))
    result = call("list", "runs", group)
    assert result.exit_code != 0
    assert "group.json is damaged: runs.0.name" in result.stderr


def test_broken_run_ends_no_other_and_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch, lambda arguments: 5 if "seed=0" in arguments[-2] else 0)
    result = call("train", "tiny.yaml", "--seeds", "0-1")
    assert result.exit_code == 5
    assert "seed=0: failed: its process ended with code 5" in result.stderr
    assert "[2/2] seed=1" in result.stderr


def test_no_run_begins_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = train_in_process(monkeypatch, lambda arguments: 7)
    result = call("train", "tiny.yaml", "--seeds", "0-4")
    assert result.exit_code == 7
    assert len(started) == 1


def test_missing_temporary_folder_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    result = call("train", "tiny.yaml", "--seeds", "0-1")
    assert result.exit_code == 7
    assert result.stderr.endswith(
        "error: cannot make a temporary file for the output of a run: No usable temporary "
        "directory found in ['/tmp']\n"
    )


def test_terminal_shows_a_line_for_each_run_and_the_time_left() -> None:
    console = Console(width=100, record=True, file=StringIO(), force_terminal=True)
    trial = plan_seeds("resnet20", [0, 1]).trials[0]
    with Live(console=console, auto_refresh=False) as live:
        screen = GroupScreen(2, live)
        screen.begins(trial)
        running = RunStatus(Path("seed=0"), "running", step=5, total_steps=20, val_top1=0.5)
        screen.shows([running])
        screen.ends(trial, "finished", replace(running, seconds=4.0), None)
        screen.shows([])
    text = console.export_text()
    assert "seed=0: step 5 of 20, validation 50.00 %\n0 of 2 done" in text
    assert "[1/2] seed=0: finished: validation 50.00 %, 0:00:04\n" in text
    assert "1 of 2 done, about 0:00:00 left" in text


def test_log_shows_errors_in_full() -> None:
    said: list[str] = []
    lines = GroupLines(1, said.append)
    lines.ends(
        plan_seeds("resnet20", [0]).trials[0], "failed", RunStatus(Path("x"), "failed"), "a\nb"
    )
    assert said == ["[1/1] seed=0: failed: a", "    b"]
