"""Every bundled spec: what its header says, and that it counts to what it expects."""

import re
from pathlib import Path

import pytest

from resnet_builder.builder import check_source, read_spec
from resnet_builder.spec.bundled import bundled_file, bundled_names, recipe_names
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec, load_spec_text, read_draft
from resnet_builder.spec.schema import Spec

NAMES, RECIPES = bundled_names(), recipe_names()

# He et al. 2015, table 6: test errors in per cent.
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}


def header(file: Path) -> list[str]:
    """Return the lines of the comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    count = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:count]]


@pytest.mark.parametrize("name", NAMES)
def test_header_says_source_command_and_result(name: str) -> None:
    what, *lines = header(bundled_file(name))
    assert what.endswith(".")
    assert f"Train: resnet-build train {name}" in " ".join(lines)
    assert any(re.match(r"Source: .*https://", line) for line in lines)
    [published] = [line for line in lines if line.startswith("Published:")]
    spec = load_spec(name)
    if spec.published is not None:
        assert spec.published.test_top1 is not None
        percents = {f"{100 * top:.{n}f}" for top in (spec.published.test_top1,) for n in (2, 3)}
        percents |= {f"{100 - 100 * spec.published.test_top1:.2f}"}  # papers give errors
        assert any(percent in published for percent in percents)


DEEP = {"preact1001", "resnet1202", "resnet152", "resnet152_cifar", "resnext101_32x8d"}
DEEP |= {"preact164", "resnet101_cifar", "resnet101d", "wide_resnet101_2", "seresnet110"}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] if one in DEEP else []) for one in NAMES]
)
def test_spec_counts_to_what_it_expects_and_can_be_trained_and_written_out(name: str) -> None:
    checked = check_source(name, with_forward=True)
    assert checked.problems == ()
    spec = checked.spec
    assert spec is not None
    assert spec.name == name
    assert spec.data is not None
    assert spec.train is not None
    assert spec.expect is not None
    assert checked.counts == spec.expect.model_dump()
    named = checked.counts["depth"] + (2 if name.startswith("wrn") else 0)  # as its paper counts
    assert f"{named}" in name
    assert load_spec_text(dump_spec(spec)) == spec


@pytest.mark.parametrize("depth", PAPER)
def test_paper_s_networks_claim_the_paper_s_errors(depth: int) -> None:
    published = load_spec(f"resnet{depth}").published
    assert published is not None
    assert published.test_top1 == pytest.approx(1 - PAPER[depth] / 100, abs=1e-12)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_other_networks(recipe: str) -> None:
    first, *rest = header(bundled_file(recipe))
    assert first.endswith(".")
    [use] = [line for line in rest if line.startswith("Use:")]
    assert f"--with {recipe}" in use
    for name in ("resnet110", "resnet34_cifar", "resnet50"):
        weights = ["model.weights.path=x.pth"] if recipe == "finetune" else []
        base = load_spec(name, overrides=weights)
        laid = load_spec(name, fragments=[recipe], overrides=weights)
        assert base.data is not None
        assert laid.data is not None
        if laid.data.dataset == base.data.dataset:  # else the dataset tells the classes
            assert laid.model.model_copy(update={"weights": base.model.weights}) == base.model
            assert laid.expect == base.expect
        assert laid.train is not None


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("resnet20", "he2015"),
        ("resnet110", "he2015_warmup"),
        ("resnet18_cifar", "kuangliu200"),
        ("kj32", "kj60"),
        ("resnet50", "torchvision_v1"),
        ("wrn16_8", "wrn200"),
        ("resnext29_8x64d", "resnext300"),
    ],
)
def test_recipe_is_that_of_its_networks(name: str, recipe: str) -> None:
    with_recipe, spec = (
        read_spec(read_draft(name, fragments=fragments)) for fragments in ([recipe], [])
    )
    assert (with_recipe.data, with_recipe.train) == (spec.data, spec.train)


@pytest.mark.parametrize(
    ("name", "base", "key"),
    [
        ("plain20", "resnet20", "shortcut"),
        ("plain56", "resnet56", "shortcut"),
        ("kj56", "resnet56", "shortcut"),
        ("kj56_average", "kj56", "shortcut"),
        ("kj56_projection", "kj56", "shortcut"),
        ("kj56_dropout", "kj56", "block"),
    ],
)
def test_variant_differs_from_its_base_in_one_thing(name: str, base: str, key: str) -> None:
    ours, theirs = load_spec(name).model, load_spec(base).model
    changed = {
        each for each in type(ours).model_fields if getattr(ours, each) != getattr(theirs, each)
    }
    assert changed == {key}


def test_spec_of_a_paper_is_the_paper_s_recipe() -> None:
    spec: Spec = load_spec("resnet110")
    assert spec.train is not None
    recipe = spec.train.model_dump()
    assert (recipe["steps"], recipe["batch_size"]) == (64_000, 128)
    assert recipe["optimizer"] == {
        "type": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": False,
    }
    assert recipe["schedule"]["milestones"] == (32_000, 48_000)
    assert recipe["schedule"]["warmup"]["steps"] == 400
    assert recipe["schedule"]["warmup"]["lr"] == 0.01
