"""A run that is stopped anywhere, however often, leaves the bytes of one that was not.

The clock stands still, so that not even times may differ: every file is compared whole.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resnet_builder.builder import load_experiment
from resnet_builder.data.interfaces import never
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import EnvRecord
from resnet_builder.training import meter, result
from resnet_builder.weights.file import read_tensors
from tests.crash.experiments import write_experiment
from tests.training.runs import after, resume_run

NAMES = ("plain", "everything", "streamed", "one_cycle", "plateau", "muon", "rare")


@pytest.fixture(autouse=True, scope="module")
def _time_stands_still() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "monotonic", lambda: 0.0)
        patch.setattr(meter.RunningMean, "images_per_second", 0.0)
        patch.setattr(result, "peak_memory", lambda device: None)
        yield


class Experiment:
    """One of :data:`tests.crash.experiments.EXPERIMENTS`, in a folder of its own: three epochs."""

    def __init__(self, folder: Path, name: str, **recipe: object) -> None:
        self.folder = folder
        self.experiment = load_experiment(write_experiment(folder, name, epochs=3, **recipe))

    def train(self, run: str, stop: Callable[[], bool] = never) -> bool:
        """Train, from where the run is; return whether it is complete."""
        how = {"should_stop": stop}
        try:
            resume_run(self.experiment, self.folder / run, data_dir=self.folder, fit_options=how)
        except Stopped:
            return False
        return True

    def files(self, run: str) -> dict[str, bytes]:
        """Return what a finished run holds, but for what was saved in between and its log."""
        found = RunDirectory(self.folder / run)
        newest = max(found.checkpoints.iterdir())
        named = (found.spec, found.data, found.env, found.metrics, found.result)
        made = (found.best, found.last, found.predictions)
        return {path.name: path.read_bytes() for path in (newest, *made, *named)}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Return an experiment that was trained to the end, in ``whole``."""
    experiment = Experiment(tmp_path_factory.mktemp("everything"), "everything")
    assert experiment.train("whole")
    return experiment


@pytest.mark.parametrize(
    ("name", "every"),
    [
        pytest.param("plateau", 7, marks=pytest.mark.ci),
        pytest.param("one_cycle", 6, marks=pytest.mark.slow),
        pytest.param("plain", 3, marks=pytest.mark.slow),
        pytest.param("everything", 3, marks=pytest.mark.slow),
        pytest.param("everything", 9, marks=pytest.mark.ci),
        pytest.param("streamed", 8, marks=pytest.mark.slow),
        pytest.param("muon", 9, marks=pytest.mark.ci),
        pytest.param("rare", 9, marks=pytest.mark.slow),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_run_stopped_at_any_instant_leaves_the_same_files(
    name: str, every: int, tmp_path: Path
) -> None:
    """At every place that polls: before a step, after a save, in the midst of an evaluation."""
    experiment = Experiment(tmp_path, name)
    polls = 0

    def count() -> bool:
        nonlocal polls
        polls += 1
        return False

    assert experiment.train("whole", count)
    assert polls > 8
    for number in range(0, polls, every):
        run = f"stopped-{number}"
        assert not experiment.train(run, after(number))
        assert experiment.train(run)
        assert experiment.files(run) == experiment.files("whole"), f"stopped at poll {number}"


def test_run_stopped_thrice_in_one_epoch_leaves_the_same_files(everything: Experiment) -> None:
    for _ in range(3):
        assert not everything.train("stopped", after(1))
    assert everything.train("stopped")
    assert everything.files("stopped") == everything.files("whole")


@pytest.mark.parametrize("every", [{"steps": 1}, {"seconds": 3600.0}], ids=["step", "hour"])
def test_how_often_a_run_is_saved_changes_no_byte_of_what_it_delivers(
    every: dict[str, float], everything: Experiment, tmp_path: Path
) -> None:
    """But the spec, and what holds or names it: the result, and the metadata of tensors."""
    other = Experiment(tmp_path, "everything", checkpoint_every=every)
    assert not other.train("run", after(8))
    assert other.train("run")
    ours, theirs = other.files("run"), everything.files("whole")
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"spec.yaml", "result.json"}:
        if name.endswith(".safetensors"):
            folder = "checkpoints" if name.startswith("step-") else "."
            tensors, _ = read_tensors(tmp_path / "run" / folder / name)
            expected, _ = read_tensors(everything.folder / "whole" / folder / name)
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensors[key], expected[key]) for key in tensors), name
        else:
            assert ours[name] == theirs[name], name


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
