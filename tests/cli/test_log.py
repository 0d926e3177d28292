"""``--log`` and ``run.log``: trackers by the command line and by the spec."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny


def test_log_is_the_key_of_the_spec_and_may_change_on_resume(folder: Path) -> None:
    spec = write_tiny(folder)
    result = call("train", spec, "--epochs", "1", "--log", "csv", "--out", "run")
    assert result.exit_code == 0, result.output
    header, *rows = Path("run/metrics.csv").read_text().splitlines()
    assert header.startswith("step,epoch,lr,images_per_second,train.loss,train.top1,val.loss")
    assert [row.split(",")[0] for row in rows] == ["4", "4", "4"]
    assert "log: [csv]" in Path("run/spec.yaml").read_text()
    longer = ("--set", "train.epochs=2", "--allow-spec-change", "--set", "run.log=[]")
    result = call("train", "--resume", "run", *longer)
    assert result.exit_code == 0, result.output
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 4
    changes = map(json.loads, Path("run/changes.jsonl").read_text().splitlines())
    assert {change["path"]: change["kind"] for change in changes} == {
        "run.log[0]": "cosmetic",
        "train.epochs": "trajectory",
    }


@pytest.mark.parametrize("given", [("--log", "csv,wandb"), ("--set", "run.log=[wandb]")])
def test_missing_package_is_told_before_there_is_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    spec = write_tiny(folder)
    train = ("train", spec, "--out", "run")
    for command in (("validate", spec), train, (*train, "--seeds", "0-1")):
        result = call(*command, *given)
        assert result.exit_code == 2
        assert result.stderr == (
            'error: run.log: the tracker wandb needs the extra "wandb": '
            "pip install 'resnet-builder[wandb]'\n"
        )
    assert not Path("run").exists()


def test_unknown_tracker_is_told_with_its_place(folder: Path) -> None:
    result = call("validate", write_tiny(folder), "--log", "csv,tensorbord")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "<command line>: error[unknown-name]: run.log[1]: no tracker is named 'tensorbord'",
        "      | --log [csv,tensorbord]",
        "      |            ^",
        "allowed: csv, mlflow, tensorboard, wandb",
        "did you mean: tensorboard",
    ]


def test_trackers_are_listed_with_their_options() -> None:
    lines = call("list", "parts").stdout.splitlines()
    place = lines.index("tracker")
    assert "  csv: Table `metrics.csv` in the run directory, one row for each report." in lines
    assert "    project: text, 1 to 128 characters (default: not set)" in lines[place:]
