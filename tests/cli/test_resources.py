"""Estimates of memory and disk, and exhaustion, on the command line."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from resnet_builder import memory
from resnet_builder.weights.file import read_tensors
from tests.cli.experiments import call, write_tiny

GIB = 2**30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says how much memory is free."""

    def tell(count: int) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda device: count)

    return tell


def test_a_line_tells_what_training_takes(free: Any) -> None:
    free(2**40)
    result = call("validate", "resnet20", "--set", "run.precision=fp32")
    assert result.exit_code == 0
    sizes = "439.4 MiB of memory (201.5 MiB activations), 14.5 MiB of disk"
    assert result.stdout.splitlines()[1] == f"resnet20: training takes about {sizes}"


FORTY_GIB = ("--set", "train.batch_size=4096", "--set", "run.precision=fp32")
"""With these, ResNet-110 is legal in every field, and takes more than 40 GiB in all."""


def test_validate_warns_of_too_little_memory_and_names_a_batch_that_fits(free: Any) -> None:
    free(16 * GIB)
    result = call("validate", "resnet20", "resnet110", *FORTY_GIB)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == (
        "resnet110: training may not fit into memory: it is estimated to take 44.1 GiB (32.5 GiB "
        "of activations for 4,096 images at a time, 146.5 MiB of data), and 16.0 GiB are free; "
        "what fits is train.batch_size=1175, or, with the same batches, train.accumulate=4"
    )


def test_train_warns_of_too_little_memory_and_trains(folder: Path, free: Any) -> None:
    free(2**20)
    result = call("train", write_tiny(folder), "--set", "train.epochs=1", "--out", "run")
    assert result.exit_code == 0
    assert "\nwarning: training may not fit into memory: it is estimated" in result.stderr
    assert (folder / "run" / "result.json").is_file()


def test_checkpoints_are_as_large_as_was_estimated(folder: Path, finished_run: Path) -> None:
    spec = json.loads(call("validate", write_tiny(folder), "--json").stdout)["specs"][0]
    newest = max((finished_run / "checkpoints").iterdir())
    checkpoint = sum(tensor.nbytes for tensor in read_tensors(newest)[0].values())
    weights = sum(t.nbytes for t in read_tensors(finished_run / "last.safetensors")[0].values())
    assert spec["disk_bytes"] == 4 * checkpoint + 2 * weights


def test_disk_without_room_for_two_checkpoints_is_7(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(9, 9, 5_000))
    result = call("train", write_tiny(folder))
    assert result.exit_code == 7
    assert "no room for two checkpoints" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]


LIMITED = """
import re, resource, sys
from pathlib import Path
import torch, torchvision
from resnet_builder.cli.main import main
held = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 2**29, held + 2**29))
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere addresses are not limited")
@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        pytest.param(
            {"model.stages.1.channels": 2**62, "train.batch_size": 10**9},
            ("is out of range", "allowed: 1 to 16384", "allowed: 1 to 1048576"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {f"model.stages.{stage}.blocks": 1000 for stage in range(3)},
            ("3000 blocks in all are more than 2000",),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_numbers_beyond_their_bounds_are_refused_in_little_memory(
    changes: dict[str, int], messages: tuple[str, ...], folder: Path
) -> None:
    """Half a GiB of addresses, beside what torch takes by itself, is enough to say no."""
    flags = [f"--set={path}={value}" for path, value in changes.items()]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train", "resnet20", *flags], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert all(message in done.stderr for message in messages)
    assert not list(folder.iterdir())


OUT_OF_MEMORY = """
import resource, sys
import torch
from resnet_builder.cli.main import main
from resnet_builder.data.splits import load_data
from resnet_builder.training import session

def load(*args, **kwargs):
    splits = load_data(*args, **kwargs)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
    return splits

session.load_data = load
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere addresses are not limited")
def test_memory_that_runs_out_is_6_with_a_batch_that_takes_less(folder: Path) -> None:
    """The limit is set once the images are loaded: 100 MiB are a map of 800 images."""
    spec = write_tiny(folder)
    changes = {
        "data.dataset": "{type: synthetic, num_classes: 4, train: 2100, test: 8}",
        "model.stem.channels": "32",
        "model.shortcut": "projection",
        "train.batch_size": "1024",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-c", OUT_OF_MEMORY, "train", spec),
            *(f"--set={path}={value}" for path, value in changes.items()),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6, done.stderr
    assert "error: out of memory in training: it is estimated to take" in done.stderr
    assert "of activations for 1,024 images at a time" in done.stderr
    assert "what fits is train.batch_size=512, or, with" in done.stderr
    assert "Traceback" not in done.stderr
