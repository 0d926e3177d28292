"""Experiments of a second that between them have everything whose state must survive."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.weights.file import read_tensors

CLASSES = 3

SYNTHETIC = {"type": "synthetic", "num_classes": CLASSES, "image_size": 8, "train": 84, "test": 16}
PICTURES = {"type": "image_folder", "path": "pictures"}
FITTED = [{"type": "resize", "size": 8}, {"type": "center_crop", "size": 8}]

EVERYTHING: dict[str, Any] = {
    "optimizer": {"type": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 1e-3},
    "schedule": {"type": "cosine", "warmup": {"steps": 3}},
    "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
    "ema": {"decay": 0.9, "every": 2},
    "clip_norm": 1.0,
    "accumulate": 2,
    "no_weight_decay": ["norm", "bias"],
}

RANDOM_NETWORK = {"drop_path": 0.3, "head": {"type": "linear", "dropout": 0.3}}

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {
        "model": RANDOM_NETWORK,
        "train": {"ema": {"decay": 0.9}},
        "data": {"augment": [{"type": "mixup", "alpha": 0.4}]},
    },
    "parts": {
        "train": {"clip_norm": 0.5, "accumulate": 2, "optimizer": {"type": "adamw", "lr": 0.01}},
        "run": {"precision": "bf16"},
    },
    "compiled": {"run": {"compile": True}},
    "early": {
        "train": {"early_stop": {"patience": 6}, "evaluate_every": {"steps": 4}},
        "data": {"validation": 20},
    },
    "held": {
        "data": {"dataset": PICTURES, "preprocess": FITTED, "augment": ["horizontal_flip"]},
    },
    "streamed": {
        "data": {
            "dataset": PICTURES,
            "preprocess": FITTED,
            "augment": [{"type": "random_resized_crop", "size": 8}, "horizontal_flip"],
        },
    },
    "everything": {
        "model": RANDOM_NETWORK,
        "train": EVERYTHING,
        "data": {
            "validation": 20,
            "augment": [
                {"type": "random_crop", "padding": 1},
                "horizontal_flip",
                {"type": "mixup", "alpha": 0.4},
            ],
        },
        "run": {"precision": "bf16"},
    },
    "everything-streamed": {
        "model": RANDOM_NETWORK,
        "train": EVERYTHING,
        "data": {
            "dataset": PICTURES,
            "preprocess": FITTED,
            "validation": 20,
            "augment": [
                {"type": "random_resized_crop", "size": 8},
                "horizontal_flip",
                {"type": "mixup", "alpha": 0.4},
            ],
        },
        "run": {"precision": "bf16"},
    },
}
"""Changes, by section, to the plain one: 12 epochs of 7 or 5 steps, saved every 3 steps."""


def describe(name: str, **train: Any) -> dict[str, Any]:
    """Return an experiment, with changes to its recipe."""
    changes = EXPERIMENTS[name]
    return {
        "name": name,
        "model": {
            "num_classes": CLASSES,
            "image_size": 8,
            "in_channels": 3,
            "stem": {"type": "conv3x3", "channels": 4},
            "block": "basic",
            "shortcut": "pad",
            "stages": [{"channels": 4, "blocks": 1}, {"channels": 8, "blocks": 1, "stride": 2}],
            **changes.get("model", {}),
        },
        "data": {"dataset": SYNTHETIC, **changes.get("data", {})},
        "train": {
            "epochs": 12,
            "batch_size": 12,
            "optimizer": {"type": "sgd", "lr": 0.1},
            "checkpoint_every": {"steps": 3},
            **changes.get("train", {}),
            **train,
        },
        "run": {"device": "cpu", "precision": "fp32", "threads": 1, **changes.get("run", {})},
    }


def write_experiment(folder: Path, name: str, **train: Any) -> Path:
    """Write an experiment into a folder, and the pictures that it may need."""
    if "dataset" in EXPERIMENTS[name].get("data", {}):
        write_pictures(folder / "pictures")
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(describe(name, **train)), encoding="utf-8")
    return path


def write_pictures(root: Path, *, train: int = 84, test: int = 15) -> None:
    """Draw pictures, larger than the network is fed, whose class shows in their colour."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            path = root / split / f"class-{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 200, (10, 10, 3), dtype=np.uint8)
            pixels[..., number % CLASSES] += 55
            Image.fromarray(pixels).save(path)


def train_line(spec: Path, run: Path, *more: object) -> tuple[object, ...]:
    """Return the command line that can be given again until the run is complete."""
    return ("train", spec, "--out", run, "--resume", "--data-dir", spec.parent, *more)


def left(path: Path) -> dict[str, Any]:
    """Return everything in a finished run that must not depend on when it was interrupted.

    Only times may: of ``result.json``, of the rows of metrics and of the last checkpoint.
    """
    run = RunDirectory(path)
    times = {"seconds", "images_per_second"}
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
