"""Signals in every phase of a training: it ends soon, leaves nobody behind, and resumes."""

from typing import Any

import pytest

from resnet_builder.runs.directory import RunDirectory
from tests.crash.experiments import Trial
from tests.crash.program import Server

pytestmark = pytest.mark.ci

GRACE = 10.0
"""Seconds that schedulers commonly wait between SIGTERM and SIGKILL."""

STEP = "resnet_builder.training.step:TrainStep.__call__"

PHASES: dict[str, tuple[object, ...]] = {
    "start-up": ("in_call", "resnet_builder.builder:load_experiment", 1),
    "data": ("in_call", "PIL.Image:open", 20),
    "set-up": ("in_call", "resnet_builder.training.resume:resolve_environment", 1),
    "step": ("in_call", STEP, 10),
    "evaluation": ("in_call", "resnet_builder.training.trainer:evaluate_images", 2),
    "save": ("at_point", "written", 4),
    "last-test": ("in_call", "resnet_builder.training.trainer:finalize", 1),
}

SECOND_CHECKPOINT = 6
"""Before it come ``data.json``, the spec, ``env.json``, a checkpoint and the best weights."""


@pytest.fixture(scope="module")
def shared(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return a training on images that are decoded anew."""
    folder = tmp_path_factory.mktemp("signals")
    return Trial(server, folder, "held", epochs=3, evaluate_every={"steps": 6})


@pytest.fixture
def trial(shared: Trial, request: pytest.FixtureRequest) -> Trial:
    """Return the training, with a run of its own and no image decoded."""
    assert shared.expected
    for kept in (shared.folder / "decoded").glob("*"):
        kept.unlink()
    shared.run = RunDirectory(shared.folder / request.node.name)
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
    phase: str, signal: str, code: int, trial: Trial
) -> None:
    end = trial.train(faults=[(*PHASES[phase], signal)])
    assert end.code == code, end.stderr
    assert end.seconds < GRACE
    has_begun = phase not in {"start-up", "data", "set-up"}
    assert end.stderr.endswith(f": {trial.resume_command}\n") is has_begun
    assert trial.run.path.exists() is has_begun
    if phase == "step":  # which is finished, and saved
        assert trial.steps[-1] == 10
        assert "stopped after step 10, which is saved; to resume: " in end.stderr
    trial.assert_ends_as_without_faults()


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
    point: str, signals: list[str], steps: list[int], torn: int, trial: Trial
) -> None:
    """One lets the save be completed; at the second nothing is, but what was saved is whole."""
    end = trial.train(faults=[("at_point", point, SECOND_CHECKPOINT, *signals)])
    assert end.code == (143 if signals[-1] == "SIGTERM" else 130)
    assert trial.steps == steps
    assert len(list(trial.run.checkpoints.glob(".tmp-*"))) == torn
    trial.assert_ends_as_without_faults()


def test_nobody_is_left_by_any_end(trial: Trial) -> None:
    """By a fault of ours, a kill, an error, and an end in good order."""
    ends: dict[int, list[Any]] = {
        1: [("raising", "AttributeError", "oh", STEP, 4)],
        -9: [("in_call", STEP, 5, "SIGKILL")],
        7: [("failing", "replace", "EIO", "last.safetensors", 1, 99)],
        0: [],
    }
    for code, faults in ends.items():
        assert trial.train(faults=faults).code == code
    trial.assert_ends_as_without_faults()
