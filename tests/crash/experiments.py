"""Experiments of a second that between them have everything whose state must survive."""

import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.training.checkpoint import load_checkpoint
from resnet_builder.weights.file import read_tensors
from tests.crash.program import Child, End, Fault, Server, family, wait_until

CLASSES = 3

IMAGE_FOLDER = {
    "dataset": {"type": "image_folder", "path": "images"},
    "preprocess": [{"type": "resize", "size": 8}, {"type": "center_crop", "size": 8}],
}
MIXUP = {"type": "mixup", "alpha": 0.4}
EVERYTHING: dict[str, Any] = {
    "model": {"drop_path": 0.3, "head": {"type": "linear", "dropout": 0.3}},
    "train": {
        "optimizer": {"type": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 1e-3},
        "schedule": {"type": "cosine", "warmup": {"steps": 3}},
        "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
        "ema": {"decay": 0.9, "every": 2},
        "clip_norm": 1.0,
        "accumulate": 2,
        "no_weight_decay": ["norm", "bias"],
    },
    "data": {
        "validation": 20,
        "augment": [{"type": "random_crop", "padding": 1}, "horizontal_flip", MIXUP],
    },
    "run": {"precision": "bf16"},
}

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compiled": {"run": {"compile": True}},
    "early": {
        "train": {"early_stop": {"patience": 6}, "evaluate_every": {"steps": 4}},
        "data": {"validation": 20},
    },
    "one_cycle": {
        "train": {
            "optimizer": {"type": "adamw", "lr": 0.03},
            "schedule": {"type": "one_cycle"},
            "early_stop": {"patience": 2},
            "evaluate_every": {"steps": 2},
        },
        "data": {"validation": 20, "augment": [{"type": "random_crop", "padding": 1}]},
    },
    "plateau": {
        "train": {
            "optimizer": {"type": "adam", "lr": 0.03},
            "schedule": {"type": "plateau", "patience": 0, "threshold": 0.5, "cooldown": 1},
            "evaluate_every": {"steps": 2},
        },
        "data": {"validation": 20},
    },
    "muon": {
        "train": {
            "optimizer": {"type": "muon", "lr": 0.03, "aux": {"lr": 0.1}},
            "schedule": {"type": "linear"},
            "evaluate_every": {"steps": 4},
        },
        "data": {"validation": 20, "augment": [{"type": "alternating_flip"}]},
    },
    "held": {  # in memory
        "train": {"optimizer": {"type": "adamw", "lr": 0.01}, "clip_norm": 0.5},
        "data": {**IMAGE_FOLDER, "validation": 20, "augment": ["horizontal_flip"]},
    },
    "everything": EVERYTHING,
    "rare": {
        "train": {
            "loss": {"type": "focal", "class_weights": "balanced"},
            "accumulate": 2,
            "evaluate_every": {"steps": 4},
        },
        "data": {
            **IMAGE_FOLDER,
            "validation": 20,
            "sampler": "balanced",
            "augment": [{"type": "random_resized_crop", "size": 8}],
        },
    },
    "streamed": {  # decoded batch by batch, as each crop is of another part of the file
        **EVERYTHING,
        "data": {
            **IMAGE_FOLDER,
            "validation": 20,
            "augment": [{"type": "random_resized_crop", "size": 8}, "horizontal_flip", MIXUP],
        },
    },
}
"""Changes, by section, to the plain one: 12 epochs of 7 or 5 steps, saved every 3 steps."""


def describe(name: str, **train: Any) -> dict[str, Any]:
    """Return an experiment, with changes to its recipe."""
    changes = EXPERIMENTS[name]
    sizes = {"num_classes": CLASSES, "image_size": 8}
    return {
        "name": name,
        "model": {
            **sizes,
            "in_channels": 3,
            "stem": {"type": "conv3x3", "channels": 4},
            "block": "basic",
            "shortcut": "pad",
            "stages": [{"channels": 4, "blocks": 1}, {"channels": 8, "blocks": 1, "stride": 2}],
            **changes.get("model", {}),
        },
        "data": {
            "dataset": {"type": "synthetic", **sizes, "train": 84, "test": 16},
            **changes.get("data", {}),
        },
        "train": {
            "epochs": 12,
            "batch_size": 12,
            "optimizer": {"type": "sgd", "lr": 0.1},
            "checkpoint_every": {"steps": 3},
            **changes.get("train", {}),
            **train,
        },
        "run": {
            **{"device": "cpu", "precision": "fp32", "threads": 1, "report": False},
            **changes.get("run", {}),
        },
    }


def write_experiment(folder: Path, name: str, **train: Any) -> Path:
    """Write an experiment into a folder, and the images that it may need."""
    if "dataset" in EXPERIMENTS[name].get("data", {}):
        write_images(folder / "images")
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(describe(name, **train)), encoding="utf-8")
    return path


def write_images(root: Path) -> None:
    """Write images, larger than the network's input, whose class shows in their colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 84), ("test", 15)):
        for number in range(count):
            path = root / split / f"class-{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 200, (10, 10, 3), dtype=np.uint8)
            pixels[..., number % CLASSES] += 55
            Image.fromarray(pixels).save(path)


def train_line(spec: Path, run: Path, *more: object) -> tuple[object, ...]:
    """Return the command line that can be given again until the run is complete."""
    return ("train", spec, "--out", run, "--resume", "--data-dir", spec.parent, *more)


def outcome_of(path: Path) -> dict[str, Any]:
    """Return everything in a finished run that must not depend on when it was interrupted.

    Only times may: of ``result.json``, of the rows of metrics and of the last checkpoint.
    """
    run = RunDirectory(path)
    times = {"seconds", "images_per_second", "data_share", "peak_memory"}
    newest = max(run.checkpoints.glob("step-*.safetensors"))
    tensors, _ = read_tensors(newest)
    return {
        "best": run.best.read_bytes(),
        "last": run.last.read_bytes(),
        "data": run.data.read_bytes(),
        "spec": run.spec.read_bytes(),
        "newest": newest.name,
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "rows": [row.model_dump(exclude=times) for row in MetricsLog(run).read()],
    }


def assert_same_outcome(run: Path, expected: dict[str, Any]) -> None:
    """Compare a run with the outcome of another, and name only what differs."""
    found = outcome_of(run)
    assert found.keys() == expected.keys()
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing, f"other than those of the uninterrupted run: {', '.join(differing)}"


class Trial:
    """An experiment that is trained in a folder of its own, with faults and without.

    Attributes:
        server: Process that calls the program.
        folder: Folder of the spec and of all runs.
        spec: The spec.
        run: Run with faults. A test may give the trial another one.
    """

    def __init__(self, server: Server, folder: Path, name: str, **train: Any) -> None:
        self.server = server
        self.folder = folder
        self.spec = write_experiment(folder, name, **train)
        self.run = RunDirectory(folder / "run")

    def start(self, *more: object, faults: Sequence[Fault] = (), **how: Any) -> Child:
        """Train the run, from where it is."""
        line = train_line(self.spec, self.run.path, *more)
        return self.server.start(*line, folder=self.folder, faults=faults, **how)

    def train(self, *more: object, **how: Any) -> End:
        """Train the run, from where it is, and wait for the end."""
        return self.ended(self.start(*more, **how))

    @property
    def resume_command(self) -> str:
        """Command that a run prints when it is stopped."""
        words = ("--resume", str(self.run.path), "--data-dir", str(self.folder))
        return shlex.join(["resnet-build", "train", *words])

    def ended(self, child: Child) -> End:
        """Wait for the end of a call, after which no process and no lock is left."""
        end = child.wait()
        # Python's own tracker of resources outlives the call by an instant.
        wait_until(lambda: not family(child), 30)
        assert not self.run.is_locked
        assert "Traceback" not in end.stderr
        return end

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, each of which must be valid."""
        paths = sorted(self.run.checkpoints.glob("step-*"))
        return [load_checkpoint(path).step for path in paths]

    @cached_property
    def expected(self) -> dict[str, Any]:
        """Outcome of a run without faults."""
        whole = self.folder / "whole"
        end = self.server.call(*train_line(self.spec, whole), folder=self.folder)
        assert end.code == 0, end.stderr
        return outcome_of(whole)

    def assert_ends_as_without_faults(self) -> None:
        """Finish the run without faults, and compare it with one that had none."""
        end = self.train()
        assert end.code == 0, end.stderr
        assert_same_outcome(self.run.path, self.expected)
