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
from tests.fuzz.files import damaged_file, damaged_record
from tests.fuzz.harness import Make, Read, fuzz
from tests.weights.test_foreign import change, change_pickle, sound_files

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
    "zip": change,
    "zip-pickle": change_pickle,
    "old": change,
}
"""What :func:`sound_files` calls a file of torch's before the dash, and how it is damaged."""


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


@pytest.mark.parametrize("name", [*TENSORS, *RECORDS])
def test_damaged_file_is_read_or_refused(name: str, sound_run: Path, tmp_path: Path) -> None:
    target = {**TENSORS, **RECORDS}[name]
    tally = fuzz(target.make(sound_run), target.read(tmp_path), seed=0, count=100)
    assert tally.refused > 50


def test_damaged_run_ends_in_words(sound_run: Path, tmp_path: Path) -> None:
    fuzz(of_a_run(sound_run), resumed(sound_run, tmp_path), seed=0, count=4, each=20)


@pytest.mark.ci
@pytest.mark.parametrize("name", [*TENSORS, *RECORDS])
def test_damaged_files_for_seconds(name: str, sound_run: Path, tmp_path: Path) -> None:
    target = {**TENSORS, **RECORDS}[name]
    fuzz(target.make(sound_run), target.read(tmp_path), seed=100, seconds=2)


@pytest.mark.ci
def test_damaged_runs_for_seconds(sound_run: Path, tmp_path: Path) -> None:
    fuzz(of_a_run(sound_run), resumed(sound_run, tmp_path), seed=100, seconds=10, each=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1010))
@pytest.mark.parametrize("name", TENSORS)
def test_hundred_thousand_damaged_headers(
    name: str, seed: int, sound_run: Path, tmp_path: Path
) -> None:
    target = TENSORS[name]
    fuzz(target.make(sound_run), target.read(tmp_path), seed=seed, count=2_500)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_thousands_of_damaged_records(name: str, sound_run: Path, tmp_path: Path) -> None:
    target = RECORDS[name]
    fuzz(target.make(sound_run), target.read(tmp_path), seed=1000, count=10_000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", PICKLES)
def test_thousands_of_damaged_pickles(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sound = sound_files(path)[kind.partition("-")[0]]
    target = Target(path.name, PICKLES[kind], read_foreign)
    fuzz(partial(PICKLES[kind], sound), target.read(tmp_path), seed=1000, count=5_000)


@pytest.mark.slow
def test_hundreds_of_damaged_runs(sound_run: Path, tmp_path: Path) -> None:
    fuzz(of_a_run(sound_run), resumed(sound_run, tmp_path), seed=1000, count=400, each=20)
