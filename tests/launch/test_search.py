"""Search by Optuna: trials that go on after a kill, pruning, and settings that come twice."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_builder.launch.group import Group, open_group
from resnet_builder.launch.plan import Plan, Trial, plan_sweep
from resnet_builder.launch.search import JOURNAL, Search
from resnet_builder.launch.sweep_file import read_sweep
from resnet_builder.runs.files import ignore
from resnet_builder.runs.records import ResultRecord
from resnet_builder.runs.status import RunStatus
from tests.cli.experiments import call, write_tiny

pytest.importorskip("optuna")

AXES = {
    "train.optimizer.lr": {"low": 0.001, "high": 1.0, "log": True},
    "model.stages.0.blocks": {"low": 1, "high": 9, "step": 2},
    "model.shortcut": ["pad", {"type": "projection"}],
}


def search_plan(folder: Path, **changes: Any) -> Plan:
    write_tiny(folder)
    values = {"spec": "tiny.yaml", "axes": AXES, "method": "tpe", "trials": 12, **changes}
    (folder / "search.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return plan_sweep(read_sweep(folder / "search.yaml"))


def finished(trial: Trial, accuracy: float) -> RunStatus:
    known = {"val.top1": accuracy, "spec_sha256": "0" * 64, "selected_on": "val"}
    counts = ("seed", "steps", "planned_steps", "selected_step", "parameters", "macs")
    times = {"seconds": 1, "images_per_second": 1, "early_stopped": False}
    what = {"device": "cpu", "precision": "fp32", "versions": {}}
    record = ResultRecord.model_validate({**known, **dict.fromkeys(counts, 1), **times, **what})
    return RunStatus(Path(trial.name), "finished", result=record)


def accuracy_of(trial: Trial) -> float:
    """Accuracy that a training would come to."""
    rate = trial.settings["train.optimizer.lr"]
    return float(1 / (1 + abs(rate - 0.1)))


@pytest.mark.ci
@pytest.mark.parametrize("method", ["tpe", pytest.param("random", marks=pytest.mark.slow)])
def test_killed_search_chooses_what_one_without_a_break_chooses(
    method: str, tmp_path: Path
) -> None:
    plan = search_plan(tmp_path, method=method)
    with open_group(tmp_path / "whole", plan, ignore) as group:
        whole = Search(plan, group, ignore)
        wanted = []
        while trial := whole.next():
            wanted.append((trial.name, trial.overrides))
            whole.finished(trial, finished(trial, accuracy_of(trial)))
    assert len(wanted) == len({name for name, _ in wanted}) == 12

    found: list[tuple[str, tuple[str, ...]]] = []
    for turn in range(28):
        with open_group(tmp_path / "killed", plan, ignore) as group:
            search = Search(plan, group, ignore)
            for _ in range(1 + turn % 2):
                trial = search.next()
                if trial is None:
                    break
                found.append((trial.name, trial.overrides))
                if turn % 3:  # else it is killed while the trial is trained
                    search.finished(trial, finished(trial, accuracy_of(trial)))
                else:
                    break
            with (group.path / JOURNAL).open("ab") as journal:
                journal.write(b'{"op_code": 4, "half')
    assert list(dict.fromkeys(found)) == wanted
    assert [one.name for one in group.record.runs] == [name for name, _ in wanted]


def test_poor_trial_is_pruned_and_stays_so(tmp_path: Path) -> None:
    plan = search_plan(tmp_path, pruning="median")
    with open_group(tmp_path / "group", plan, ignore) as group:
        search = Search(plan, group, ignore)
        for number in range(5):
            trial = search.next()
            assert trial is not None
            assert not search.prunes(trial, [0.5, 0.6 + number / 100])
            search.finished(trial, finished(trial, 0.7))
        poor = search.next()
        assert poor is not None
        assert not search.prunes(poor, [0.5])
        assert search.prunes(poor, [0.5, 0.3])
        again = Search(plan, group, ignore)
        assert group.record.runs[5].ended == "pruned"
        trial = again.next()
        assert trial is not None
        assert trial.name not in {one.name for one in group.record.runs[:6]}


def test_setting_that_comes_again_is_not_trained_again(tmp_path: Path) -> None:
    plan = search_plan(tmp_path, axes={"model.shortcut": ["pad", "projection"]}, trials=12)
    told: list[str] = []
    with open_group(tmp_path / "group", plan, ignore) as group:
        search = Search(plan, group, told.append)
        trained = 0
        while trial := search.next():
            search.finished(trial, finished(trial, 0.5))
            trained += 1
        assert trained == len(group.record.runs) == 2
        assert len(told) == 10
        assert Search(plan, group, ignore).next() is None


def test_only_a_training_that_diverged_is_not_tried_again(tmp_path: Path) -> None:
    plan = search_plan(tmp_path, trials=2)
    with open_group(tmp_path / "group", plan, ignore) as group:
        search = Search(plan, group, ignore)
        names = []
        for code in (5, 7):
            trial = search.next()
            assert trial is not None
            assert search.failed(trial, code) == (code == 7)
            names.append(trial.name)
        again = Search(plan, group, ignore)
        trial = again.next()
        assert trial is not None
        assert trial.name == names[1]
        assert again.next() is None


@pytest.mark.ci
@pytest.mark.parametrize(
    "changes",
    [
        {"sampler_seed": 1},
        {"axes": {**AXES, "train.optimizer.lr": {"low": 0.001, "high": 1.0}}},
        pytest.param({"method": "random"}, marks=pytest.mark.slow),
        pytest.param(
            {"axes": {**AXES, "model.stages.0.blocks": {"low": 1, "high": 9}}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_option_of_a_search_changes_what_it_chooses(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    chosen = []
    for name, options in (("usual", {}), ("other", changes)):
        plan = search_plan(tmp_path, **options)
        with open_group(tmp_path / name, plan, ignore) as group:
            search = Search(plan, group, ignore)
            overrides = []
            while trial := search.next():
                overrides.append(trial.overrides)
                search.finished(trial, finished(trial, accuracy_of(trial)))
        chosen.append(overrides)
    assert chosen[0] != chosen[1]


def test_lower_and_upper_ends_of_ranges_are_kept(tmp_path: Path) -> None:
    plan = search_plan(tmp_path, method="random", trials=16)
    with open_group(tmp_path / "group", plan, ignore) as group:
        search = Search(plan, group, ignore)
        settings = [trial.settings for _ in range(16) if (trial := search.next())]
    assert {one["model.stages.0.blocks"] for one in settings} == {1, 3, 5, 7, 9}
    assert all(0.001 <= one["train.optimizer.lr"] <= 1 for one in settings)
    shortcuts = [one["model.shortcut"] for one in settings]
    assert "pad" in shortcuts
    assert {"type": "projection"} in shortcuts


def test_group_keeps_what_its_spec_was(tmp_path: Path) -> None:
    plan = search_plan(tmp_path)
    with open_group(tmp_path / "group", plan, ignore) as group:
        assert isinstance(group, Group)
        text = (group.path / "specs" / "tiny.yaml").read_text(encoding="utf-8")
    assert text == plan.trials[0].base.text


def test_search_without_optuna_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_plan(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = call("sweep", tmp_path / "search.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'resnet-builder[sweep]'" in result.stderr
    assert not (tmp_path / "out").exists()
