"""Recipes scaled to another length, and flags that stand for a key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_builder.errors import SpecError
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import Draft, load_spec, load_spec_text, read_draft
from resnet_builder.spec.recipe import TrainSpec

SGD = {"type": "sgd", "lr": 0.1}


def draft(folder: Path, recipe: dict[str, Any], *overrides: str) -> Draft:
    """Read a spec with a recipe, in which ``overrides`` change something."""
    path = folder / "some.yaml"
    train = {"batch_size": 8, "optimizer": SGD, "schedule": "constant", **recipe}
    path.write_text(yaml.safe_dump({"extends": "resnet20", "train": train}), encoding="utf-8")
    return read_draft(path, overrides=overrides)


def trained(found: Draft) -> TrainSpec:
    assert found.problems == ()
    assert found.train is not None
    return found.train


@pytest.mark.parametrize(
    ("fragment", "flag", "length", "schedule", "notices"),
    [
        (
            None,  # the paper's
            "--epochs 10",
            {"epochs": 10},
            {"milestones": (5, 7.5)},
            [
                "train.steps: 64000 -> 10 epochs",
                "train.schedule.milestones: [32000, 48000] steps -> [5, 7.5] epochs",
            ],
        ),
        (
            "he2015_warmup",
            "--steps 6400",
            {"steps": 6400},
            {"milestones": (3200, 4800), "warmup": {"type": "constant", "steps": 40, "lr": 0.01}},
            [
                "train.steps: 64000 -> 6400",
                "train.schedule.warmup: {steps: 400} -> {steps: 40}",
                "train.schedule.milestones: [32000, 48000] steps -> [3200, 4800] steps",
            ],
        ),
        (
            "kj60",
            "--steps 600",
            {"steps": 600},
            {"milestones": (500, 550)},
            [
                "train.epochs: 60 -> 600 steps",
                "train.schedule.milestones: [50, 55] epochs -> [500, 550] steps",
            ],
        ),
        (
            "fast",
            "--epochs 7",
            {"epochs": 7},
            {"warmup": {"type": "linear", "epochs": 0.25, "start": 0.0}},
            ["train.epochs: 28 -> 7", "train.schedule.warmup: {epochs: 1} -> {epochs: 0.25}"],
        ),
        ("fast", "--epochs 28", {"epochs": 28}, {}, []),
        ("one_cycle10", "--epochs 3", {"epochs": 3}, {"pct_start": 0.2}, ["train.epochs: 10 -> 3"]),
    ],
)
def test_bundled_recipe_keeps_its_proportions_and_says_so(
    fragment: str | None, flag: str, length: Any, schedule: Any, notices: list[str]
) -> None:
    fragments = [] if fragment is None else [fragment]
    found = read_draft("resnet20", overrides=[flag], fragments=fragments)
    recipe = trained(found)
    told = [one for one in found.notices if one.startswith("--")]
    assert told == [f"{flag}: {notice}" for notice in notices]
    assert {key: getattr(recipe, key) for key in ("steps", "epochs")} == {
        "steps": None,
        "epochs": None,
        **length,
    }
    given = recipe.schedule.model_dump(exclude_none=True)
    assert {key: given[key] for key in schedule} == schedule


@pytest.mark.parametrize(
    ("recipe", "flag", "expected"),
    [
        ({"schedule": {"type": "step", "every": {"epochs": 30}}}, 10, {"every": {"epochs": 3}}),
        ({"schedule": {"type": "step", "every": {"steps": 500}}}, 10, {"every": {"steps": 50}}),
        ({"schedule": {"type": "exponential", "gamma": 0.9}}, 50, {"every": {"epochs": 0.5}}),
        (
            {"schedule": {"type": "cosine_restarts", "first_cycle": {"epochs": 20}}},
            200,
            {"first_cycle": {"epochs": 40}},
        ),
        ({"schedule": "plateau"}, 50, {"patience": 5, "cooldown": 0}),
        ({"schedule": {"type": "plateau", "cooldown": 4}}, 3, {"patience": 0, "cooldown": 0}),
        ({"schedule": {"type": "plateau", "patience": 3}}, 200, {"patience": 3}),
        (
            {"schedule": {"type": "multistep", "milestones": [50], "unit": "epochs"}},
            50,
            {"milestones": (25,), "unit": "epochs"},
        ),
    ],
    ids=str,
)
def test_every_schedule_is_scaled(recipe: Any, flag: int, expected: Any, tmp_path: Path) -> None:
    found = trained(draft(tmp_path, {"epochs": 100, **recipe}, f"--epochs {flag}"))
    given = found.schedule.model_dump(exclude_none=True)
    assert {key: given[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("written", "flag", "expected"),
    [
        (None, "--epochs 10", {"epochs": 1}),
        ({"epochs": 5}, "--epochs 10", {"epochs": 1}),  # not ten times in an epoch
        ({"epochs": 5}, "--epochs 60", {"epochs": 3}),
        ({"epochs": 0.5}, "--epochs 10", {"epochs": 0.5}),
        ({"epochs": 5}, "--epochs 200", {"epochs": 5}),  # as often as before
        ({"steps": 500}, "--epochs 10", {"steps": 500}),  # in another unit than the recipe
        ({"epochs": 5}, "--steps 1000", {"steps": 50}),
    ],
)
def test_intervals_are_shortened_with_the_training(
    written: Any, flag: str, expected: Any, tmp_path: Path
) -> None:
    changes = (
        {} if written is None else {"evaluate_every": written, "checkpoint_every": {**written}}
    )
    found = trained(draft(tmp_path, {"epochs": 100, **changes}, flag))
    assert found.evaluate_every.model_dump(exclude_none=True) == expected
    kept = {"seconds": 300.0} if written is None else expected
    assert found.checkpoint_every.model_dump(exclude_none=True) == kept


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20])
def test_even_a_training_of_one_step_has_a_schedule(steps: int, tmp_path: Path) -> None:
    schedule = {"type": "multistep", "milestones": [50, 51, 99], "warmup": {"steps": 9}}
    found = trained(draft(tmp_path, {"steps": 100, "schedule": schedule}, f"--steps {steps}"))
    milestones = getattr(found.schedule, "milestones", ())
    assert len(milestones) == min(3, steps - 1)


def test_scaled_recipe_is_scaled_only_once() -> None:
    """The spec of a run has the scaled recipe, and its line may be given again."""
    once = load_spec("resnet20", overrides=["--epochs 7"])
    again = load_spec_text(dump_spec(once))
    assert again == once
    found = read_draft(again.model_dump(mode="json", exclude_none=True), overrides=["--epochs 7"])
    assert (found.train, found.notices) == (once.train, ())


def test_set_is_laid_over_the_scaled_recipe_and_other_flags_over_both(tmp_path: Path) -> None:
    recipe = {"epochs": 100, "schedule": {"type": "multistep", "milestones": [50]}}
    overrides = (
        *("--lr 0.001", "--batch-size 4", "--seed 7", "--device cpu"),
        *("train.schedule.milestones=[2]", "train.optimizer=adam", "--epochs 10"),
    )
    # `adam` alone has no rate: that of --lr comes after it.
    found = trained(draft(tmp_path, recipe, *overrides))
    assert found.schedule.milestones == (2,)  # type: ignore[union-attr]
    assert (found.optimizer.type, found.optimizer.lr) == ("adam", 0.001)
    assert (found.batch_size, found.seed, found.epochs) == (4, 7, 10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--epochs 3", "--steps 9"), "`--epochs 3` and `--steps 9` give the same value"),
        (("--epochs 3", "train.steps=9"), "`--epochs 3` and `--set train.steps=9` give the same"),
        (("--lr 1", "train.optimizer.lr=2"), "`--set train.optimizer.lr=2` and `--lr 1` give the"),
        (("--lr ",), "must be path.to.key=value, or one of these with a value: --epochs, --steps"),
        (("--rate 1",), "must be path.to.key=value, or one of these with a value: --epochs"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read_draft("resnet20", overrides=overrides)
    assert caught.value.errors[0].message.startswith(message)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--epochs 0", "train.epochs: 0 is out of range"),
        ("--epochs 1.5", "train.epochs: must be a whole number, not 1.5"),
        ("--steps ten", "train.steps: must be a whole number, not the text 'ten'"),
        ("--lr -1", "train.optimizer.lr: -1 is out of range"),
        ("--device gpu", "run.device: must be auto, cpu, mps, cuda or cuda:N, not 'gpu'"),
    ],
)
def test_wrong_value_of_a_flag_is_shown_as_it_was_typed(flag: str, message: str) -> None:
    problem = read_draft("resnet20", overrides=[flag]).problems[0]
    assert f"{problem.path}: {problem.message}" == message
    assert (problem.file, problem.snippet) == ("<command line>", flag)


def test_length_in_two_units_needs_the_number_of_images(tmp_path: Path) -> None:
    schedule = {"type": "cosine", "warmup": {"epochs": 2}}
    [problem] = draft(tmp_path, {"steps": 1000, "schedule": schedule}, "--epochs 10").problems
    assert str(problem).splitlines()[0] == (
        "<command line>: error[out-of-range]: train.schedule.warmup: is in epochs, and the recipe "
        "in steps: give --steps instead of `--epochs 10`, or this length in steps by --set"
    )
    assert draft(tmp_path, {"steps": 1000, "schedule": schedule}, "--steps 100").problems == ()


def test_rate_of_muon_leaves_that_of_the_other_weights() -> None:
    found = read_draft("resnet20", fragments=["fast"], overrides=["--lr 0.02"])
    assert found.notices[0] == (
        "--lr 0.02: sets the rate of Muon; train.optimizer.aux.lr, the rate of all other weights, "
        "stays as it is"
    )
