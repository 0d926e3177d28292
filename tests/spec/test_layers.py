"""What a spec extends, fragments, and what belongs to a file alone."""

from pathlib import Path

import pytest

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec import bundled
from resnet_builder.spec.load import load_spec, read_draft
from tests.spec.texts import FULL, MINIMAL, write


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put bundled specs and recipes of our own in the place of the package's."""
    folder = tmp_path / "bundled"
    (folder / "recipes").mkdir(parents=True)
    monkeypatch.setattr(bundled, "_directory", lambda: folder)
    write(folder, FULL, "resnet20.yaml")
    write(folder / "recipes", "train: {seed: 9}\n", "lucky.yaml")
    return folder


def refused(path: Path, **layers: list[str]) -> Problem:
    with pytest.raises(SpecError) as raised:
        load_spec(path, fragments=layers.get("fragments", []))
    [problem] = raised.value.errors
    return problem


def test_file_extends_another_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path, FULL, "base.yaml")
    path = write(tmp_path / "inner", "extends: ../base.yaml\ntrain: {seed: 5}\n")
    spec = load_spec(path)
    assert spec.train is not None
    assert (spec.train.seed, spec.train.batch_size, spec.model.num_classes) == (5, 32, 10)


def test_file_extends_a_bundled_spec_or_recipe(tmp_path: Path, specs: Path) -> None:
    path = write(tmp_path, "extends: [resnet20, lucky]\n")
    spec = load_spec(path)
    assert spec.train is not None
    assert (spec.train.seed, spec.train.steps) == (9, 1000)


def test_later_base_lies_over_earlier_ones_and_the_file_over_all(tmp_path: Path) -> None:
    write(tmp_path, FULL, "low.yaml")
    write(tmp_path, "train: {seed: 1, keep_checkpoints: 3}\n", "high.yaml")
    path = write(tmp_path, "extends: [low.yaml, high.yaml]\ntrain: {keep_checkpoints: 4}\n")
    spec = load_spec(path)
    assert spec.train is not None
    assert (spec.train.seed, spec.train.keep_checkpoints, spec.train.batch_size) == (1, 4, 32)


def test_base_may_extend_and_be_extended_twice(tmp_path: Path) -> None:
    write(tmp_path, FULL, "base.yaml")
    write(tmp_path, "extends: base.yaml\ntrain: {seed: 1}\n", "left.yaml")
    write(tmp_path, "extends: base.yaml\ntrain: {keep_checkpoints: 5}\n", "right.yaml")
    spec = load_spec(write(tmp_path, "extends: [left.yaml, right.yaml]\n"))
    assert spec.train is not None
    assert (spec.train.seed, spec.train.keep_checkpoints) == (1, 5)


def test_name_expect_and_published_are_never_inherited(tmp_path: Path) -> None:
    write(tmp_path, FULL, "base.yaml")
    spec = load_spec(write(tmp_path, "extends: base.yaml\n", "mine.yaml"))
    assert (spec.name, spec.expect, spec.published) == ("mine", None, None)


def test_fragment_lies_over_the_spec_and_under_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    write(
        tmp_path,
        "name: other\nexpect: {depth: 5}\ntrain: {seed: 1, keep_checkpoints: 3}\n",
        "low.yaml",
    )
    write(tmp_path, "train: {seed: 2}\n", "high.yaml")
    draft = read_draft(
        path,
        fragments=[tmp_path / "low.yaml", str(tmp_path / "high.yaml")],
        overrides=["train.accumulate=2", "train.keep_checkpoints=4", "train.accumulate=4"],
    )
    assert draft.train is not None
    assert (draft.train.seed, draft.train.keep_checkpoints, draft.train.accumulate) == (2, 4, 4)
    assert draft.name == "full"
    assert draft.expect is not None
    assert draft.expect.depth == 8


def test_fragment_may_be_a_bundled_name(tmp_path: Path, specs: Path) -> None:
    spec = load_spec(write(tmp_path, FULL), fragments=["lucky"])
    assert spec.train is not None
    assert spec.train.seed == 9


def test_mapping_extends_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, FULL, "base.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_spec({"extends": "base.yaml"}).name == "unnamed"


def test_changed_network_drops_what_is_said_of_it(tmp_path: Path) -> None:
    draft = read_draft(write(tmp_path, FULL), overrides=["model.stages.0.blocks=2"])
    assert (draft.expect, draft.published) == (None, None)
    assert draft.notices == (
        "`expect` and `published` left out, as --set or --with changes the network",
    )


def test_fragment_that_changes_the_network_drops_what_is_said_of_it(tmp_path: Path) -> None:
    write(tmp_path, "model: {drop_path: 0.1}\n", "fragment.yaml")
    draft = read_draft(write(tmp_path, FULL), fragments=[tmp_path / "fragment.yaml"])
    assert (draft.expect, draft.published) == (None, None)


@pytest.mark.parametrize(
    "argument",
    [
        "train.seed=3",
        "train.keep_checkpoints=4",
        "train.evaluate_every={epochs: 5}",
        "train.checkpoint_every.seconds=5",
        "data.split_seed=3",
        "run.threads=1",
        "name=again",
        "model.num_classes=10",
        "data.validation=0.1",
    ],
)
def test_same_experiment_keeps_what_is_said_of_it(argument: str, tmp_path: Path) -> None:
    draft = read_draft(write(tmp_path, FULL), overrides=[argument])
    assert draft.expect is not None
    assert draft.published is not None
    assert draft.notices == ()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["data.dataset=cifar10"], "the data"),
        (["data.dataset={type: image_folder, path: mine}"], "the data"),
        (["data.augment=[]"], "the data"),
        (["data.validation=0"], "the data"),
        (["data=null"], "the data"),
        (["train.steps=600"], "the recipe"),
        (["train.epochs=1", "train.schedule=cosine"], "the recipe"),
        (["train.optimizer.lr=0.2"], "the recipe"),
        (["train.steps=600", "data.augment=[]"], "the data and the recipe"),
    ],
)
def test_other_data_or_recipe_drop_the_published_result(
    arguments: list[str], what: str, tmp_path: Path
) -> None:
    draft = read_draft(write(tmp_path, FULL), overrides=arguments)
    assert draft.published is None
    assert draft.expect is not None
    assert draft.notices == (f"`published` left out, as --set or --with changes {what}",)


def test_recipe_laid_over_drops_the_published_result(tmp_path: Path) -> None:
    write(tmp_path, "train: {optimizer: {type: adamw, lr: 0.001}}\n", "fragment.yaml")
    draft = read_draft(write(tmp_path, FULL), fragments=[tmp_path / "fragment.yaml"])
    assert draft.published is None
    assert draft.expect is not None


def test_result_published_for_the_other_recipe_stays(tmp_path: Path) -> None:
    arguments = ["train.steps=600", "published={test_top1: 0.5, source: me}"]
    draft = read_draft(write(tmp_path, FULL), overrides=arguments)
    assert draft.published is not None
    assert (draft.published.test_top1, draft.published.source) == (0.5, "me")
    assert draft.notices == ()


def test_file_that_was_extended_says_its_own_of_the_whole(tmp_path: Path) -> None:
    write(tmp_path, FULL, "base.yaml")
    more = "published: {test_top1: 0.5, source: me}\n"
    path = write(tmp_path, f"extends: base.yaml\ntrain: {{steps: 600}}\n{more}", "mine.yaml")
    draft = read_draft(path)
    assert draft.published is not None
    assert draft.notices == ()


def test_expectation_set_for_the_changed_network_stays(tmp_path: Path) -> None:
    arguments = ["expect.parameters=200", "model.stages.0.blocks=2"]
    draft = read_draft(write(tmp_path, FULL), overrides=arguments)
    assert draft.expect is not None
    assert (draft.expect.parameters, draft.expect.depth) == (200, None)
    assert draft.published is None


def test_file_cannot_extend_itself(tmp_path: Path) -> None:
    write(tmp_path, "extends: two.yaml\n", "one.yaml")
    write(tmp_path, "extends: [./one.yaml]\n", "two.yaml")
    problem = refused(tmp_path / "one.yaml")
    assert (problem.code, problem.path, problem.line, problem.col) == (
        "extends",
        "extends[0]",
        1,
        11,
    )
    assert problem.file == str(tmp_path / "two.yaml")
    assert problem.message == f"{tmp_path / 'one.yaml'} extends itself"


def test_missing_base_is_pointed_at(tmp_path: Path) -> None:
    problem = refused(write(tmp_path, "extends: none.yaml\n"))
    assert problem.message == f"{tmp_path / 'none.yaml'}: there is no such file"
    assert (problem.code, problem.line, problem.col) == ("extends", 1, 10)


@pytest.mark.parametrize("name", ["a\\0b.yaml", "/", "a\\nb.yaml"])
def test_impossible_base_is_pointed_at(name: str, tmp_path: Path) -> None:
    assert refused(write(tmp_path, f'extends: "{name}"\n')).code == "extends"


def test_unknown_base_gets_a_suggestion(tmp_path: Path, specs: Path) -> None:
    problem = refused(write(tmp_path, "extends: resnet21\n"))
    assert problem.message == "no bundled spec or recipe is named 'resnet21'"
    assert (problem.allowed, problem.suggestion) == (("resnet20", "lucky"), "resnet20")


def test_missing_fragment_is_pointed_at_in_the_argument(tmp_path: Path, specs: Path) -> None:
    path = write(tmp_path, FULL)
    for argument, message in (
        ("./none.yaml", "none.yaml: there is no such file"),
        ("luckyy", "no bundled spec or recipe is named 'luckyy'"),
    ):
        problem = refused(path, fragments=[argument])
        assert (problem.code, problem.file) == ("extends", "<command line>:--with")
        assert (problem.snippet, problem.message) == (argument, message)


def test_problems_of_every_layer_are_reported_at_their_places(tmp_path: Path) -> None:
    write(tmp_path, "train: {keep_checkpoints: 1, batch_sise: 3}\n", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nmodel: {norm: 5}\nrun: {compile: no}\n")
    draft = read_draft(path, overrides=["run.threads=0"])
    found = [
        (Path(problem.file).name, problem.line, problem.path)
        for problem in draft.problems
        if problem.code != "missing-key"
    ]
    assert found == [
        ("spec.yaml", 2, "model.norm"),
        ("spec.yaml", 3, "run.compile"),
        ("base.yaml", 1, "train.keep_checkpoints"),
        ("base.yaml", 1, "train.batch_sise"),
        ("<command line>:--set", None, "run.threads"),
    ]


def test_base_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "[]\n", "base.yaml")
    problem = refused(write(tmp_path, "extends: base.yaml\n"))
    assert (Path(problem.file).name, problem.code) == ("base.yaml", "wrong-type")


def test_layers_are_limited(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "0.yaml")
    for number in range(1, 12):
        below = f"{number - 1}.yaml"
        write(tmp_path, f"extends: [{below}, {below}]\n", f"{number}.yaml")
    problem = refused(tmp_path / "11.yaml")
    assert (problem.code, problem.message) == ("extends", "more than 64 layers")


def test_extends_must_be_names(tmp_path: Path) -> None:
    for value in ("{a: 1}", "5", "[[x]]"):
        problem = refused(write(tmp_path, f"extends: {value}\n"))
        assert problem.message == "must be a file, a bundled spec's name, or a list"


def test_extending_nothing_is_allowed(tmp_path: Path) -> None:
    for value in ("[]", "null", ""):
        assert load_spec(write(tmp_path, f"{MINIMAL}extends: {value}\n")).name == "spec"
