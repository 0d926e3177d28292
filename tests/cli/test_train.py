"""``resnet-build train``."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.runs.directory import RunDirectory
from tests.cli.experiments import call, write_tiny


def result_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def test_run_ends_with_ours_theirs_and_the_difference(folder: Path) -> None:
    result = call("train", write_tiny(folder))
    assert result.exit_code == 0, result.stderr
    run = folder / "runs" / "tiny-001"
    top1 = result_of(run)["test.top1"]
    header, row, *rest = result.stdout.splitlines()
    assert header.split() == ["ours", "published", "difference"]
    assert row.split() == [
        *("test", "top-1", f"{100 * top1:.2f}", "%", "50.00", "%"),
        f"{100 * (top1 - 0.5):+.2f}",
    ]
    assert "published in nobody" in rest
    assert "run directory: runs/tiny-001" in result.stderr
    assert "epoch 3, step 12: val loss" in result.stderr
    for name in ("spec.yaml", "env.json", "data.json", "metrics.jsonl", "train.log"):
        assert (run / name).is_file()


def test_runs_are_numbered_and_never_overwritten(folder: Path, finished_run: Path) -> None:
    spec = write_tiny(folder)
    for _ in range(2):
        assert call("train", spec, "--set", "train.epochs=1").exit_code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny-001", "tiny-002"]
    result = call("train", spec, "--out", finished_run)
    assert result.exit_code == 2
    assert f"{finished_run} exists" in result.stderr


@pytest.mark.parametrize(
    ("change", "what"),
    [("data.dataset.test=20", "the data"), ("train.epochs=1", "the recipe")],
)
def test_other_experiment_is_not_compared_with_the_published_one(
    change: str, what: str, folder: Path
) -> None:
    result = call("train", write_tiny(folder), "--set", change)
    assert result.exit_code == 0
    notice = "not compared with the published result (`published`): the command line changes "
    assert f"{notice}{what}\n" in result.stderr
    assert "published" not in result.stdout
    assert "published" not in result_of(folder / "runs" / "tiny-001")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a SPEC to train, such as resnet20, or --resume DIR"),
        (["resnet20", "."], "Got unexpected extra argument (.)\ndid you mean: --data ."),
        (["resnet20", "--dataset", "."], "did you mean: --data"),
        (["resnet20", "--resume"], "--resume needs a directory"),
        (["--out", "x", "--resume", "y"], "--out names one directory, --resume another ('y')"),
    ],
)
def test_arguments_that_do_not_go_together_are_2(arguments: list[str], message: str) -> None:
    result = call("train", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_spec_that_is_only_a_network_cannot_be_trained(folder: Path) -> None:
    result = call("train", write_tiny(folder), "--set", "train=null")
    assert result.exit_code == 2
    assert "tiny: a spec to train needs `data` and `train`" in result.stderr
    assert not (folder / "runs").exists()


def test_finished_run_is_already_complete(finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.iterdir() if path.is_file()}
    before.pop(finished_run / "run.lock")
    result = call("train", "--resume", finished_run, "--json")
    assert result.exit_code == 0
    assert result.stderr == f"{finished_run} is already complete\n"
    assert json.loads(result.stdout) == result_of(finished_run)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize("length", [("--set", "train.epochs=1"), ("--epochs", 1)])
def test_same_line_can_be_given_again_and_again(length: tuple[object, ...], folder: Path) -> None:
    line = ("train", write_tiny(folder), "--out", "run", "--resume", *length)
    first, second = call(*line), call(*line)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "training from step 0 of 4" in first.stderr
    notice = "not compared with the published result (`published`): the command line changes "
    notice += "the recipe\n"
    scaled = "--epochs 1: train.epochs: 3 -> 1\n" if "--epochs" in length else ""
    assert second.stderr == f"{scaled}{notice}run is already complete\n"
    assert first.stdout == second.stdout


def test_run_without_a_checkpoint_starts_from_step_0(folder: Path, finished_run: Path) -> None:
    run = folder / "run"
    run.mkdir()
    for name in ("spec.yaml", "data.json"):
        (run / name).write_bytes((finished_run / name).read_bytes())
    result = call("train", "--resume", run)
    assert result.exit_code == 0, result.stderr
    assert "training from step 0 of 12" in result.stderr
    assert (run / "last.safetensors").read_bytes() == (
        finished_run / "last.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("name", ["missing", "other"])
def test_directory_that_is_no_run_is_2(name: str, folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("")
    result = call("train", "--resume", name)
    assert result.exit_code == 2
    assert f"{name} is no run" in result.stderr
    assert call("train", write_tiny(folder), "--out", "other", "--resume").exit_code == 2
    assert [path.name for path in (folder / "other").iterdir()] == ["thesis.tex"]


def test_missing_device_is_told_before_anything_is_read(folder: Path) -> None:
    missing = ("--set", "run.device=cuda" if not torch.cuda.is_available() else "run.device=mps")
    result = call("train", "resnet20", *missing, "--out", "run", "--data-dir", folder / "data")
    assert result.exit_code == 2
    assert "there is no device '" in result.stderr
    assert list(folder.iterdir()) == []


def test_directory_in_use_is_8(folder: Path, finished_run: Path) -> None:
    with RunDirectory(finished_run).locked():
        for arguments in (("--resume", finished_run), (write_tiny(folder), "--out", finished_run)):
            result = call("train", *arguments)
            assert result.exit_code == 8
            assert "is in use by process" in result.stderr


def test_missing_data_leave_nothing_behind(folder: Path) -> None:
    spec = write_tiny(folder)
    change = "data.dataset={type: image_folder, path: nowhere}"
    result = call("train", spec, "--set", change, "--data-dir", folder)
    assert result.exit_code == 3
    assert not (folder / "runs").exists()


def test_plugin_without_consent_is_2_and_names_the_flag(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit(99)\n")
    result = call("train", write_tiny(folder, "plugins: [mine.py]"))
    assert result.exit_code == 2
    assert "--plugin mine.py" in result.stderr
