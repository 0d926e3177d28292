"""Damaged files of tensors and records: each is read, or refused by one of the project's errors."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from resnet_builder.inference import load_model
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, EnvRecord, MetricsLog, ResultRecord
from resnet_builder.training.checkpoint import load_checkpoint
from resnet_builder.weights.file import read_weights
from resnet_builder.weights.foreign import read_foreign
from tests.cli.experiments import call
from tests.fuzz.files import change, change_pickle, damaged_file, damaged_record, sound_checkpoint
from tests.fuzz.harness import Make, Read, fuzz

CHECKPOINT = "checkpoints/step-000000012.safetensors"

ENDS = {0, 2, 3, 4}
"""How a command may end that is given a damaged run."""


@dataclass(frozen=True)
class Target:
    """A file of a run, how it is damaged, and what then reads it."""

    file: str
    damage: Callable[[bytes, random.Random], bytes]
    reader: Callable[[Path], object]

    def make(self, run: Path) -> Make:
        """Return what makes damaged files of the run's."""
        return partial(self.damage, (run / self.file).read_bytes())

    def read(self, folder: Path) -> Read:
        """Return what writes a damaged file, and lets it be read."""
        path = folder / Path(self.file).name

        def read(data: bytes, choose: random.Random) -> None:
            path.write_bytes(data)
            self.reader(path)

        return read


TENSORS = {
    "checkpoint": Target(CHECKPOINT, damaged_file, load_checkpoint),
    "weights": Target("best.safetensors", damaged_file, read_weights),
    "network": Target("best.safetensors", damaged_file, load_model),
    "foreign": Target("best.safetensors", damaged_file, read_foreign),
}
RECORDS = {
    "env": Target("env.json", damaged_record, EnvRecord.read),
    "data": Target("data.json", damaged_record, DataRecord.read),
    "result": Target("result.json", damaged_record, ResultRecord.read),
    "metrics": Target(
        "metrics.jsonl", damaged_record, lambda path: MetricsLog(RunDirectory(path.parent)).read()
    ),
}
PICKLES = {
    "zip": (True, change),
    "zip-pickle": (True, change_pickle),
    "old": (False, change),
}
"""Whether a checkpoint of another program is a zip archive, and how it is damaged."""

EFFORTS = [
    pytest.param(0, 100, id="few"),
    pytest.param(100, 1_000, id="thousand", marks=pytest.mark.ci),
    pytest.param(1000, 10_000, id="many", marks=pytest.mark.slow),
]
"""Seed of the inputs, and how many."""


def resumed(run: Path, folder: Path) -> Read:
    """Return what puts a damaged file into a copy of a run, and goes on with it.

    Which file it is, is drawn by :func:`of_a_run` from the same numbers.
    """
    copy = folder / "run"

    def read(data: bytes, choose: random.Random) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        name, _, content = data.partition(b"\n")
        (copy / name.decode()).write_bytes(content)
        if name != b"result.json":
            (copy / "result.json").unlink()
        spec = run.parent / "tiny.yaml"
        ends = [
            call("train", spec, "--out", copy, "--resume"),
            call("evaluate", copy),
        ]
        assert {end.exit_code for end in ends} <= ENDS, [end.stderr for end in ends]

    return read


def of_a_run(run: Path) -> Make:
    """Return what makes a damaged file of a run, with its name before it."""
    targets = [*TENSORS.values(), *RECORDS.values(), Target("spec.yaml", change, Path.read_bytes)]

    def make(choose: random.Random) -> bytes:
        target = choose.choice(targets)
        return target.file.encode() + b"\n" + target.make(run)(choose)

    return make


@pytest.mark.parametrize(("seed", "count"), EFFORTS)
@pytest.mark.parametrize("name", [*TENSORS, *RECORDS])
def test_damaged_file_is_read_or_refused(
    name: str, seed: int, count: int, sound_run: Path, tmp_path: Path
) -> None:
    target = {**TENSORS, **RECORDS}[name]
    tally = fuzz(target.make(sound_run), target.read(tmp_path), seed=seed, count=count)
    assert tally.refused > count / 2


@pytest.mark.parametrize(("seed", "count"), EFFORTS)
@pytest.mark.parametrize("kind", PICKLES)
def test_damaged_checkpoint_of_another_program_is_read_or_refused(
    kind: str, seed: int, count: int, tmp_path: Path
) -> None:
    new, damage = PICKLES[kind]
    path = tmp_path / "model.pth"
    sound = sound_checkpoint(path, new=new)
    target = Target(path.name, damage, read_foreign)
    tally = fuzz(partial(damage, sound), target.read(tmp_path), seed=seed, count=count)
    assert tally.refused > count / 2


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (0, 4),
        pytest.param(100, 40, marks=pytest.mark.ci),
        pytest.param(1000, 400, marks=pytest.mark.slow),
    ],
)
def test_damaged_run_is_resumed_or_refused(
    seed: int, count: int, sound_run: Path, tmp_path: Path
) -> None:
    fuzz(of_a_run(sound_run), resumed(sound_run, tmp_path), seed=seed, count=count, each=20)
