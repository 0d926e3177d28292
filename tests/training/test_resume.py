"""A run that was interrupted, wherever and however often, ends in the bits of one that was not."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from resnet_builder.builder import build
from resnet_builder.errors import Stopped
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from tests.training.runs import after, experiment, outcome, train

EVERYTHING: dict[str, Any] = {
    "optimizer": {"type": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 1e-3},
    "schedule": {"type": "cosine", "warmup": {"steps": 3}},
    "loss": {"label_smoothing": 0.1},
    "ema": {"decay": 0.9, "every": 2},
    "clip_norm": 1.0,
    "accumulate": 2,
    "no_weight_decay": ["norm", "bias"],
    "evaluate_every": {"steps": 5},
    "augment": [{"type": "mixup", "alpha": 0.4}],
}
RECIPES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "adamw": {
        "optimizer": {"type": "adamw", "lr": 0.03},
        "schedule": {"type": "one_cycle"},
        "augment": [{"type": "random_crop", "padding": 1}],
        "evaluate_every": {"steps": 2},
        "early_stop": {"patience": 2},
        "epochs": 2,
    },
    "muon": {
        "optimizer": {"type": "muon", "lr": 0.03, "aux": {"lr": 0.1}},
        "schedule": {"type": "linear"},
        "augment": [{"type": "alternating_flip"}],
        "evaluate_every": {"steps": 4},
    },
}


def interrupted(path: Path, spec: Experiment, polls: int) -> bool:
    """Train until ``stop`` was asked so often; return whether the run is complete."""
    try:
        train(path, spec, extra=[nn.Dropout(0.3)], should_stop=after(polls))
    except Stopped:
        return False
    return True


LONG = {"everything", "muon"}

EVERY = [
    pytest.param(name, marks=[pytest.mark.ci] if name in LONG else [], id=name) for name in RECIPES
]


@pytest.fixture(scope="module", params=EVERY)
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, dict[str, Any], int]:
    """Return a spec, its outcome without interruption, and how often ``stop`` is asked."""
    spec = experiment(**RECIPES[request.param])
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    train(path, spec, extra=[nn.Dropout(0.3)], should_stop=count)
    return spec, outcome(path), asked


def test_resumed_from_any_step_equals_uninterrupted(
    uninterrupted: tuple[Experiment, dict[str, Any], int], tmp_path: Path
) -> None:
    spec, expected, asked = uninterrupted
    for polls in range(asked):
        path = tmp_path / str(polls)
        assert not interrupted(path, spec, polls)
        assert interrupted(path, spec, 10_000)
        assert outcome(path) == expected, f"stopped at poll {polls}"


def test_resumed_again_and_again_equals_uninterrupted(
    uninterrupted: tuple[Experiment, dict[str, Any], int], tmp_path: Path
) -> None:
    """Each process is given so little time that it just gets through an evaluation."""
    spec, expected, _ = uninterrupted
    path = tmp_path / "run"
    processes = 1
    while not interrupted(path, spec, 5):
        processes += 1
        assert processes < 100
    assert processes > 2
    assert outcome(path) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_built_network_goes_on_to_the_same_bits(precision: str, tmp_path: Path) -> None:
    spec = experiment(**EVERYTHING, run={"precision": precision})
    for path, polls in ((tmp_path / "whole", 10_000), (tmp_path / "resumed", 6)):
        with contextlib.suppress(Stopped):
            train(path, spec, model=build(spec, seed=3), should_stop=after(polls))
    assert not RunDirectory(tmp_path / "resumed").is_finished
    train(tmp_path / "resumed", spec, model=build(spec, seed=3))
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")
