"""``resnet-build list``."""

import json
import shutil
from itertools import groupby
from pathlib import Path

import pytest

from resnet_builder.blocks import BLOCKS
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.status import RunStatus
from resnet_builder.spec.bundled import bundled_names, recipe_names
from tests.cli.experiments import call, write_tiny
from tests.resume.runs import stopping_after

RUN_COLUMNS = ["run", "state", "step", "seed", "time", "validation", "test", "difference"]


def test_specs_are_listed_with_their_numbers() -> None:
    lines = call("list", "specs").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(bundled_names())
    assert ["resnet20", "269,722", "40,551,040", "91.25", "%"] in [line.split() for line in lines]
    found = json.loads(call("list", "specs", "--json").stdout)["bundled"]
    by_name = {one["name"]: one for one in found}
    assert by_name["resnet56"]["published.test.top1"] == 0.9303
    assert by_name["plain20"]["what"].startswith("Plain-20 for CIFAR-10")
    assert "published.test.top1" not in by_name["plain20"]


def test_recipes_are_listed_with_what_they_are() -> None:
    lines = call("list", "recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(recipe_names())
    [line] = (line for line in lines if line.startswith("one_cycle10"))
    assert "Ten epochs" in line


def test_parts_are_listed_with_options_ranges_and_defaults() -> None:
    result = call("list", "parts")
    assert result.exit_code == 0
    for line in (
        "block",
        "    dropout: a number, at least 0 and less than 1 (default 0)",
        "    position: `both` or `end` (default both)",
        "    size: a whole number, 1 to 4096 (required)",
        "    betas: a list of 2 numbers (default [0.9, 0.999])",
        "    unit: `steps` or `epochs` (default: not set)",
        "    nesterov: true or false (default false)",
    ):
        assert line in result.stdout.splitlines()
    parts = json.loads(call("list", "parts", "--json").stdout)["parts"]
    keys = [(part["set"], part["name"]) for part in parts]
    assert len(keys) == len(set(keys))
    sets = [name for name, _ in groupby(part["set"] for part in parts)]
    assert len(sets) == len(set(sets)), "every set is in one piece"
    assert {"block", "shortcut", "dataset", "augmentation", "optimizer", "warmup"} <= set(sets)
    [pad] = [part for part in parts if (part["set"], part["name"]) == ("shortcut", "pad")]
    assert pad["options"][0] == {
        "name": "position",
        "what": "Place of the zeros: on both sides of the channels, or at the end (as in Torch7).",
        "kind": "`both` or `end`",
        "allowed": ["both", "end"],
        "required": False,
        "default": "both",
    }


def test_plugin_s_parts_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    (folder / "more.py").write_text(
        "from resnet_builder.blocks import BLOCKS\n"
        "@BLOCKS.register('mine')\n"
        "def mine(in_channels, channels, *, stride, shortcut, twist: int = 3):\n"
        "    '''Twist.'''\n"
    )
    assert "mine" not in call("list", "parts").stdout
    lines = call("list", "parts", "--plugin", "more.py").stdout.splitlines()
    assert "  mine: Twist." in lines
    assert "    twist: a whole number (default 3)" in lines


def test_finished_run_is_listed_with_its_figures(finished_run: Path) -> None:
    lines = call("list", "runs", finished_run.parent).stdout.splitlines()
    assert lines[0].replace(" (best first)", "", 1).split() == RUN_COLUMNS
    assert "  validation (best first)  " in lines[0]
    assert lines[1].split()[:6] == [str(finished_run), "finished", "12", "of", "12", "0"]
    assert call("list", "runs", finished_run).stdout.splitlines() == lines, "of the run itself"
    [run] = json.loads(call("list", "runs", finished_run.parent, "--json").stdout)["runs"]
    assert (run["step"], run["total_steps"], run["seed"]) == (12, 12, 0)
    assert run["result"]["published"]["test.top1.difference"] == pytest.approx(
        run["result"]["test.top1"] - 0.5
    )


def test_runs_that_ended_otherwise_are_told_apart(folder: Path) -> None:
    spec = write_tiny(folder)
    line = ("train", spec, "--set", "train.checkpoint_every={steps: 1}", "--out")
    with stopping_after(5):
        assert call(*line, "runs/stopped", "--set", "train.seed=7").exit_code == 130
    assert call(*line, "runs/failed", "--set", "train.optimizer.lr=1e30").exit_code == 5
    assert call(*line, "runs/early", "--set", "train.early_stop={patience: 1}").exit_code == 0
    killed = folder / "runs" / "killed"
    shutil.copytree(folder / "runs" / "stopped", killed)
    log = (killed / "train.log").read_text().splitlines(keepends=True)
    (killed / "train.log").write_text("".join(log[:-1]))
    found = json.loads(call("list", "runs", "--json", "--sort", "name").stdout)["runs"]
    states = {Path(run["path"]).name: run["state"] for run in found}
    assert states.pop("early") in {"finished", "finished early"}
    assert states == {"failed": "failed", "killed": "killed", "stopped": "stopped"}
    assert [Path(run["path"]).name for run in found] == sorted({*states, "early"})
    by_name = {Path(run["path"]).name: run for run in found}
    stopped = by_name["stopped"]
    assert (stopped["step"], stopped["total_steps"], stopped["seed"]) == (6, 12, 7)
    assert "is not finite" in by_name["failed"]["error"]
    with RunDirectory(killed).locked():
        assert "running" in call("list", "runs").stdout
    printed = call("list", "runs", "--sort", "test").stdout.splitlines()
    assert "  test (best first)  " in printed[0]
    assert printed[1].startswith(str(Path("runs/early"))), "only it has an accuracy on the test"
    assert call("list", "runs", "--sort", "size").exit_code == 2


def test_runs_that_are_damaged_are_listed(folder: Path) -> None:
    for name, result in (("a-001", None), ("b-001", "{")):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "spec.yaml").write_text("name: a\n")
        if result is not None:
            (run / "result.json").write_text(result)
    (folder / "runs" / "none").mkdir()
    found = json.loads(call("list", "runs", "--json").stdout)["runs"]
    assert [(Path(run["path"]).name, run["state"]) for run in found] == [
        ("a-001", "killed"),
        ("b-001", "unreadable"),
    ]
    assert "is damaged" in found[1]["error"]


@pytest.mark.parametrize("word", ["spces", "spec", "Specs"])
def test_misspelt_list_gets_a_suggestion(word: str) -> None:
    result = call("list", word)
    assert result.exit_code == 2
    assert f"no such command '{word}'; did you mean: specs" in result.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [("eval", "evaluate"), ("compare", "diff"), ("runs", "list runs"), ("xyzzy", None)],
)
def test_command_of_another_program_gets_a_suggestion(word: str, meant: str | None) -> None:
    result = call(word, "x")
    assert result.exit_code == 2
    hint = "there are bench, diff, draw" if meant is None else f"did you mean: {meant}\n"
    assert f"no such command '{word}'; {hint}" in result.stderr


def test_runs_are_ranked_by_validation_images_and_never_by_test_images_unasked(
    finished_run: Path, folder: Path
) -> None:
    text = (finished_run / "result.json").read_text()
    values = json.loads(text)
    for name, val, test in (("a", 0.2, 0.9), ("b", 0.8, 0.1), ("c", None, 0.95)):
        shutil.copytree(finished_run, folder / "runs" / name)
        found = {**values, "val.top1": val, "test.top1": test}
        (folder / "runs" / name / "result.json").write_text(json.dumps(found))

    def listed(*arguments: object) -> list[str]:
        lines = call("list", "runs", *arguments).stdout.splitlines()
        return [line.split()[0].removeprefix("runs/") for line in lines]

    assert listed() == ["run", "b", "a", "c"]
    assert listed("--sort", "test") == ["run", "c", "a", "b"]
    for name in ("a", "b"):
        shutil.rmtree(folder / "runs" / name)
        shutil.copytree(folder / "runs" / "c", folder / "runs" / name)
    assert listed() == ["run", "a", "b", "c"]
    assert call("list", "runs").stdout.startswith("run (by name)  ")


def test_mean_average_precision_is_listed_where_it_selects_the_weights() -> None:
    from resnet_builder.cli.list import _RANKS
    from resnet_builder.cli.result import run_row

    several = RunStatus(Path("b"), "finished", val_top1=0.2, val_map=0.7)
    one = RunStatus(Path("a"), "finished", val_top1=0.6)
    assert run_row(several, "b")[5:7] == ("mAP 70.00 %", "")
    assert run_row(one, "a")[5:7] == ("60.00 %", "")
    assert sorted([one, several], key=_RANKS["validation"]) == [several, one]


def test_no_runs_are_said_to_be_none(folder: Path) -> None:
    result = call("list", "runs")
    assert (result.exit_code, result.stdout) == (0, "no runs in runs\n")
    result = call("list", "runs", "rusn")
    assert (result.exit_code, result.stderr) == (2, "error: there is no folder rusn\n")
