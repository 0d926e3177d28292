"""Signals in every phase of a training: it ends soon, leaves nobody behind, and can go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.checkpoint import load_checkpoint
from tests.crash.experiments import left, train_line, write_experiment
from tests.crash.killing import assert_equal
from tests.crash.program import End, Fault, Server, family

pytestmark = pytest.mark.ci

GRACE = 10.0
"""Seconds that schedulers commonly wait between SIGTERM and SIGKILL."""

PHASES: dict[str, tuple[object, ...]] = {
    "start-up": ("in_call", "resnet_builder.builder:read_spec", 1),
    "data": ("in_call", "PIL.Image:open", 20),
    "step": ("in_call", "resnet_builder.training.step:TrainStep.__call__", 10),
    "evaluation": ("in_call", "resnet_builder.training.trainer:evaluate_images", 2),
    "save": ("at_point", "written", 4),
    "last-test": ("in_call", "resnet_builder.training.trainer:finalize", 1),
}


class TrainedModel:
    """An experiment on pictures, and what it leaves without any signal."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.spec = write_experiment(folder, "held", epochs=3, evaluate_every={"steps": 6})
        assert self.train("whole").code == 0
        self.expected = left(folder / "whole")

    def train(self, run: str, faults: Sequence[Fault] = ()) -> End:
        """Train, from where the run is; nobody must be left afterwards."""
        line = train_line(self.spec, self.folder / run, "--set", "data.validation=20")
        child = self.server.start(*line, folder=self.folder, faults=faults)
        end = child.wait()
        assert family(child) == []
        assert not RunDirectory(self.folder / run).is_locked
        return end

    def go_on(self, run: str) -> None:
        """Train to the end, and compare."""
        end = self.train(run)
        assert end.code == 0, end.stderr
        assert_equal(left(self.folder / run), self.expected)


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return TrainedModel(server, tmp_path_factory.mktemp("signals"))


@pytest.fixture(autouse=True)
def _pictures_are_decoded_again(trained: TrainedModel) -> None:
    for kept in (trained.folder / "decoded").glob("*"):
        kept.unlink()


@pytest.mark.parametrize(
    ("phase", "signal", "code"),
    [
        *((phase, "SIGTERM", 143) for phase in PHASES),
        ("step", "SIGHUP", 143),
        ("evaluation", "SIGINT", 130),
    ],
    ids=lambda value: f"row55-row64-{value}" if value in PHASES else str(value),
)
def test_signal_in_any_phase_ends_soon_and_can_be_gone_on_from(
    phase: str, signal: str, code: int, trained: TrainedModel
) -> None:
    run = f"{phase}-{signal}"
    end = trained.train(run, [(*PHASES[phase], signal)])
    assert end.code == code, end.stderr
    assert end.seconds < GRACE
    assert "Traceback" not in end.stderr
    assert end.stderr.endswith(
        f"to go on: resnet-build train --resume {trained.folder / run}\n"
    ) is (phase not in {"start-up", "data"})
    trained.go_on(run)


def test_row53_signal_finishes_the_step_and_saves_it(trained: TrainedModel) -> None:
    end = trained.train("once", [(*PHASES["step"], "SIGINT")])
    assert end.code == 130
    checkpoints = sorted((trained.folder / "once" / "checkpoints").iterdir())
    assert load_checkpoint(checkpoints[-1]).step == 10
    assert "stopped after step 10; to go on: " in end.stderr
    trained.go_on("once")


@pytest.mark.parametrize(
    ("point", "signals", "steps", "torn"),
    [
        ("written", ["SIGINT"], [6, 7], 0),  # it is noticed after the step behind the save
        ("written", ["SIGINT", "SIGINT"], [3], 1),
        ("verified", ["SIGINT", "SIGTERM"], [3], 1),
        ("replaced", ["SIGTERM", "SIGINT"], [3, 6], 0),
    ],
    ids=["row54-once", "row54-written-twice", "row54-verified-twice", "row54-replaced-twice"],
)
def test_signal_during_a_save(
    point: str, signals: list[str], steps: list[int], torn: int, trained: TrainedModel
) -> None:
    """One lets the save be completed; at the second nothing is, but what was saved is whole."""
    run = f"{point}-{len(signals)}"
    end = trained.train(run, [("at_point", point, SECOND_CHECKPOINT, *signals)])
    assert end.code == (143 if signals[-1] == "SIGTERM" else 130)
    assert checkpoints_of(trained.folder / run) == (steps, torn)
    trained.go_on(run)


SECOND_CHECKPOINT = 6
"""Before it come ``data.json``, the spec, ``env.json``, a checkpoint and the best weights."""


def checkpoints_of(run: Path) -> tuple[list[int], int]:
    """Return the steps of the checkpoints, each of which must hold, and count the torn files."""
    paths = sorted((run / "checkpoints").iterdir())
    torn = [path for path in paths if path.name.startswith(".tmp-")]
    return [load_checkpoint(path).step for path in paths if path not in torn], len(torn)


def test_row64_nobody_is_left_by_any_end(trained: TrainedModel) -> None:
    """By an end in good order, by a fault of ours, by an error and by a kill."""
    step = "resnet_builder.training.step:TrainStep.__call__"
    ends: dict[int, list[Any]] = {
        1: [("raising", "oh", step, 4)],
        -9: [("in_call", step, 5, "SIGKILL")],
        7: [("failing", "replace", "EIO", "last.safetensors", 1, 99)],
        0: [],
    }
    for code, faults in ends.items():
        assert trained.train("ends", faults).code == code
    assert_equal(left(trained.folder / "ends"), trained.expected)
