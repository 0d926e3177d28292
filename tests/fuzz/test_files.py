"""Damaged files of tensors and records: each is read, or refused by one of the project's errors."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.inference import load_model
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.predictions import RunPredictions
from resnet_builder.runs.records import DataRecord, EnvRecord, MetricsLog, ResultRecord
from resnet_builder.training.checkpoint import load_checkpoint
from resnet_builder.weights.file import read_weights
from resnet_builder.weights.foreign import read_foreign
from tests.cli.experiments import call, write_tiny
from tests.fuzz.files import change, change_pickle, damaged_file, damaged_record, sound_checkpoint
from tests.fuzz.harness import fuzz


@dataclass(frozen=True)
class Target:
    """A file of a run, how it is damaged, and what then reads it."""

    file: str
    damage: Callable[[bytes, random.Random], bytes]
    reader: Callable[[Path], object]


TARGETS = {
    "checkpoint": Target("checkpoints/step-000000012.safetensors", damaged_file, load_checkpoint),
    "weights": Target("best.safetensors", damaged_file, read_weights),
    "network": Target("best.safetensors", damaged_file, load_model),
    "foreign": Target("best.safetensors", damaged_file, read_foreign),
    "env": Target("env.json", damaged_record, EnvRecord.read),
    "data": Target("data.json", damaged_record, DataRecord.read),
    "result": Target("result.json", damaged_record, ResultRecord.read),
    "predictions": Target("predictions.npz", change, RunPredictions.read),
    "metrics": Target(
        "metrics.jsonl", damaged_record, lambda path: MetricsLog(RunDirectory(path.parent)).read()
    ),
}
SPEC = Target("spec.yaml", change, Path.read_bytes)


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny experiment to its end; tests only copy from the run."""
    folder = tmp_path_factory.mktemp("sound")
    result = call("train", write_tiny(folder), "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


EFFORTS = [
    (0, 100),
    pytest.param(100, 500, marks=pytest.mark.ci),
    pytest.param(1000, 10_000, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("seed", "count"), EFFORTS)
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_file_is_read_or_refused(
    name: str, seed: int, count: int, sound_run: Path, tmp_path: Path
) -> None:
    target = TARGETS[name]
    path = tmp_path / Path(target.file).name

    def read(data: bytes, choose: random.Random) -> None:
        path.write_bytes(data)
        target.reader(path)

    make = partial(target.damage, (sound_run / target.file).read_bytes())
    assert fuzz(make, read, seed=seed, count=count).refused > count / 2


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (0, 4),
        pytest.param(100, 12, marks=pytest.mark.ci),
        pytest.param(1000, 400, marks=pytest.mark.slow),
    ],
)
def test_damaged_run_ends_in_words(seed: int, count: int, sound_run: Path, tmp_path: Path) -> None:
    """One file of a run is damaged; then the run is resumed and evaluated."""
    run = tmp_path / "run"

    def make(choose: random.Random) -> bytes:
        target = choose.choice([*TARGETS.values(), SPEC])
        damaged = target.damage((sound_run / target.file).read_bytes(), choose)
        return target.file.encode() + b"\n" + damaged

    def read(data: bytes, choose: random.Random) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(sound_run, run)
        name, _, content = data.partition(b"\n")
        (run / name.decode()).write_bytes(content)
        if name != b"result.json":
            (run / "result.json").unlink()
        spec = sound_run.parent / "tiny.yaml"
        ends = [call("train", spec, "--out", run, "--resume"), call("evaluate", run)]
        assert {end.exit_code for end in ends} <= {0, 2, 3, 4}, [end.stderr for end in ends]

    fuzz(make, read, seed=seed, count=count, seconds=20)


@pytest.mark.parametrize(("seed", "count"), EFFORTS)
@pytest.mark.parametrize(
    ("new", "damage"), [(True, change), (True, change_pickle), (False, change)]
)
def test_damaged_checkpoint_of_another_program_is_read_or_refused(
    new: bool, damage: Any, seed: int, count: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"

    def read(data: bytes, choose: random.Random) -> None:
        path.write_bytes(data)
        read_foreign(path)

    make = partial(damage, sound_checkpoint(path, new=new))
    assert fuzz(make, read, seed=seed, count=count).refused > count / 2
