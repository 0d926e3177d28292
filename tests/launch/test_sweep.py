"""Sweeps: the sweep file and its messages, names, extension, results, and what is refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from resnet_builder.launch.plan import plan_sweep, short_names, value_name
from resnet_builder.launch.sweep_file import read_sweep
from tests.cli.experiments import call, write_tiny
from tests.launch.stand_in import train_in_process

SHORTCUTS: dict[str, Any] = {
    "spec": "tiny.yaml",
    "axes": {"model.shortcut": ["pad", "projection"], "lr": [0.1, 0.01]},
    "set": {"train.epochs": 1},
    "seeds": "0-1",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own, which has the tiny experiment."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return tmp_path


def write_sweep(folder: Path, name: str = "sweep.yaml", **values: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def planned(folder: Path, **values: Any) -> list[str]:
    return [trial.name for trial in plan_sweep(read_sweep(write_sweep(folder, **values))).trials]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("axes: {lr: [1]}", ["spec: is missing: give the base spec"]),
        ("spec: tiny.yaml\naxis: {lr: [1]}", ["axis: there is no such key", "did you mean: axes"]),
        ("base: tiny.yaml", ["base: there is no such key", "did you mean: spec"]),
        ("spec: tiny.yaml\nparameters: {lr: [1]}", ["did you mean: axes"]),
        (
            "spec: tiny.yaml\nlr: [1]",
            ["lr: there is no such key", "did you mean: axes: {train.optimizer.lr: [...]}"],
        ),
        (
            "spec: tiny.yaml\naxes: {model.shortcut: pad}",
            ["sweep.yaml:2:24", "must be a list of values, or a range", "did you mean: [pad]"],
        ),
        (
            "spec: tiny.yaml\naxes:\n  model: {shortcut: [pad]}",
            ["sweep.yaml:3:3", "did you mean: model.shortcut: [...]"],
        ),
        ("spec: tiny.yaml\naxes: {seed: [1]}", ["seeds have a key of their own"]),
        ("spec: tiny.yaml\naxes: {depth: [20]}", ["is an option of a family"]),
        (
            "family: resnet\naxes: {depth: [20, 33]}",
            ["sweep.yaml:2:20", "no resnet is 33 layers deep", "32 and 38"],
        ),
        ("family: {name: resnet}\naxes: {lr: [1]}", ["give a depth"]),
        ("family: resnett\naxes: {depth: [20]}", ["did you mean: resnet"]),
        ("spec: tiny.yaml\naxes: {lr: [1, 1]}", ["sweep.yaml:2:16", "1 is given twice"]),
        ("spec: tiny.yaml\naxes: {lr: []}", ["an axis has at least one value"]),
        ("spec: tiny.yaml\naxes: {lr: {low: 1, high: 2}}", ["a range needs `method: tpe`"]),
        (
            "spec: tiny.yaml\naxes: {lr: {low: 2, high: 1}}\nmethod: tpe\ntrials: 3",
            ["`high` must be more than `low`"],
        ),
        (
            "spec: tiny.yaml\naxes: {lr: {low: 0, high: 1, log: true}}\nmethod: tpe\ntrials: 3",
            ["with `log`, `low` must be more than 0"],
        ),
        ("spec: tiny.yaml\naxes: {lr: [1]}\nmethod: tpe", ["needs a number of `trials`"]),
        ("spec: tiny.yaml\naxes: {lr: [1]}\ntrials: 3", ["has no effect on a grid"]),
        ("spec: tiny.yaml\naxes: {lr: [1]}\nmethod: tpee", ["did you mean: tpe"]),
        ("spec: tiny.yaml\naxes: {lr: [1]}\nset: {lr: 2}", ["leave one of them out"]),
        ("spec: tiny.yaml\naxes: {spec: [tiny.yaml]}", ["the specs are the axis `spec`"]),
        ("axes: {spec: [tiny.yaml, other.yaml]}", ["sweep.yaml:1:26", "there is no such file"]),
        ("axes: {spec: [tiny.yaml, resnet21]}", ["sweep.yaml:1:26", "no bundled spec"]),
        ("spec: tiny.yaml\nseeds: 3-1", ["3-1 is no range of seeds"]),
        ("spec: tiny.yaml\nseeds: 0-99999", ["0-99999 is too many seeds: at most 10,000"]),
        ("spec: tiny.yaml\nseeds: [1, 1]", ["a seed is named twice"]),
        (
            "spec: tiny.yaml\naxes: {lr: [1]}\nseeds: 0-1\nmethod: tpe\ntrials: 3",
            ["a search takes one seed"],
        ),
        (
            "spec: tiny.yaml\naxes: {model.shortcut: [pad, padd]}",
            ["sweep.yaml:2:30", "no shortcut is named 'padd'", "did you mean: pad"],
        ),
        (
            "spec: tiny.yaml\naxes: {model.shortcutt: [pad]}",
            ["sweep.yaml:2:8", "model.shortcutt: there is no such key"],
        ),
        (
            "spec: tiny.yaml\naxes: {lr: [0.1, -1]}\nset: {data.validation: -1}",
            ["sweep.yaml:2:18", "lr: -1 is out of range", "sweep.yaml:3:24", "data.validation: -1"],
        ),
        (
            "spec: tiny.yaml\naxes: {model.shortcut: [pad, {type: pad}]}",
            ["are the same experiment: leave one of them out"],
        ),
        (
            "spec: tiny.yaml\naxes: {lr: [1]}\nset: {data.validation: 0}\nmethod: tpe\ntrials: 3",
            ["never by the test images", "`set: {data.validation: 0.1}`"],
        ),
        (
            "model: {num_classes: 3}",
            [
                "sweep.yaml:1:1",
                "this file is a spec, and no sweep",
                "did you mean: resnet-build train sweep.yaml\n",
            ],
        ),
        ("3", ["a sweep is a mapping of `key: value`"]),
    ],
)
def test_wrong_sweep_is_told_with_its_place_before_anything_is_trained(
    text: str, messages: list[str], folder: Path
) -> None:
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    result = call("sweep", "sweep.yaml")
    assert result.exit_code == 2
    for message in messages:
        assert message in result.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("command", ["train", "summary"])
def test_sweep_in_place_of_a_spec_is_told_with_the_line_to_type(command: str, folder: Path) -> None:
    write_sweep(folder, **SHORTCUTS)
    result = call(command, "sweep.yaml")
    assert result.exit_code == 2
    assert "this file is a sweep, and no spec" in result.stderr
    assert result.stderr.endswith("\ndid you mean: resnet-build sweep sweep.yaml\n")
    assert result.stderr.count("error[") == 1
    result = call("sweep", "resnet20")
    assert result.exit_code == 2
    assert result.stderr.endswith("\ndid you mean: resnet-build train resnet20\n")


def test_names_are_of_what_varies_and_safe_on_every_system(folder: Path) -> None:
    assert planned(folder, **SHORTCUTS)[:3] == [
        "lr=0.1,shortcut=pad,seed=0",
        "lr=0.01,shortcut=pad,seed=0",
        "lr=0.1,shortcut=projection,seed=0",
    ]
    assert planned(folder, family="resnet", axes={"depth": [20, 32]}, seeds=7) == [
        "depth=20,seed=7",
        "depth=32,seed=7",
    ]
    assert planned(folder, axes={"spec": ["tiny.yaml", "resnet20"], "with": [None, "fast"]}) == [
        "spec=tiny,with=null,seed=0",
        "spec=tiny,with=fast,seed=0",
        "spec=resnet20,with=null,seed=0",
        "spec=resnet20,with=fast,seed=0",
    ]
    assert short_names(("train.optimizer.lr", "train.optimizer.aux.lr", "model.block")) == {
        "train.optimizer.lr": "optimizer.lr",
        "train.optimizer.aux.lr": "aux.lr",
        "model.block": "block",
    }
    assert value_name({"type": "bottleneck", "groups": 8}) == "bottleneck-groups-8"
    assert value_name('a/b:c*?"<>|') == "a-b-c"
    assert value_name(-3) == "-3"
    assert len(value_name("x" * 300)) == 40


def test_paths_of_axes_count_from_the_sweep_file(folder: Path) -> None:
    (folder / "sweeps").mkdir()
    axes = {
        "model.weights": [None, "a.pth", {"path": "b.pth"}, "torchvision:resnet18"],
        "data.dataset": ["synthetic", {"type": "image_folder", "path": "images"}],
    }
    path = write_sweep(folder / "sweeps", spec="../tiny.yaml", axes=axes)
    laid = [trial.overrides for trial in plan_sweep(read_sweep(path)).trials]
    inside = os.path.realpath(folder / "sweeps")
    assert [weights for weights, _ in laid[::2]] == [
        "model.weights=null",
        f"model.weights={inside}/a.pth",
        f"model.weights={{path: {inside}/b.pth}}",
        "model.weights=torchvision:resnet18",
    ]
    assert {dataset for _, dataset in laid} == {
        "data.dataset=synthetic",
        f"data.dataset={{type: image_folder, path: {inside}/images}}",
    }


def test_names_that_a_file_system_takes_for_the_same_get_digests(folder: Path) -> None:
    names = planned(folder, spec="tiny.yaml", axes={"name": ["a", "A"]})
    assert len({name.casefold() for name in names}) == 2


@pytest.mark.ci
def test_sweep_ends_with_a_table_goes_on_and_takes_new_values(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_one(arguments: Sequence[str]) -> int | None:
        return 5 if "shortcut=pad,seed=1" in arguments[-2] else None

    train_in_process(monkeypatch, break_one)
    write_sweep(folder, **{**SHORTCUTS, "axes": {"model.shortcut": ["pad"]}})
    broken = call("sweep", "sweep.yaml")
    assert broken.exit_code == 5
    assert "2 runs: 1 finished, 1 failed" in broken.stdout

    started = train_in_process(monkeypatch)
    write_sweep(folder, **{**SHORTCUTS, "axes": {"model.shortcut": ["pad", "projection"]}})
    found = json.loads(call("sweep", "sweep.yaml", "--dry-run", "--json").stdout)
    assert [one["state"] for one in found["runs"]].count("finished") == 1
    listed = call("sweep", "sweep.yaml", "--dry-run").stdout
    assert "1 epoch\n" in listed
    assert listed.count("finished") == 1
    assert listed.count("new") == 3
    assert "4 runs, about 4.0 times the computation of the first" in listed
    done = call("sweep", "sweep.yaml", "--json")
    assert done.exit_code == 0, done.stderr
    assert len(started) == 3
    settings = json.loads(done.stdout)["settings"]
    assert [one["n"] for one in settings] == [2, 2]
    means = [one["val_mean"] for one in settings]
    assert means == sorted(means, reverse=True)

    table = call("sweep", "sweep.yaml", "--set", "run.report=true", "--device", "cpu")
    rows = table.stdout.splitlines()
    best = settings[0]
    assert rows[0].split()[:3] == ["shortcut", "n", "validation"]
    assert rows[1].split()[0] == best["settings"]["model.shortcut"]
    assert f"{100 * best['test_mean']:.2f} %" in rows[1]
    for command in ("evaluate", "publish", f"plot {Path('runs', 'sweep')}"):
        assert f"  resnet-build {command}" in table.stderr
    assert "projection" in (folder / "runs" / "sweep" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": {"model.shortcut": ["pad"]}},
            "axes: model.shortcut, lr there, model.shortcut now",
        ),
        ({"set": {"train.epochs": 2}}, "train.epochs=2 now, and not there"),
        ({"method": "random", "trials": 2, "seeds": 0}, "sweep by grid there, sweep by random now"),
    ],
)
def test_another_sweep_is_not_mixed_with_the_runs_of_a_directory(
    changes: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch, lambda arguments: 0)
    assert call("sweep", write_sweep(folder, **SHORTCUTS)).exit_code == 0
    result = call("sweep", write_sweep(folder, **{**SHORTCUTS, **changes}))
    assert result.exit_code == 2
    assert message in result.stderr


def test_edited_spec_is_not_mixed_with_the_runs_of_a_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch, lambda arguments: 0)
    line = ("sweep", write_sweep(folder, **SHORTCUTS))
    assert call(*line).exit_code == 0
    spec = folder / "tiny.yaml"
    spec.write_text(spec.read_text(encoding="utf-8").replace("batch_size: 32", "batch_size: 16"))
    assert "tiny: train.batch_size: 32 there, 16 now" in call(*line).stderr


def test_grid_without_validation_images_chooses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch)
    more: dict[str, Any] = {
        "set": {"train.epochs": 1, "data.validation": 0},
        "axes": {"batch_size": [32, 16]},
    }
    result = call("sweep", write_sweep(folder, spec="tiny.yaml", **more))
    assert result.exit_code == 0, result.stderr
    assert [row.split()[0] for row in result.stdout.splitlines()[1:3]] == ["32", "16"]
    assert "the settings are not ranked, as there are no validation images" in result.stderr
    assert "next:" not in result.stderr


def test_validate_and_the_json_schema_know_sweeps(folder: Path) -> None:
    path = write_sweep(folder, **SHORTCUTS)
    assert call("validate", path).stdout == f"{path}: a sweep of 8 runs\n"
    schema = json.loads(call("schema", "--sweep").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    for good in (SHORTCUTS, {"family": "resnet", "axes": {"depth": [20]}, "with": "fast"}):
        jsonschema.validate(good, schema)
    wrong: list[dict[str, Any]] = [{"axis": {}}, {"axes": {"lr": 1}}, {"seeds": "x"}]
    for bad in (*wrong, {"method": "best"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
