"""Signals in every phase of a training: it ends soon, leaves nobody behind, and resumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.checkpoint import load_checkpoint
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import End, Fault, Server, family

pytestmark = pytest.mark.ci

GRACE = 10.0
"""Seconds that schedulers commonly wait between SIGTERM and SIGKILL."""

STEP = "resnet_builder.training.step:TrainStep.__call__"

PHASES: dict[str, tuple[object, ...]] = {
    "start-up": ("in_call", "resnet_builder.builder:load_experiment", 1),
    "data": ("in_call", "PIL.Image:open", 20),
    "step": ("in_call", STEP, 10),
    "evaluation": ("in_call", "resnet_builder.training.trainer:evaluate_images", 2),
    "save": ("at_point", "written", 4),
    "last-test": ("in_call", "resnet_builder.training.trainer:finalize", 1),
}

SECOND_CHECKPOINT = 6
"""Before it come ``data.json``, the spec, ``env.json``, a checkpoint and the best weights."""


class Training:
    """A training on images that are decoded anew, and its outcome without any signal."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.spec = write_experiment(folder, "held", epochs=3, evaluate_every={"steps": 6})
        assert self.train("whole").code == 0
        self.expected = outcome_of(folder / "whole")

    def train(self, run: str, faults: Sequence[Fault] = ()) -> End:
        """Train, from where the run is; nobody must be left afterwards."""
        line = train_line(self.spec, self.folder / run, "--set", "data.validation=20")
        child = self.server.start(*line, folder=self.folder, faults=faults)
        end = child.wait()
        assert family(child) == []
        assert not RunDirectory(self.folder / run).is_locked
        return end

    def resume(self, run: str) -> None:
        """Train to the end, and compare."""
        end = self.train(run)
        assert end.code == 0, end.stderr
        assert_same_outcome(self.folder / run, self.expected)


@pytest.fixture(scope="module")
def shared(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(server, tmp_path_factory.mktemp("signals"))


@pytest.fixture
def training(shared: Training) -> Training:
    """Return the training, with no image decoded."""
    for kept in (shared.folder / "decoded").glob("*"):
        kept.unlink()
    return shared


@pytest.mark.parametrize(
    ("phase", "signal", "code"),
    [
        *((phase, "SIGTERM", 143) for phase in PHASES),
        ("step", "SIGHUP", 143),
        ("evaluation", "SIGINT", 130),
    ],
)
def test_signal_in_any_phase_ends_soon_and_the_run_resumes(
    phase: str, signal: str, code: int, training: Training
) -> None:
    run = f"{phase}-{signal}"
    end = training.train(run, [(*PHASES[phase], signal)])
    assert end.code == code, end.stderr
    assert end.seconds < GRACE
    assert "Traceback" not in end.stderr
    hint = f": resnet-build train --resume {training.folder / run}\n"
    assert end.stderr.endswith(hint) is (phase not in {"start-up", "data"})
    if phase == "step":  # which is finished, and saved
        assert checkpoints_of(training.folder / run)[0][-1] == 10
        assert "stopped after step 10, which is saved; to resume: " in end.stderr
    training.resume(run)


@pytest.mark.parametrize(
    ("point", "signals", "steps", "torn"),
    [
        ("written", ["SIGINT"], [6, 7], 0),  # it is noticed after the step behind the save
        ("written", ["SIGINT", "SIGINT"], [3], 1),
        ("verified", ["SIGINT", "SIGTERM"], [3], 1),
        ("replaced", ["SIGTERM", "SIGINT"], [3, 6], 0),
    ],
)
def test_signal_during_a_save(
    point: str, signals: list[str], steps: list[int], torn: int, training: Training
) -> None:
    """One lets the save be completed; at the second nothing is, but what was saved is whole."""
    run = f"{point}-{len(signals)}"
    end = training.train(run, [("at_point", point, SECOND_CHECKPOINT, *signals)])
    assert end.code == (143 if signals[-1] == "SIGTERM" else 130)
    assert checkpoints_of(training.folder / run) == (steps, torn)
    training.resume(run)


def checkpoints_of(run: Path) -> tuple[list[int], int]:
    """Return the steps of the checkpoints, each of which must be valid, and count torn files."""
    paths = sorted((run / "checkpoints").iterdir())
    torn = [path for path in paths if path.name.startswith(".tmp-")]
    return [load_checkpoint(path).step for path in paths if path not in torn], len(torn)


def test_nobody_is_left_by_any_end(training: Training) -> None:
    """By a fault of ours, a kill, an error, and an end in good order."""
    ends: dict[int, list[Any]] = {
        1: [("raising", "AttributeError", "oh", STEP, 4)],
        -9: [("in_call", STEP, 5, "SIGKILL")],
        7: [("failing", "replace", "EIO", "last.safetensors", 1, 99)],
        0: [],
    }
    for code, faults in ends.items():
        assert training.train("ends", faults).code == code
    assert_same_outcome(training.folder / "ends", training.expected)
