"""``resnet-build validate``."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from resnet_builder.builder import check_source
from resnet_builder.errors import SpecError
from tests.cli.experiments import call, write_tiny


def test_good_networks_get_a_line_each() -> None:
    result = call("validate", "resnet20", "resnet20_digits", "--set", "train=null")
    assert result.exit_code == 0
    assert result.stdout == (
        "resnet20: 269,722 parameters, depth 20, 40,551,040 MACs\n"
        "resnet20_digits: 269,434 parameters, depth 20, 2,516,608 MACs\n"
    )


def test_problems_of_all_specs_are_reported_together(folder: Path) -> None:
    one = write_tiny(folder, "expect: {parameters: 1}", name="one.yaml")
    two = write_tiny(folder, "trian: {}", name="two.yaml")
    result = call("validate", one, "resnet20", two)
    assert result.exit_code == 2
    assert "resnet20: 269,722 parameters, depth 20, 40,551,040 MACs\n" in result.stdout
    assert f"{one}:18:22: error[expect]: expect.parameters: the network has" in result.stderr
    assert f"{two}:18:1: error[unknown-key]: trian: there is no such key" in result.stderr
    assert "did you mean: train" in result.stderr


def test_fragments_are_composed_and_notices_shown() -> None:
    result = call("validate", "resnet20", "--set", "model.shortcut=projection", "--with", "kj60")
    assert result.exit_code == 0
    assert result.stdout.startswith("resnet20: 272,474 parameters, depth 20, 40,813,184 MACs\n")
    assert result.stderr == (
        "resnet20: not compared with the expected counts (`expect`) and the published result "
        "(`published`): the command line changes the network, the data and the recipe\n"
    )


def test_json_has_counts_and_problems(folder: Path) -> None:
    path = write_tiny(folder, "trian: {}")
    result = call("validate", "resnet20", path, "--json")
    assert result.exit_code == 2
    assert result.stderr == ""
    good, bad = json.loads(result.stdout)["specs"]
    assert all(good.pop(f"{what}_bytes") > 2**20 for what in ("memory", "activation", "disk"))
    assert good == {
        "source": "resnet20",
        "name": "resnet20",
        "parameters": 269722,
        "depth": 20,
        "macs": 40551040,
        "problems": [],
        "notices": [],
    }
    [problem] = bad["problems"]
    assert problem["code"] == "unknown-key"
    assert (problem["file"], problem["line"], problem["col"]) == (str(path), 18, 1)
    assert problem["suggestion"] == "train"


LINE = "expect: {parameters: 440, depth: 4, macs: 25360}"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("", 0),
        ("expect: {parameters: 440}", 0),
        ("expect: {parameters: 450, depth: 4}", 2),
        ("expect: {parameters: 440, depth: 4, macs: 1}", 2),
    ],
)
def test_line_to_paste_is_printed_where_counts_lack_or_are_wrong(
    given: str, code: int, folder: Path
) -> None:
    path = write_tiny(folder, given)
    before = path.read_bytes()
    result = call("validate", path)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (code, LINE)
    assert path.read_bytes() == before
    assert json.loads(call("validate", path, "--json").stdout)["specs"][0]["expect"] == LINE
    pasted = write_tiny(folder, LINE, name="pasted.yaml")
    result = call("validate", pasted)
    assert result.exit_code == 0
    assert "expect" not in result.stdout


def test_training_that_does_not_fit_into_memory_is_warned_of() -> None:
    result = call("validate", "resnet152", "--set", "train.batch_size=1048576")
    assert result.exit_code == 0
    assert "memory" in result.stderr
    assert "resnet152: 60,192,808 parameters" in result.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.dataset=cifar-10", "no dataset is named 'cifar-10'"),
        ("data.dataset=cifar-10", "did you mean: cifar10"),
        ("model.block=Basic Block", "did you mean: basic"),
        ("model.block=''", "no block is named ''"),
        ("model.block=os.system", "no block is named 'os.system'"),
        (f"model.block={'x' * 4000}", f"no block is named '{'x' * 64}…'"),
        ("data.dataset=folder", "images of your own are {type: image_folder, path: FOLDER}"),
        ("train.loss=bce", "no loss is named 'bce': its name here is `binary_cross_entropy`"),
        ("data.dataset={type: digits, path: x}", "a folder of images needs `type: image_folder`"),
        ("data.path=x", "did you mean: data.dataset.path"),
        ("data.dataset={type: digits, size: 8}", "there is no such option; `digits` has none"),
        ("model.shortcut={type: none, size: 8}", "there is no such option; `none` has none"),
    ],
)
def test_part_that_is_none_or_has_no_options_is_told_so(
    override: str, message: str, folder: Path
) -> None:
    result = call("validate", write_tiny(folder), "--set", override)
    assert result.exit_code == 2
    assert message in result.stderr


FAULTS = {
    "model.xyz=1": "model.xyz",
    "model.num_classes=x": "model.num_classes",
    "model.drop_path=2": "model.drop_path",
    "model.block=bsic": "model.block",
    "model.shortcut={type: pad, positon: end}": "model.shortcut.positon",
    "model.norm={epz: 1}": "model.norm.epz",
    "model.init=kaimin_normal": "model.init",
    "model.stages.0={channels: x, blocks: 1, attention: {type: se, reduction: 0}}": (
        "model.stages[0].attention.reduction"
    ),
    "data.xyz=1": "data.xyz",
    "data.validation=-1": "data.validation",
    "data.dataset=digit": "data.dataset",
    "data.augment=[horizontal_flp]": "data.augment[0]",
    "train.xyz=1": "train.xyz",
    "train.batch_size=0": "train.batch_size",
    "train.optimizer.momentun=0.9": "train.optimizer.momentun",
    "train.schedule=cosin": "train.schedule",
    "train.optimizer.lr=null": "train.optimizer.lr",
    "run.device=tpu": "run.device",
    "run.compile=no": "run.compile",
    "expect.depht=4": "expect.depht",
    "published={test_top1: 2}": "published.test_top1",
    "plugins=[mine.py]": "plugins[0]",
    "xyz=1": "xyz",
}
"""Faults of every kind, and their places."""


PERHAPS_OF_THE_PLUGIN = {"model.block", "data.dataset", "data.augment[0]"}
"""Unknown names, which a plugin that is not imported may register."""


def test_no_fault_hides_another(folder: Path) -> None:
    spec = write_tiny(folder)
    for one, other in combinations(FAULTS, 2):
        wanted = {FAULTS[one], FAULTS[other]}
        if "plugins[0]" in wanted:
            wanted -= PERHAPS_OF_THE_PLUGIN
        assert wanted <= places(spec, one, other), (one, other)
    assert {*FAULTS.values()} - PERHAPS_OF_THE_PLUGIN <= places(spec, *FAULTS)


RULES = {
    "train.accumulate=3": "train.accumulate",
    "train.schedule={type: multistep, milestones: [9]}": "train.schedule.milestones",
    "train.no_weight_decay=[norm]": "train.no_weight_decay",
    "train.optimizer.nesterov=true": "train.optimizer.nesterov",
    "data.normalize={mean: [0.5], std: [0.5, 0.5]}": "data.normalize.std",
    "data.split_seed=1": "data.split_seed",
}
"""Values that break a rule between two keys, where momentum, decay and validation are 0."""


@pytest.mark.parametrize(
    "unknown", ["xyz", "train.xyz", "train.lr", "train.optimizer.xyz", "data.xyz"]
)
def test_unknown_key_hides_no_broken_rule(unknown: str, folder: Path) -> None:
    spec = write_tiny(folder)
    for rule, place in RULES.items():
        base = ["data.validation=0", "train.optimizer.momentum=0", f"{unknown}=1"]
        assert places(spec, *base, rule) == {unknown, place}


def test_key_that_is_misspelt_breaks_no_rule(folder: Path) -> None:
    overrides = ["train.no_weight_decay=[norm]", "train.optimizer.weight_decai=0.1"]
    assert places(write_tiny(folder), *overrides) == {"train.optimizer.weight_decai"}


def places(spec: Path, *overrides: str) -> set[str]:
    """Return the places of all problems."""
    try:
        problems = check_source(spec, overrides=overrides).problems
    except SpecError as error:
        problems = error.errors
    return {problem.path for problem in problems}


def test_rare_classes_that_count_twice_are_told(folder: Path) -> None:
    settings = ("--set", "data.sampler=balanced", "--set", "train.loss.class_weights=balanced")
    for given in (settings, settings[:2], settings[2:]):
        result = call("validate", write_tiny(folder), *given)
        assert result.exit_code == 0
        assert ("rare classes count twice" in result.stderr) == (given == settings)
