"""Several processes on the command line; see also ``tests/crash/test_distributed.py``."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import EnvRecord
from resnet_builder.training import distributed
from resnet_builder.training.distributed import DistributedContext
from tests.cli.experiments import call, write_tiny
from tests.training.teams import environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Mute(DistributedContext):
    """The second of two processes, after the main process has reported."""

    rank: int = 1
    world_size: int = 2

    def may_report(self, exit_code: int) -> bool:
        return False


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def init_process_group(ctx: DistributedContext) -> Iterator[DistributedContext]:
        assert ctx == DistributedContext(1, 2, 1, 2)
        yield Mute()

    for name, value in environment(1, 2, 29_500).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "init_process_group", init_process_group)


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    "arguments",
    [
        ("tiny.yaml", "--out", "run", "--set", "train.batch_size=13"),
        ("tiny.yaml", "--out", "run", "--set", "train.learning_rate=1"),
        ("--resume", "nowhere"),
    ],
)
def test_process_that_may_not_report_is_silent(arguments: tuple[str, ...], folder: Path) -> None:
    write_tiny(folder)
    result = call("train", *arguments)
    assert (result.exit_code, result.output) == (2, "")


@pytest.mark.usefixtures("second_of_two")
def test_nproc_must_agree_with_torchrun(tmp_path: Path) -> None:
    result = call("train", write_tiny(tmp_path), "--nproc", 3)
    assert result.exit_code == 2
    message = "error: --nproc 3: this is already one of 2 processes; leave it out\n"
    assert result.stderr == message


@pytest.mark.slow
def test_torchrun_trains(tmp_path: Path) -> None:
    line = ["train", write_tiny(tmp_path), "--out", "run", "--set", "train.epochs=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, "-m", "resnet_builder", *map(str, line)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("test top-1") == 1
    assert ended.stderr.count("step 4: test loss") == 1
    assert EnvRecord.read(RunDirectory(tmp_path / "run").env).runtime.world_size == 2
