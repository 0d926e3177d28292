"""Composition: what a spec extends, fragments, overrides, and what belongs to a file alone."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec import bundled
from resnet_builder.spec.bundled import bundled_names, find_spec
from resnet_builder.spec.compose import compose, merge
from resnet_builder.spec.load import load_spec, read_draft
from resnet_builder.spec.yaml_source import document_of, plain
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


@pytest.mark.parametrize(
    ("extends", "seed", "keep"),
    [
        ("../low.yaml", 0, 4),
        ("[../low.yaml, ../high.yaml]", 1, 4),
        ("[../left.yaml, ../right.yaml]", 1, 4),
        ("[resnet20, lucky]", 9, 4),
    ],
)
def test_later_base_lies_over_earlier_ones_and_the_file_over_all(
    extends: str, seed: int, keep: int, tmp_path: Path, specs: Path
) -> None:
    """A path counts from the file that names it; a base may extend another, twice too."""
    write(tmp_path, FULL, "low.yaml")
    write(tmp_path, "train: {seed: 1, keep_checkpoints: 3}\n", "high.yaml")
    write(tmp_path, "extends: low.yaml\ntrain: {seed: 1}\n", "left.yaml")
    write(tmp_path, "extends: low.yaml\ntrain: {keep_checkpoints: 5}\n", "right.yaml")
    (tmp_path / "inner").mkdir()
    text = f"extends: {extends}\ntrain: {{keep_checkpoints: {keep}}}\n"
    spec = load_spec(write(tmp_path / "inner", text, "mine.yaml"))
    assert spec.train is not None
    assert (spec.train.seed, spec.train.keep_checkpoints, spec.train.steps) == (seed, keep, 1000)
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


@pytest.mark.parametrize(
    ("arguments", "kept", "what"),
    [
        *(
            ([argument], ["expect", "published"], "")
            for argument in (
                "train.seed=3",
                "train.evaluate_every={epochs: 5}",
                "data.split_seed=3",
                "run.threads=1",
                "name=again",
                "model.num_classes=10",
                "data.validation=0.1",
            )
        ),
        (["model.stages.0.blocks=2"], [], "the network"),
        (["data=null"], ["expect"], "the data"),
        (["train.epochs=1", "train.schedule=cosine"], ["expect"], "the recipe"),
        (["train.steps=600", "data.augment=[]"], ["expect"], "the data and the recipe"),
        (
            ["train.steps=600", "published={test_top1: 0.5, source: me}"],
            ["expect", "published"],
            "",
        ),
        (["expect.parameters=2", "model.num_classes=2"], ["expect"], "the network"),
    ],
    ids=str,
)
def test_changed_experiment_drops_what_is_said_of_it(
    arguments: list[str], kept: list[str], what: str, tmp_path: Path
) -> None:
    found = draft(tmp_path, *arguments)
    assert [key for key in ("expect", "published") if getattr(found, key) is not None] == kept
    words = {
        "expect": "the expected counts (`expect`)",
        "published": "the published result (`published`)",
    }
    dropped = " and ".join(said for key, said in words.items() if key not in kept)
    notice = f"not compared with {dropped}: the command line changes {what}"
    assert found.notices == ((notice,) if what else ())


@pytest.mark.parametrize(
    "claims",
    [
        "expect: null\npublished: null",
        "expect: {}",
        "expect: {depth: null, macs:}",
        "published: {source: me}",
    ],
)
def test_nothing_is_said_of_claims_that_claim_nothing(claims: str, tmp_path: Path) -> None:
    text = f"{FULL.partition('expect:')[0]}{claims}\n"
    assert draft(tmp_path, "model.stages.0.blocks=2", text=text).notices == ()
    assert draft(tmp_path, "model.norm=group_norm", "expect=null", text=text).notices == ()


def test_file_cannot_extend_itself(tmp_path: Path) -> None:
    write(tmp_path, "extends: two.yaml\n", "one.yaml")
    write(tmp_path, "extends: [./one.yaml]\n", "two.yaml")
    problem = refused(tmp_path / "one.yaml")
    assert (problem.code, problem.path) == ("extends", "extends[0]")
    assert (problem.file, problem.line, problem.col) == (str(tmp_path / "two.yaml"), 1, 11)
    assert problem.message == f"{tmp_path / 'one.yaml'} extends itself"


def test_unknown_base_gets_a_suggestion(tmp_path: Path, specs: Path) -> None:
    problem = refused(write(tmp_path, "extends: resmet20\n"))
    assert problem.message == "no bundled spec or recipe is named 'resmet20'"
    assert (problem.allowed, problem.suggestion) == ((), "resnet20")


def test_missing_fragment_is_pointed_at_in_the_argument(tmp_path: Path, specs: Path) -> None:
    path = write(tmp_path, FULL)
    for argument, message in (
        ("./none.yaml", "none.yaml: there is no such file"),
        ("luckyy", "no bundled spec or recipe is named 'luckyy'"),
        (
            "zzz",
            "no bundled spec or recipe is named 'zzz'; see: resnet-build list specs, "
            "resnet-build list recipes",
        ),
    ):
        problem = refused(path, fragments=[argument])
        assert (problem.code, problem.file) == ("extends", "<command line>:--with")
        assert (problem.snippet, problem.message) == (argument, message)


def test_problems_of_every_file_are_reported_at_their_places(tmp_path: Path) -> None:
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


def test_number_of_files_is_limited(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "0.yaml")
    for number in range(1, 12):
        below = f"{number - 1}.yaml"
        write(tmp_path, f"extends: [{below}, {below}]\n", f"{number}.yaml")
    problem = refused(tmp_path / "11.yaml")
    assert (problem.code, problem.message) == ("extends", "more than 64 files")


PART = {"stem": {"type": "conv3x3", "channels": 16}}
HEAD = {"head": {"type": "linear", "dropout": 0.5}}
WEIGHTS = {"weights": {"path": "a.pth", "new_head": True}}


@pytest.mark.parametrize(
    ("section", "below", "above", "wanted"),
    [
        ("run", {"device": "cpu", "threads": 1}, {"threads": 2}, {"device": "cpu", "threads": 2}),
        ("plugins", ["a", "b"], ["c"], ["c"]),
        ("data", 5, {"validation": 1}, {"validation": 1}),
        ("data", {"validation": 1}, 5, 5),
        # a name or a type replaces a part, a mapping without one changes its options
        ("model", PART, {"stem": "deep"}, {"stem": "deep"}),
        ("model", PART, {"stem": {"type": "deep"}}, {"stem": {"type": "deep"}}),
        (
            "model",
            PART,
            {"stem": {"channels": 8}},
            {"stem": {"type": "conv3x3", "channels": 8}},
        ),
        ("model", {"weights": "a.pth"}, {"weights": {"new_head": True}}, WEIGHTS),
        ("model", WEIGHTS, {"weights": "a.pth"}, {"weights": "a.pth"}),
        # a length in one unit takes away that in another
        ("train", {"steps": 9}, {"epochs": 2}, {"epochs": 2}),
        ("train", {"steps": 9}, {"steps": 1, "epochs": 2}, {"steps": 1, "epochs": 2}),
        ("train", {"steps": 9}, {"epochs": None}, {"steps": 9, "epochs": None}),
        (
            "train",
            {"checkpoint_every": {"seconds": 5}},
            {"checkpoint_every": {"steps": 7}},
            {"checkpoint_every": {"steps": 7}},
        ),
        (
            "data",
            {"dataset": {"type": "mine", "steps": 1}},
            {"dataset": {"epochs": 2}},
            {"dataset": {"type": "mine", "steps": 1, "epochs": 2}},
        ),
        # null takes away, but may be the value of an option
        ("train", {"seed": 1}, {"seed": None}, {"seed": None}),
        ("model", HEAD, {"head": {"dropout": None}}, {"head": {"type": "linear"}}),
    ],
)
def test_upper_values_lie_over_lower_ones(
    section: str, below: object, above: object, wanted: object
) -> None:
    low, high = document_of({section: below}), document_of({section: above})
    assert plain(merge(low.root, high.root, main=low.source)) == {section: wanted}


def overridden(data: dict[str, Any], *arguments: str) -> Any:
    composition = compose(document_of(data), overrides=arguments)
    if composition.problems:
        raise SpecError(composition.problems)
    return plain(composition.root)


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("a=1e-4", {"a": 0.0001}),
        ('a="5"', {"a": "5"}),
        ("a=''", {"a": ""}),
        ("a=b=c#d", {"a": "b=c#d"}),
        ("a= b # comment", {"a": "b"}),
        ("a.b.c=[1, {d: e}]", {"a": {"b": {"c": [1, {"d": "e"}]}}}),
        ("a.0=x", {"a": {"0": "x"}}),
    ],
)
def test_value_of_an_override_is_yaml_in_flow_style(argument: str, wanted: object) -> None:
    assert overridden({}, argument) == wanted


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("data.augment.1=x", ["random_crop", "x"]),
        ("data.augment[1]=null", ["random_crop"]),
        (
            "data.augment.0.padding=4",
            [{"type": "random_crop", "padding": 4}, {"type": "cutout", "size": 8}],
        ),
        ("data.augment.1={size: 4}", ["random_crop", {"type": "cutout", "size": 4}]),
        ("data.augment=[]", []),
    ],
)
def test_override_changes_an_item_of_a_list(argument: str, wanted: object) -> None:
    data = {"data": {"augment": ["random_crop", {"type": "cutout", "size": 8}]}}
    assert overridden(data, argument) == {"data": {"augment": wanted}}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["data.augment+=x"], ["a", "x"]),
        (["data.augment+={type: b, size: 4}"], ["a", {"type": "b", "size": 4}]),
        (["data.augment+=[x, y]", "data.augment+=z"], ["a", "x", "y", "z"]),
        (["data.augment=null", "data.augment+=x"], ["x"]),
        (["data.augment+=[]"], ["a"]),
    ],
)
def test_override_appends_to_a_list(arguments: list[str], wanted: object) -> None:
    assert overridden({"data": {"augment": ["a"]}}, *arguments) == {"data": {"augment": wanted}}
    assert overridden({}, "train.freeze+=stem") == {"train": {"freeze": ["stem"]}}
    items = {"stages": [{"widths": [1]}]}
    assert overridden(items, "stages.0.widths+=2") == {"stages": [{"widths": [1, 2]}]}


FORM = "must be path.to.key=value"


@pytest.mark.parametrize(
    ("argument", "code", "column", "message"),
    [
        *(
            (text, "yaml-syntax", 1, FORM)
            for text in ("", "a", "=1", "a b=1", "a..b=1", ".a=1", "a.=1", "a[x]=1", "[0]=1")
        ),
        *((text, "yaml-syntax", 2, "null takes the key away") for text in ("a=", "a= ", "a=# no")),
        ("a=- 1", "yaml-syntax", 3, "write a mapping as {key: value}"),
        ("a=[1, 2", "yaml-syntax", 3, "this `[` is never closed"),
        ("a=\x07", "yaml-syntax", 3, "is not allowed in YAML"),
        ("a=" + "[" * 40, "limit", 35, "nested deeper than 32"),
        ("extends=x", "yaml-syntax", 1, "works in files"),
        (".".join("a" * 33) + "=1", "limit", 1, "nested deeper than 32"),
        ("b.7.c=3", "out-of-range", 3, "there is no item 7; the list has 2 items (0 and 1)"),
        ("b.0+=3", "wrong-type", 6, "`+=` appends to a list, and this is none"),
        *((text, "yaml-syntax", 1, FORM) for text in ("+=1", "b++=1", "b.+=1")),
        ("b+=", "yaml-syntax", 2, "null takes the key away"),
        ("b.x=3", "out-of-range", 3, "there is no item x; the list has 2 items (0 and 1)"),
    ],
)
def test_bad_override_is_pointed_at(argument: str, code: str, column: int, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        overridden({"b": [{}, {}]}, argument)
    [problem] = raised.value.errors
    assert (problem.code, problem.col, problem.snippet) == (code, column, argument)
    assert (problem.file, problem.line) == ("<command line>:--set", None)
    assert message in problem.message


@pytest.mark.parametrize(
    ("argument", "code", "path", "column"),
    [
        ("run.compile=no", "yaml-ambiguous", "run.compile", 13),
        ("name=!!str x", "yaml-tag", "name", 6),
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


@pytest.mark.parametrize(
    ("overrides", "is_refused"),
    [
        (["train.epochs=100"], True),
        (["train.epochs=100", "train.schedule.unit=steps"], False),
        (["train.epochs=100", "train.schedule.milestones=[9]"], False),
        (["train.epochs=100", "train.schedule=cosine"], False),
    ],
)
def test_milestones_in_another_unit_than_the_length_are_refused(
    overrides: list[str], is_refused: bool
) -> None:
    found = read_draft("resnet20", overrides=overrides).problems
    assert [one.message for one in found] == [
        "`train.epochs` changes their unit from steps to epochs; give `--epochs 100` instead, "
        "which scales the whole recipe, or train.schedule.unit, or new milestones"
    ][:is_refused]


def test_required_key_taken_away_is_missed_in_the_argument(tmp_path: Path) -> None:
    [problem] = draft(tmp_path, "model.shortcut=null").problems
    assert (problem.code, problem.path) == ("missing-key", "model.shortcut")
    assert (problem.file, problem.col) == ("<command line>:--set", 7)


@pytest.fixture
def bundled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put bundled specs of our own in the place of the package's, and work beside them."""
    for name in ("resnet20", "resnet110", "resnet9", "wrn"):
        write(tmp_path, MINIMAL, f"{name}.yaml")
    monkeypatch.setattr(bundled, "_specs_folder", lambda: tmp_path)
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path


def test_names_are_ordered_by_their_numbers(bundled_folder: Path) -> None:
    assert bundled_names() == ("resnet9", "resnet20", "resnet110", "wrn")


def test_separator_or_ending_makes_a_path_and_all_else_a_bundled_name(bundled_folder: Path) -> None:
    write(Path(), MINIMAL, "resnet20")
    for source in ("x.yaml", "x.yml", "X.YAML", "./resnet20", "a/b", "/resnet20"):
        assert find_spec(source) == Path(source)
    assert find_spec("resnet20") == bundled_folder / "resnet20.yaml"


@pytest.mark.parametrize(
    ("name", "message", "suggestion"),
    [
        ("resmet9", "no bundled spec is named 'resmet9'", "resnet9"),
        ("resnet19", "no bundled spec is named 'resnet19'; see: resnet-build list specs", None),
        (
            "-",
            "no bundled spec is named '-'; a spec is not read from standard input, but from a file",
            None,
        ),
        (
            "mine",
            "no bundled spec is named 'mine'; for the file of that name write ./mine",
            None,
        ),
    ],
)
def test_unknown_name_gets_a_suggestion(
    name: str, message: str, suggestion: str | None, bundled_folder: Path
) -> None:
    write(Path(), MINIMAL, "mine")
    with pytest.raises(SpecError) as raised:
        find_spec(name)
    [problem] = raised.value.errors
    assert (problem.code, problem.file) == ("unknown-name", name)
    assert (problem.message, problem.allowed, problem.suggestion) == (message, (), suggestion)


def test_specs_lie_inside_the_package_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "resnet_builder" / "specs"
    inside.mkdir(parents=True)
    monkeypatch.setattr(bundled, "__file__", str(inside.parent / "spec" / "bundled.py"))
    assert bundled._specs_folder() == inside
