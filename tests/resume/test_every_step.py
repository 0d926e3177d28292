"""A run that is stopped anywhere, however often, leaves the bytes of one that was not.

The clock stands still, so that not even times may differ: every file is compared whole.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_builder.builder import load_experiment
from resnet_builder.data.interfaces import never
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import EnvRecord
from resnet_builder.training import callbacks
from resnet_builder.weights.file import read_weights
from tests.crash.experiments import write_experiment
from tests.training.runs import after, resume_run

STEPS = {"plain": 21, "everything": 15, "streamed": 15}
"""Three epochs: of seven steps, or of five where images are set aside for validation."""


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "monotonic", lambda: 0.0)
    monkeypatch.setattr(callbacks.RunningMean, "images_per_second", 0.0)


class Experiment:
    """An experiment of three epochs that is trained in directories of its own.

    Args:
        folder: Where.
        name: Of :data:`tests.crash.experiments.EXPERIMENTS`.
        recipe: Changes to its recipe.
    """

    def __init__(self, folder: Path, name: str, **recipe: object) -> None:
        self.folder = folder
        self.experiment = load_experiment(write_experiment(folder, name, epochs=3, **recipe))

    def train(self, run: str, stop: Callable[[], bool] = never) -> bool:
        """Train, from where the run is; tell whether it is complete.

        Args:
            run: Name of its directory.
            stop: Asked from when the images are there.
        """
        try:
            resume_run(
                self.experiment,
                self.folder / run,
                data_dir=self.folder,
                fit_options={"should_stop": stop},
            )
        except Stopped:
            return False
        return True

    def polls(self, run: str) -> int:
        """Train without a stop; return how often there might have been one."""
        asked = 0

        def count() -> bool:
            nonlocal asked
            asked += 1
            return False

        assert self.train(run, count)
        return asked

    def files(self, run: str) -> dict[str, bytes]:
        """Return what a finished run holds, but for what was saved in between and its log."""
        found = RunDirectory(self.folder / run)
        newest = max(found.checkpoints.iterdir())
        named = (found.spec, found.data, found.env, found.metrics, found.result)
        return {
            path.relative_to(found.path).as_posix(): path.read_bytes()
            for path in (newest, found.best, found.last, *named)
        }


@pytest.mark.parametrize(
    ("name", "every"),
    [
        pytest.param("plain", 2, marks=pytest.mark.ci),
        pytest.param("everything", 3, marks=pytest.mark.ci),
        pytest.param("streamed", 8, marks=pytest.mark.ci),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in STEPS),
    ],
)
def test_run_stopped_at_any_instant_leaves_the_same_files(
    name: str, every: int, tmp_path: Path
) -> None:
    """At every place that polls: before a step, after a save, in the midst of an evaluation."""
    experiment = Experiment(tmp_path, name)
    polls = experiment.polls("whole")
    assert polls > STEPS[name]
    for number in range(0, polls, every):
        run = f"stopped-{number}"
        assert not experiment.train(run, after(number))
        assert experiment.train(run)
        assert experiment.files(run) == experiment.files("whole"), f"stopped at poll {number}"


def test_run_stopped_thrice_in_one_epoch_leaves_the_same_files(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, "everything")
    assert experiment.train("whole")
    for _ in range(3):
        assert not experiment.train("stopped", after(1))
    assert experiment.train("stopped")
    assert experiment.files("stopped") == experiment.files("whole")


@pytest.mark.parametrize("every", [{"steps": 1}, {"seconds": 3600.0}], ids=["step", "hour"])
def test_how_often_a_run_is_saved_changes_no_byte_of_what_it_delivers(
    every: dict[str, float], tmp_path: Path
) -> None:
    experiment = Experiment(tmp_path, "everything")
    assert experiment.train("whole")
    other = Experiment(tmp_path, "everything", checkpoint_every=every)
    assert not other.train("stopped", after(8))
    assert other.train("stopped")
    ours, theirs = other.files("stopped"), experiment.files("whole")
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - NAMING_THE_SPEC:
        assert ours[name] == theirs[name], name
    for name in ("best", "last"):
        (weights, _), (expected, _) = (
            read_weights(tmp_path / run / f"{name}.safetensors") for run in ("stopped", "whole")
        )
        assert {key: each.tolist() for key, each in weights.items()} == {
            key: each.tolist() for key, each in expected.items()
        }


NAMING_THE_SPEC = {"spec.yaml", "result.json", "best.safetensors", "last.safetensors"}


@pytest.mark.slow
def test_compiled_run_that_is_stopped_leaves_the_same_files(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, "compiled")
    assert experiment.train("whole")
    assert EnvRecord.read(tmp_path / "whole" / "env.json").runtime.compile
    for steps in (2, 9, 20):
        run = f"stopped-{steps}"
        assert not experiment.train(run, after(steps))
        assert experiment.train(run)
        assert experiment.files(run) == experiment.files("whole")
