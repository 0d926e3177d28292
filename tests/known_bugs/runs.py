"""Bugs in runs: what is saved, what is kept as the best, and what resuming goes on with."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import build
from resnet_builder.errors import Stopped
from resnet_builder.parts import resolve
from resnet_builder.runs.checkpoint import Checkpoint
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.runs.tensor_files import write_tensors
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.trained import load_model
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.saving import CheckpointManager
from resnet_builder.training.state import State, host_copy
from resnet_builder.training.step import TrainStep
from resnet_builder.weights.file import WeightsHeader, save_weights
from tests.known_bugs.bugs import bug, works
from tests.networks import cifar_spec, random_images
from tests.training.recipes import recipe, small_net, weight
from tests.training.runs import Recorder, after, experiment, outcome, train

Restore = Callable[[State, Checkpoint], int]

RESTORE, SAVE = State.restore, CheckpointManager.save
"""Ours, also while another stands in its place."""

STEPS = 12
"""Of :func:`tests.training.runs.experiment`: three epochs of four."""


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder for a while."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@dataclass
class Left:
    """What a training left behind.

    Attributes:
        validated: The steps after which the weights were evaluated on validation images.
        files: The files of the run.
        rows: The metrics that were written down.
    """

    validated: list[int]
    files: set[str]
    rows: list[dict[str, Any]]


def trained() -> Left:
    recorder = Recorder()
    with folder() as path:
        train(path / "run", experiment(), observer=recorder)
        run = RunDirectory(path / "run")
        rows = [json.loads(row.to_json()) for row in MetricsLog(run).read()]
        files = {file.name for file in run.path.iterdir()}
    validated = [step for step, split, _ in recorder.evaluations if split == "val"]
    return Left(validated, files, rows)


def evaluated_before_each_epoch() -> Left:
    """Evaluate, train an epoch, and keep nothing."""
    validated, rows = [], []
    for epoch in range(3):
        validated.append(4 * epoch)
        rows.append({"event": "train", "step": 4 * (epoch + 1), "train.top1": 0.5})
    return Left(validated, set(), rows)


@bug(
    "kellerjordan-19",
    "the last weights are never evaluated on validation images, and none are kept",
    ours=trained,
    planted=evaluated_before_each_epoch,
)
def check_last_weights_are_evaluated_and_kept(left: Callable[[], Left]) -> None:
    found = left()
    assert found.validated == [4, 8, STEPS]
    assert found.files >= {"best.safetensors", "last.safetensors", "checkpoints", "result.json"}


@bug(
    "kellerjordan-21d",
    "neither rate nor top-5 are written down",
    ours=trained,
    planted=evaluated_before_each_epoch,
)
def check_rate_and_top5_are_written_down(left: Callable[[], Left]) -> None:
    rows = left().rows
    assert [row.get("lr") for row in rows if row["event"] == "train"] == [0.05] * 3
    assert [row["event"] for row in rows if "val.top5" in row] == ["validation"] * 3


def weights_alone(state: State, checkpoint: Checkpoint) -> int:
    """Take over the weights and forget the momentum."""
    size = RESTORE(state, checkpoint)
    state.optimizer.state.clear()
    return size


def by_epoch(state: State, checkpoint: Checkpoint) -> int:
    """Look for an epoch that nobody saved."""
    state.counters.step = checkpoint.state["epoch"]
    return 0


@bug(
    "akamaster-2a",
    "the optimizer's state is not saved",
    ours=RESTORE,
    planted=weights_alone,
)
@bug(
    "akamaster-2b",
    "the epoch is not saved, so that resuming is a KeyError",
    ours=RESTORE,
    planted=by_epoch,
)
def check_resumed_run_is_the_uninterrupted_one(restore: Restore) -> None:
    with folder() as path:
        train(path / "whole", experiment())
        with pytest.raises(Stopped):
            train(path / "parts", experiment(), stop=after(3))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(State, "restore", restore)
            works(lambda: train(path / "parts", experiment()))
        assert outcome(path / "parts") == outcome(path / "whole")


def note_everything(state: State, evaluation: Evaluation, min_delta: float) -> bool:
    """Compute what is best, and keep the last."""
    State.note(state, evaluation, min_delta)
    state.best_weights = host_copy(state.evaluated_model)
    return True


@bug(
    "akamaster-3",
    "what is kept as the best are the last weights",
    ours=State.note,
    planted=note_everything,
)
def check_best_weights_are_kept(note: Callable[[State, Evaluation, float], bool]) -> None:
    model = small_net()
    optimizer = build_optimizer(model, recipe().optimizer, no_weight_decay=(), fused=True)
    state = State(model, optimizer, None, fingerprint="")
    nothing = torch.zeros(1, dtype=torch.int64)
    seen = []
    for top1 in (0.25, 0.5, 0.4):
        nn.init.constant_(weight(model, 0), top1)
        seen.append(host_copy(model))
        note(state, Evaluation(1.0, top1, 1.0, nothing, nothing, num_classes=4), 0.0)
    assert torch.equal(state.best_weights["0.weight"], seen[1]["0.weight"])


def saved_steps(every: int) -> list[int]:
    recorder = Recorder()
    with folder() as path:
        train(path / "run", experiment(checkpoint_every={"steps": every}), observer=recorder)
    return recorder.saves


def multiples(every: int) -> list[int]:
    """Save at multiples only."""
    return [step for step in range(1, STEPS + 1) if step % every == 0]


@bug(
    "akamaster-4",
    "the end is saved only if the interval divides the length",
    ours=saved_steps,
    planted=multiples,
)
def check_end_is_saved(saved: Callable[[int], list[int]]) -> None:
    assert saved(5) == [5, 10, STEPS]


def names_of(network: nn.Module) -> set[str]:
    return set(host_copy(network))


def names_of_parallel(network: nn.Module) -> set[str]:
    """Train on as many devices as there are, and save what is wrapped."""
    return set(nn.DataParallel(network).state_dict())


@bug(
    "akamaster-11",
    "every name begins with `module.`",
    ours=names_of,
    planted=names_of_parallel,
)
def check_names_are_those_of_the_network(names: Callable[[nn.Module], set[str]]) -> None:
    found = names(build(cifar_spec(1)))
    assert {name.split(".")[0] for name in found} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "fc"),
    }


def names_in_a_checkpoint(network: nn.Module) -> set[str]:
    optimizer = build_optimizer(network, recipe().optimizer, no_weight_decay=(), fused=False)
    return set(State(network, optimizer, None, fingerprint="").checkpoint(0).tensors)


def names_by_device(network: nn.Module) -> set[str]:
    """Wrap the network unless it is on the CPU."""
    on_cpu = next(network.parameters()).device.type == "cpu"
    return set(network.state_dict()) if on_cpu else names_of_parallel(network)


@bug(
    "kuangliu-11",
    "names depend on the device that was trained on",
    ours=names_in_a_checkpoint,
    planted=names_by_device,
)
def check_names_are_the_same_on_every_device(names: Callable[[nn.Module], set[str]]) -> None:
    network = build(cifar_spec(1))
    assert names(network) == names(network.to("meta"))


def steps_of_a_run_that_goes_on(stopped_after: int) -> list[tuple[int, float]]:
    """Return each step that is taken, and its rate."""
    taken: list[tuple[int, float]] = []

    class Noting(TrainStep):
        def __call__(self, step: int, batch: Any) -> Tensor:
            taken.append((step, self._schedule(step)))
            return super().__call__(step, batch)

    spec = experiment(schedule="cosine")
    polls = stopped_after + 2 * (stopped_after // 4)  # asked at both batches of an evaluation too
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_builder.training.step.TrainStep", Noting)
        with pytest.raises(Stopped):
            train(path / "run", spec, stop=after(polls))
        train(path / "run", spec)
    return taken


def steps_of_a_run_that_begins_again(stopped_after: int) -> list[tuple[int, float]]:
    """Repeat the epoch that was saved, as many epochs again, and a cosine from its beginning."""
    first = [(step, cosine(step)) for step in range(stopped_after)]
    epoch = stopped_after // 4 * 4
    return [*first, *((epoch + step, cosine(step)) for step in range(STEPS))]


def cosine(step: int) -> float:
    return 0.025 * (1 + math.cos(math.pi * step / (STEPS - 1)))


@bug(
    "kuangliu-7",
    "resuming repeats an epoch, adds as many again, and begins the cosine anew",
    ours=steps_of_a_run_that_goes_on,
    planted=steps_of_a_run_that_begins_again,
)
def check_resuming_goes_on(taken: Callable[[int], list[tuple[int, float]]]) -> None:
    steps = taken(6)
    assert [step for step, _ in steps] == list(range(STEPS))
    assert [rate for _, rate in steps] == pytest.approx([cosine(step) for step in range(STEPS)])


def save_the_best_alone(saver: CheckpointManager) -> None:
    """Keep nothing that is not better than what there was."""
    counters = saver._state.counters
    if counters.step == counters.best_step:
        SAVE(saver)


@bug(
    "kuangliu-8",
    "only what is best is saved, so that resuming goes back to it",
    ours=SAVE,
    planted=save_the_best_alone,
)
def check_resuming_goes_on_from_the_last_step(save: Callable[[CheckpointManager], None]) -> None:
    recorder = Recorder()
    spec = experiment(evaluate_every={"steps": 5})
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "save", save)
        with pytest.raises(Stopped):
            train(path / "run", spec, stop=after(3))
        with pytest.raises(Stopped):
            train(path / "run", spec, stop=after(0), observer=recorder)
    assert recorder.starts[0].step == 3


def save_with_a_header(path: Path, spec: Spec, weights: Mapping[str, Tensor]) -> None:
    header = WeightsHeader(
        spec=dump_spec(resolve(spec)),
        classes=tuple("0123456789"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        step=1,
    )
    save_weights(path, weights, header)


def save_tensors_alone(path: Path, spec: Spec, weights: Mapping[str, Tensor]) -> None:
    """Leave it to whoever loads them to know the network."""
    write_tensors(path, weights, {"acc": "0.9", "epoch": "1"})


@bug(
    "kuangliu-10",
    "weights do not say which network they are of",
    ours=save_with_a_header,
    planted=save_tensors_alone,
)
def check_weights_are_enough_to_use_them(
    save: Callable[[Path, Spec, Mapping[str, Tensor]], None],
) -> None:
    spec = cifar_spec(1, shortcut={"type": "pad", "position": "end"})
    network, x = build(spec, seed=0).eval(), random_images(2, 3, 32, 32)
    with folder() as path:
        save(path / "x.safetensors", spec, network.state_dict())
        loaded = works(lambda: load_model(path / "x.safetensors"))
    assert torch.equal(loaded.network(x), network(x))
