"""Groups of runs that are killed: the same command line again and again ends in the same bits."""

import random
import signal
import time
from pathlib import Path

import pytest
import yaml

from resnet_builder.runs.group import group_runs
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import CommandLine, Server, family, kill, wait_until

FORKING = (("forking_workers",),)


def kill_until_finished(
    server: Server, line: tuple[object, ...], folder: Path, kills: int, longest: float
) -> None:
    """Kill a line so often at work, and then let it finish."""
    choose = random.Random(0)
    hits = 0
    for _ in range(3 * kills):
        process = server.start(*line, folder=folder, faults=FORKING)
        time.sleep(choose.uniform(0.1, longest))
        kill(process)
        hits += process.wait().code == -signal.SIGKILL
        if hits == kills:
            break
    end = server.call(*line, folder=folder, faults=FORKING)
    assert end.code == 0, end.stderr


@pytest.mark.ci
def test_killed_seeds_end_in_the_bits_of_single_runs(server: Server, tmp_path: Path) -> None:
    spec = write_experiment(tmp_path, "early", epochs=4)
    line = ("train", spec, "--seeds", "0-1", "--out", tmp_path / "group", "--no-report")
    kill_until_finished(server, line, tmp_path, 2, 1.0)
    for seed in (0, 1):
        run = tmp_path / f"alone-{seed}"
        alone = train_line(spec, run, "--seed", seed, "--no-report")
        assert server.call(*alone, folder=tmp_path).code == 0
        assert_same_outcome(tmp_path / "group" / f"seed={seed}", outcome_of(run))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_sweep_ends_in_the_bits_of_single_runs(server: Server, tmp_path: Path) -> None:
    write_experiment(tmp_path, "everything")
    sweep = {
        "spec": "everything.yaml",
        "axes": {"model.shortcut": ["pad", "projection"], "train.optimizer.lr": [0.1, 0.01]},
        "seeds": [0, 5],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    line = ("sweep", "sweep.yaml", "--jobs", "2")
    kill_until_finished(server, line, tmp_path, 8, 6.0)
    runs = group_runs(tmp_path / "runs" / "sweep")
    assert len(runs) == 8
    for run in runs[::3]:
        shortcut = "pad" if "shortcut=pad" in run.path.name else "projection"
        rate = "0.01" if "lr=0.01" in run.path.name else "0.1"
        more = ("--set", f"model.shortcut={shortcut}", "--set", f"train.optimizer.lr={rate}")
        alone = tmp_path / f"alone {run.path.name}"
        spec = tmp_path / "everything.yaml"
        end = server.call(*train_line(spec, alone, *more, "--seed", run.seed), folder=tmp_path)
        assert end.code == 0, end.stderr
        assert_same_outcome(run.path, outcome_of(alone))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_search_chooses_no_trial_twice(server: Server, tmp_path: Path) -> None:
    write_experiment(tmp_path, "early", epochs=4)
    axes = {
        "train.optimizer.lr": {"low": 0.001, "high": 1.0, "log": True},
        "model.shortcut": ["pad", "projection"],
    }
    sweep = {"spec": "early.yaml", "axes": axes, "method": "tpe", "trials": 14}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    for name in ("whole", "killed"):
        line = ("sweep", "search.yaml", "--out", name)
        kill_until_finished(server, line, tmp_path, 0 if name == "whole" else 8, 3.0)
    whole, killed = (group_runs(tmp_path / name) for name in ("whole", "killed"))
    assert [run.path.name.split(",", 1)[1] for run in killed] == [
        run.path.name.split(",", 1)[1] for run in whole
    ]
    assert len({run.path.name for run in killed}) == 14
    assert [run.val_top1 for run in killed] == [run.val_top1 for run in whole]


@pytest.mark.parametrize(
    "name",
    [pytest.param("SIGINT", marks=pytest.mark.ci), pytest.param("SIGTERM", marks=pytest.mark.slow)],
)
def test_signal_stops_all_runs_and_the_line_continues_them(
    name: str, server: Server, tmp_path: Path
) -> None:
    spec = write_experiment(tmp_path, "early", epochs=200)
    line = ("train", spec, "--seeds", "0-2", "--jobs", "2", "--out", "group", "--epochs", "2")
    longer = (*line[:-1], "200")
    process = server.start(*longer, folder=tmp_path, faults=FORKING)
    wait_until(
        lambda: all((tmp_path / f"group/seed={n}/best.safetensors").exists() for n in (0, 1))
    )
    kill(process, getattr(signal, name))
    end = process.wait()
    assert end.code == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert "to continue: resnet-build train" in end.stderr
    states = [run.state for run in group_runs(tmp_path / "group")]
    assert states == ["stopped", "stopped", "waiting"]
    refused = server.call(*line, folder=tmp_path, faults=FORKING)
    assert refused.code == 2
    assert "train.epochs: 200" in refused.stderr


@pytest.mark.ci
def test_no_run_begins_behind_one_whose_disk_is_full(server: Server, tmp_path: Path) -> None:
    spec = write_experiment(tmp_path, "early", epochs=1)
    line = ("train", spec, "--seeds", "0-2", "--out", "group", "--no-report")
    full = ("failing", "replace", "ENOSPC", "seed=1/result.json", 1, 99)
    end = server.call(*line, folder=tmp_path, faults=(*FORKING, full))
    assert end.code == 7
    assert "seed=1/result.json: No space left on device" in end.stderr
    states = [run.state for run in group_runs(tmp_path / "group")]
    assert states == ["finished", "failed", "waiting"]
    full = ("failing", "replace", "ENOSPC", "/group.json", 1, 99)
    end = server.call(*line, folder=tmp_path, faults=(*FORKING, full))
    assert end.code == 7
    assert end.stderr.endswith("group.json: No space left on device\n")
    assert server.call(*line, folder=tmp_path, faults=FORKING).code == 0


@pytest.mark.slow
def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    spec = write_experiment(tmp_path, "plain", epochs=20_000)
    group = CommandLine("train", spec, "--seeds", "0", "--out", "group", folder=tmp_path)
    run = tmp_path / "group" / "seed=0"
    wait_until(lambda: any((run / "checkpoints").glob("*.safetensors")))
    assert len(family(group)) == 1, "the worker has a session of its own"
    kill(group)
    assert group.wait().code == -signal.SIGKILL
    wait_until(lambda: group_runs(tmp_path / "group")[0].state == "stopped", seconds=20)
