"""Composition: what a spec extends, fragments, overrides, and what belongs to a file alone."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec import bundled
from resnet_builder.spec.bundled import bundled_names, find_spec, is_path, recipe_names
from resnet_builder.spec.compose import compose, merge
from resnet_builder.spec.load import load_spec, read_draft
from resnet_builder.spec.yaml_source import Source, document_of, parse_yaml, plain
from tests.spec.texts import FULL, MINIMAL, draft, write


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put bundled specs and recipes of our own in the place of the package's."""
    folder = tmp_path / "bundled"
    (folder / "recipes").mkdir(parents=True)
    monkeypatch.setattr(bundled, "_specs_folder", lambda: folder)
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


def test_mapping_extends_relative_to_the_working_specs_folder(
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


def test_number_of_files_is_limited(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "0.yaml")
    for number in range(1, 12):
        below = f"{number - 1}.yaml"
        write(tmp_path, f"extends: [{below}, {below}]\n", f"{number}.yaml")
    problem = refused(tmp_path / "11.yaml")
    assert (problem.code, problem.message) == ("extends", "more than 64 files")


def test_extends_must_be_names(tmp_path: Path) -> None:
    for value in ("{a: 1}", "5", "[[x]]"):
        problem = refused(write(tmp_path, f"extends: {value}\n"))
        assert problem.message == "must be a file, a bundled spec's name, or a list"


def test_extending_nothing_is_allowed(tmp_path: Path) -> None:
    for value in ("[]", "null", ""):
        assert load_spec(write(tmp_path, f"{MINIMAL}extends: {value}\n")).name == "spec"


def merged(below: dict[str, Any], above: dict[str, Any]) -> Any:
    low, high = document_of(below), document_of(above)
    return plain(merge(low.root, high.root, main=low.source))


def test_mappings_are_merged_deeply() -> None:
    below = {"run": {"device": "cpu", "threads": 1}, "data": {"validation": 5}}
    assert merged(below, {"run": {"threads": 2}}) == {
        "run": {"device": "cpu", "threads": 2},
        "data": {"validation": 5},
    }


def test_lists_are_replaced_whole() -> None:
    assert merged({"plugins": ["a", "b"]}, {"plugins": ["c"]}) == {"plugins": ["c"]}


def test_mapping_replaces_a_scalar_and_a_scalar_a_mapping() -> None:
    assert merged({"data": 5}, {"data": {"validation": 1}}) == {"data": {"validation": 1}}
    assert merged({"data": {"validation": 1}}, {"data": 5}) == {"data": 5}


@pytest.mark.parametrize("above", ["conv7x7_maxpool", {"type": "deep"}, {"type": "conv3x3"}])
def test_name_or_type_replaces_a_part_whole(above: object) -> None:
    below = {"model": {"stem": {"type": "conv3x3", "channels": 16}}}
    assert merged(below, {"model": {"stem": above}}) == {"model": {"stem": above}}


def test_mapping_without_type_changes_options_of_the_part_below() -> None:
    below = {"model": {"stem": {"type": "conv3x3", "channels": 16}}}
    assert merged(below, {"model": {"stem": {"channels": 8}}}) == {
        "model": {"stem": {"type": "conv3x3", "channels": 8}}
    }


def test_mapping_without_type_gives_options_to_a_name() -> None:
    assert merged({"train": {"optimizer": "sgd"}}, {"train": {"optimizer": {"lr": 0.1}}}) == {
        "train": {"optimizer": {"type": "sgd", "lr": 0.1}}
    }


def test_mapping_gives_options_to_a_path() -> None:
    below: dict[str, Any] = {"model": {"weights": "a.pth"}}
    with_option = {"model": {"weights": {"path": "a.pth", "new_head": True}}}
    assert merged(below, {"model": {"weights": {"new_head": True}}}) == with_option
    assert merged(with_option, {"model": {"weights": {"path": "b.pth"}}}) == {
        "model": {"weights": {"path": "b.pth", "new_head": True}}
    }
    assert merged(with_option, below) == below


@pytest.mark.parametrize(
    ("below", "above", "wanted"),
    [
        ({"steps": 9}, {"epochs": 2}, {"epochs": 2}),
        ({"epochs": 9}, {"steps": 2}, {"steps": 2}),
        ({"steps": 9}, {"steps": 2}, {"steps": 2}),
        ({"steps": 9}, {"steps": 1, "epochs": 2}, {"steps": 1, "epochs": 2}),
        ({"steps": 9}, {"epochs": None}, {"steps": 9, "epochs": None}),
        ({"steps": 9}, {"seed": 1}, {"steps": 9, "seed": 1}),
    ],
)
def test_one_unit_of_a_length_takes_away_the_other(
    below: dict[str, Any], above: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert merged({"train": below}, {"train": above}) == {"train": wanted}


def test_seconds_are_a_unit_too() -> None:
    below = {"train": {"checkpoint_every": {"seconds": 5}}}
    above = {"train": {"checkpoint_every": {"steps": 7}}}
    assert merged(below, above) == above


def test_units_elsewhere_are_names_like_any_other() -> None:
    below = {"data": {"dataset": {"type": "mine", "steps": 1}}}
    assert merged(below, {"data": {"dataset": {"epochs": 2}}}) == {
        "data": {"dataset": {"type": "mine", "steps": 1, "epochs": 2}}
    }


def test_null_takes_away() -> None:
    assert merged({"train": {"seed": 1}}, {"train": {"seed": None}}) == {"train": {"seed": None}}
    assert merged({"data": {"validation": 1}}, {"data": None}) == {"data": None}


def test_null_takes_an_option_away_but_may_be_its_value() -> None:
    below = {"model": {"head": {"type": "linear", "dropout": 0.5}}}
    assert merged(below, {"model": {"head": {"dropout": None}}}) == {
        "model": {"head": {"type": "linear"}}
    }
    assert merged(below, {"model": {"head": {"hidden": None}}}) == {
        "model": {"head": {"type": "linear", "dropout": 0.5, "hidden": None}}
    }


def test_merge_leaves_its_inputs_as_they_were() -> None:
    low, high = document_of({"run": {"threads": 1}}), document_of({"run": {}})
    merge(low.root, high.root, main=low.source)
    assert plain(low.root) == {"run": {"threads": 1}}


def test_mapping_of_two_layers_stands_where_the_spec_has_it() -> None:
    low = parse_yaml(Source("low", "\nrun: {threads: 1}")).root
    high = parse_yaml(Source("high", "\n\nrun: {device: cpu}")).root
    for main in (low.place.source, high.place.source):
        root = merge(low, high, main=main)
        assert isinstance(root.value, dict)
        assert root.value["run"].place.source is main
        assert isinstance(run := root.value["run"].value, dict)
        assert [run[key].place.source.name for key in ("threads", "device")] == ["low", "high"]


def after(data: dict[str, Any], *arguments: str) -> Any:
    composition = compose(document_of(data), overrides=arguments)
    if composition.problems:
        raise SpecError(composition.problems)
    return plain(composition.root)


def refused_override(data: dict[str, Any], argument: str) -> Problem:
    with pytest.raises(SpecError) as raised:
        after(data, argument)
    [problem] = raised.value.errors
    assert (problem.file, problem.line) == ("<command line>:--set", None)
    assert problem.snippet == argument
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-4", 0.0001),
        ("true", True),
        ("text", "text"),
        ('"5"', "5"),
        ("''", ""),
        ("a=b", "a=b"),
        ("a#b", "a#b"),
        ("a # comment", "a"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{a: [1]}", {"a": [1]}),
        (" 5 ", 5),
    ],
)
def test_value_is_yaml_in_flow_style(text: str, value: object) -> None:
    assert after({}, f"data.x={text}") == {"data": {"x": value}}


def test_mappings_on_the_way_are_made() -> None:
    assert after({}, "a.b.c=1", "a.b.d=2") == {"a": {"b": {"c": 1, "d": 2}}}


@pytest.mark.parametrize("path", ["model.stages.1.blocks", "model.stages[1].blocks"])
def test_item_of_a_list_is_changed_in_place(path: str) -> None:
    data = {"model": {"stages": [{"blocks": 1}, {"blocks": 2, "stride": 2}]}}
    assert after(data, f"{path}=7") == {
        "model": {"stages": [{"blocks": 1}, {"blocks": 7, "stride": 2}]}
    }


def test_item_of_a_list_is_replaced_or_removed() -> None:
    data = {"plugins": ["a", "b", "c"]}
    assert after(data, "plugins.1=x") == {"plugins": ["a", "x", "c"]}
    assert after(data, "plugins.1=null") == {"plugins": ["a", "c"]}


def test_part_in_a_list_follows_the_rule_of_parts() -> None:
    data = {"data": {"augment": ["random_crop", {"type": "cutout", "size": 8}]}}
    assert after(data, "data.augment.0.padding=4", "data.augment.1={size: 4}") == {
        "data": {"augment": [{"type": "random_crop", "padding": 4}, {"type": "cutout", "size": 4}]}
    }


def test_value_is_merged_like_any_layer() -> None:
    data = {"train": {"steps": 10, "optimizer": {"type": "sgd", "lr": 1}}}
    assert after(data, "train={epochs: 1, optimizer: {lr: 2}}") == {
        "train": {"epochs": 1, "optimizer": {"type": "sgd", "lr": 2}}
    }


def test_key_is_digits_where_there_is_no_list() -> None:
    assert after({}, "a.0=x") == {"a": {"0": "x"}}


@pytest.mark.parametrize(
    ("argument", "column", "shown"),
    [
        ("model.stages.7.blocks=3", 14, "7"),
        ("model.stages.x=3", 14, "x"),
        ("model.stages[2]=3", 14, "2"),
    ],
)
def test_item_out_of_range_is_pointed_at_row26(argument: str, column: int, shown: str) -> None:
    problem = refused_override({"model": {"stages": [{}, {}]}}, argument)
    assert (problem.code, problem.path, problem.col) == ("out-of-range", "model.stages", column)
    assert problem.message == f"there is no item {shown}, only 2, counted from 0"
    assert problem.allowed == ("0", "1")


@pytest.mark.parametrize(
    "argument",
    ["", "a", "=1", "a b=1", "a..b=1", ".a=1", "a.=1", "a[x]=1", "a[1=2", "a\n=1", "[0]=1"],
)
def test_argument_of_another_form_is_refused_override(argument: str) -> None:
    with pytest.raises(SpecError, match=r"error\[yaml-syntax\]: must be path.to.key=value"):
        after({}, argument)


@pytest.mark.parametrize("argument", ["a=", "a= ", "a=# nothing"])
def test_argument_without_a_value_is_refused_override(argument: str) -> None:
    assert "null takes the key away" in refused_override({}, argument).message


@pytest.mark.parametrize("argument", ["a=b: 1", "a=- 1"])
def test_block_style_is_refused_override(argument: str) -> None:
    with pytest.raises(SpecError, match=r"write a mapping as \{key: value\}"):
        after({}, argument)


@pytest.mark.parametrize(
    ("argument", "code", "column"),
    [
        ("a=[1, 2", "yaml-syntax", 3),
        ("a=x: y: z", "yaml-syntax", 7),
        ("a='x", "yaml-syntax", 3),
        ("a=\t1", "yaml-syntax", 3),
        ("a=\x07", "yaml-syntax", 3),
        ("a=" + "[" * 40, "limit", 35),
        ("extends=x", "yaml-syntax", 1),
        (".".join("a" * 33) + "=1", "limit", 1),
    ],
)
def test_value_that_cannot_be_read_is_pointed_at(argument: str, code: str, column: int) -> None:
    problem = refused_override({}, argument)
    assert (problem.code, problem.col) == (code, column)


@pytest.mark.parametrize(
    ("argument", "code", "path", "column"),
    [
        ("run.compile=no", "yaml-ambiguous", "run.compile", 13),
        ("model.stages.0={blocks: 1, blocks: 2}", "duplicate-key", "model.stages[0].blocks", 28),
        ("name=!!str x", "yaml-tag", "name", 6),
        ("train.seed=&x 1", "yaml-alias", "train.seed", 12),
        ("train.seed=1.5", "wrong-type", "train.seed", 12),
        ("train.lr=1", "unknown-key", "train.lr", 7),
        ("model.stages.0.blocks=0", "out-of-range", "model.stages[0].blocks", 23),
    ],
)
def test_problem_points_into_the_argument(
    argument: str, code: str, path: str, column: int, tmp_path: Path
) -> None:
    found = draft(tmp_path, "train.keep_checkpoints=3", argument).problems
    assert [(one.code, one.path, one.col, one.snippet) for one in found] == [
        (code, path, column, argument)
    ]


def test_problem_shows_the_argument_with_a_caret(tmp_path: Path) -> None:
    """The form of the message."""
    [problem] = draft(tmp_path, "model.stages.9.blocks=3").problems
    assert str(problem) == (
        "<command line>:--set: error[out-of-range]: model.stages: there is no item 9, only 2, "
        "counted from 0\n"
        "      | model.stages.9.blocks=3\n"
        "      |              ^\n"
        "allowed: 0, 1"
    )


def test_required_key_taken_away_is_missed_in_the_argument(tmp_path: Path) -> None:
    [problem] = draft(tmp_path, "model.num_classes=null").problems
    assert (problem.code, problem.path) == ("missing-key", "model.num_classes")
    assert (problem.file, problem.col) == ("<command line>:--set", 7)


@pytest.fixture
def bundled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("resnet20", "resnet110", "resnet9", "wrn"):
        write(tmp_path, MINIMAL, f"{name}.yaml")
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", "", "he2015.yaml")
    monkeypatch.setattr(bundled, "_specs_folder", lambda: tmp_path)
    return tmp_path


def test_names_are_ordered_by_their_numbers(bundled_folder: Path) -> None:
    assert bundled_names() == ("resnet9", "resnet20", "resnet110", "wrn")
    assert recipe_names() == ("he2015",)


@pytest.mark.parametrize("source", ["x.yaml", "x.yml", "./resnet20", "a/b", "/resnet20"])
def test_separator_or_ending_makes_a_path(source: str, bundled_folder: Path) -> None:
    assert is_path(source)
    assert find_spec(source) == Path(source)


def test_anything_else_is_a_bundled_name(
    bundled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = tmp_path / "working"
    working.mkdir()
    write(working, MINIMAL, "resnet20")
    monkeypatch.chdir(working)
    assert find_spec("resnet20") == bundled_folder / "resnet20.yaml"


def test_unknown_name_gets_a_suggestion(bundled_folder: Path) -> None:
    with pytest.raises(SpecError) as raised:
        find_spec("resnet19")
    [problem] = raised.value.errors
    assert (problem.code, problem.file) == ("unknown-name", "resnet19")
    assert problem.message == "no bundled spec is named 'resnet19'"
    assert (problem.allowed, problem.suggestion) == (bundled_names(), "resnet9")


def test_file_that_looks_like_a_name_is_mentioned(
    bundled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, MINIMAL, "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"for the file of that name write \./mine"):
        find_spec("mine")


def test_recipe_is_no_spec(bundled_folder: Path) -> None:
    with pytest.raises(SpecError, match="no bundled spec is named 'he2015'"):
        find_spec("he2015")


def test_specs_lie_beside_the_package_in_a_checkout() -> None:
    assert bundled._specs_folder() == Path(bundled.__file__).parents[2] / "specs"


def test_specs_lie_inside_the_package_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "resnet_builder" / "specs"
    inside.mkdir(parents=True)
    monkeypatch.setattr(bundled, "__file__", str(inside.parent / "spec" / "bundled.py"))
    assert bundled._specs_folder() == inside
