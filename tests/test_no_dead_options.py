"""No dead options: a second legal value of every leaf of the schema changes something.

What counts: the resolved network, its first weights, what a few steps of training come to, the
files of the run and what they hold.
"""

import hashlib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from resnet_builder.builder import build, load_experiment, read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part
from resnet_builder.training.trainer import fit

BASE: dict[str, Any] = {
    "name": "base",
    "model": {
        "num_classes": 4,
        "stem": {"type": "conv3x3", "channels": 4},
        "block": "basic",
        "shortcut": "pad",
        "stages": [{"channels": 4, "blocks": 2}],
    },
    "data": {
        "dataset": {
            "type": "synthetic",
            "num_classes": 4,
            "image_size": 8,
            "train": 48,
            "test": 8,
        },
        "validation": 16,
    },
    "train": {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": {"type": "sgd", "lr": 0.1, "weight_decay": 0.1},
    },
    "run": {"device": "cpu", "precision": "fp32"},
}

ADAMW = "train.optimizer={type: adamw, lr: 0.01}"
MUON = "train.optimizer={type: muon, lr: 0.01, aux: {lr: 0.1, nesterov: true}}"
LINEAR_WARMUP = "train.schedule={type: constant, warmup: {type: linear, steps: 3}}"
CONSTANT_WARMUP = "train.schedule={type: constant, warmup: {type: constant, lr: 0.01, steps: 3}}"
MULTISTEP = "train.schedule={type: multistep, milestones: [1]}"
NORMALIZE = "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}"
RESIZING = "train.progressive_resizing=[{size: 4, fraction: 0.5}]"
WIDE = "data.dataset.image_size=[8, 12]"
PADDED = "data.preprocess=[{type: pad, size: 12}]"
STEP = "train.schedule={type: step, every: {steps: 3}}"
EXPONENTIAL = "train.schedule={type: exponential, gamma: 0.5}"
RESTARTS = "train.schedule={type: cosine_restarts, first_cycle: {steps: 3}}"
PLATEAU = "train.schedule={type: plateau, patience: 0, threshold: 0.9}"
EVALUATIONS = ["train.evaluate_every={steps: 1}", PLATEAU]
ONE_CYCLE = "train.schedule=one_cycle"
WEIGHTS = "model.weights=one.pth"

# Of each leaf: what both runs have in common, and last what changes the second one.
LEAVES: dict[str, list[str]] = {
    "name": ["name=other"],
    "model.num_classes": ["model.num_classes=5"],
    "model.in_channels": ["model.in_channels=1"],
    "model.image_size": ["model.image_size=9"],
    "model.stem": ["model.stem.channels=2"],
    "model.block": ["model.block=bottleneck"],
    "model.shortcut": ["model.shortcut=projection_all"],
    "model.stages.channels": ["model.stages.0.channels=6"],
    "model.stages.blocks": ["model.stages.0.blocks=1"],
    "model.stages.stride": ["model.stages.0.stride=2"],
    "model.stages.dilation": ["model.stages.0.dilation=2"],
    "model.stages.block": ["model.stages.0.block=bottleneck"],
    "model.stages.shortcut": ["model.stages.0.shortcut=projection_all"],
    "model.stages.attention": ["model.stages.0.attention={type: se, reduction: 2}"],
    "model.norm": ["model.norm={type: group_norm, groups: 2}"],
    "model.activation": ["model.activation=gelu"],
    "model.attention": ["model.attention=eca"],
    "model.antialias": ["model.stages.0.stride=2", "model.antialias=blur"],
    "model.drop_path": ["model.drop_path=0.5"],
    "model.init.type": ["model.init=default"],
    "model.init.mode": ["model.init={mode: fan_in}"],
    "model.init.std": ["model.init={type: normal}", "model.init.std=0.1"],
    "model.zero_init_residual": ["model.zero_init_residual=true"],
    "model.head": ["model.head.dropout=0.5"],
    "model.weights.path": [WEIGHTS, "model.weights=other.pth"],
    "model.weights.new_head": [WEIGHTS, "model.weights.new_head=true"],
    "model.weights.ema": [WEIGHTS, "model.weights.ema=true"],
    "data.dataset": ["data.dataset.seed=1"],
    "data.validation": ["data.validation=12"],
    "data.split_seed": ["data.split_seed=1"],
    "data.preprocess.type": ["data.preprocess=[{type: center_crop, size: 6}]"],
    "data.preprocess.size": [
        "data.preprocess=[{type: resize, size: 6}]",
        "data.preprocess=[{type: resize, size: 7}]",
    ],
    "data.preprocess.interpolation": [
        "data.preprocess=[{type: resize, size: 6}]",
        "data.preprocess=[{type: resize, size: 6, interpolation: bicubic}]",
    ],
    "data.preprocess.fit": [
        WIDE,
        "data.preprocess=[{type: resize, size: 6}]",
        "data.preprocess=[{type: resize, size: 6, fit: contain}]",
    ],
    "data.preprocess.crop_share": [
        "data.preprocess=[{type: resize, size: 6}]",
        "data.preprocess=[{type: resize, size: 6, crop_share: 0.8}]",
    ],
    "data.preprocess.fill": [PADDED, "data.preprocess=[{type: pad, size: 12, fill: 9}]"],
    "data.preprocess.mode": [PADDED, "data.preprocess=[{type: pad, size: 12, mode: edge}]"],
    "data.sampler": ["data.sampler=balanced"],
    "data.augment": ["data.augment=[horizontal_flip]"],
    "data.normalize.mean": [NORMALIZE, "data.normalize.mean=[0.4, 0.5, 0.5]"],
    "data.normalize.std": [NORMALIZE, "data.normalize.std=[0.3, 0.2, 0.2]"],
    "train.steps": ["train.steps=8", "train.steps=6"],
    "train.epochs": ["train.epochs=1"],
    "train.batch_size": ["train.batch_size=16"],
    "train.optimizer.type": [ADAMW],
    "train.optimizer.lr": ["train.optimizer.lr=0.2"],
    "train.optimizer.momentum": ["train.optimizer.momentum=0.5"],
    "train.optimizer.weight_decay": ["train.optimizer.weight_decay=0.2"],
    "train.optimizer.nesterov": ["train.optimizer.nesterov=true"],
    "train.optimizer.betas": [ADAMW, "train.optimizer.betas=[0.5, 0.9]"],
    "train.optimizer.eps": [ADAMW, "train.optimizer.eps=0.1"],
    "train.optimizer.aux.lr": [MUON, "train.optimizer.aux.lr=0.2"],
    "train.optimizer.aux.momentum": [MUON, "train.optimizer.aux.momentum=0.5"],
    "train.optimizer.aux.weight_decay": [MUON, "train.optimizer.aux.weight_decay=0.2"],
    "train.optimizer.aux.nesterov": [MUON, "train.optimizer.aux.nesterov=false"],
    "train.schedule.type": ["train.schedule=cosine"],
    "train.schedule.milestones": [
        "train.schedule={type: multistep, milestones: [1], unit: steps}",
        "train.schedule.milestones=[3]",
    ],
    "train.schedule.gamma": [MULTISTEP, "train.schedule.gamma=0.5"],
    "train.schedule.unit": [MULTISTEP, "train.schedule.unit=steps"],
    "train.schedule.every.steps": [STEP, "train.schedule.every={steps: 2}"],
    "train.schedule.every.epochs": [EXPONENTIAL, "train.schedule.every={epochs: 2}"],
    "train.schedule.first_cycle.steps": [RESTARTS, "train.schedule.first_cycle={steps: 2}"],
    "train.schedule.first_cycle.epochs": [RESTARTS, "train.schedule.first_cycle={epochs: 0.5}"],
    "train.schedule.cycle_multiplier": [
        "train.schedule={type: cosine_restarts, first_cycle: {steps: 2}}",
        "train.schedule.cycle_multiplier=2",
    ],
    "train.schedule.monitor": [
        *EVALUATIONS,
        "train.schedule.threshold=0",
        "train.schedule.monitor=val.top1",
    ],
    "train.schedule.factor": [*EVALUATIONS, "train.schedule.factor=0.5"],
    "train.schedule.patience": [*EVALUATIONS, "train.schedule.patience=1"],
    "train.schedule.threshold": [*EVALUATIONS, "train.schedule.threshold=0"],
    "train.schedule.cooldown": [*EVALUATIONS, "train.schedule.cooldown=2"],
    "train.schedule.min_lr": [*EVALUATIONS, "train.schedule.min_lr=0.05"],
    "train.schedule.end": ["train.schedule=linear", "train.schedule.end=0.05"],
    "train.schedule.pct_start": [ONE_CYCLE, "train.schedule.pct_start=0.6"],
    "train.schedule.anneal": [ONE_CYCLE, "train.schedule.anneal=linear"],
    "train.schedule.div_factor": [ONE_CYCLE, "train.schedule.div_factor=2.0"],
    "train.schedule.final_div_factor": [ONE_CYCLE, "train.schedule.final_div_factor=1.0"],
    "train.schedule.warmup.type": [
        LINEAR_WARMUP,
        "train.schedule.warmup={type: constant, lr: 0.01, steps: 3}",
    ],
    "train.schedule.warmup.lr": [CONSTANT_WARMUP, "train.schedule.warmup.lr=0.02"],
    "train.schedule.warmup.start": [LINEAR_WARMUP, "train.schedule.warmup.start=0.05"],
    "train.schedule.warmup.steps": [LINEAR_WARMUP, "train.schedule.warmup.steps=5"],
    "train.schedule.warmup.epochs": [LINEAR_WARMUP, "train.schedule.warmup.epochs=1"],
    "train.loss": ["train.loss.label_smoothing=0.1"],
    "train.seed": ["train.seed=1"],
    "train.no_weight_decay": ["train.no_weight_decay=[norm, bias]"],
    "train.freeze": [WEIGHTS, "train.freeze=[layer1]"],
    "train.head_lr_multiplier": ["train.head_lr_multiplier=2.0"],
    "train.ema.decay": ["train.ema={decay: 0.5}", "train.ema.decay=0.9"],
    "train.ema.every": ["train.ema={decay: 0.5}", "train.ema.every=2"],
    "train.clip_norm": ["train.clip_norm=0.01"],
    "train.progressive_resizing.size": [
        RESIZING,
        "train.progressive_resizing=[{size: 5, fraction: 0.5}]",
    ],
    "train.progressive_resizing.fraction": [
        RESIZING,
        "train.progressive_resizing=[{size: 4, fraction: 0.25}]",
    ],
    "train.accumulate": ["train.accumulate=2"],
    "train.evaluate_every.steps": ["train.evaluate_every.steps=1"],
    "train.evaluate_every.epochs": ["train.evaluate_every.epochs=2"],
    "train.checkpoint_every.steps": ["train.checkpoint_every={steps: 3}"],
    "train.checkpoint_every.epochs": ["train.checkpoint_every={epochs: 1}"],
    "train.checkpoint_every.seconds": ["train.checkpoint_every={seconds: 1e-6}"],
    "train.keep_checkpoints": ["train.checkpoint_every={steps: 1}", "train.keep_checkpoints=3"],
    "train.monitor": ["train.epochs=6", "train.monitor=val.loss"],
    "train.early_stop.patience": [
        "train.epochs=6",
        "train.early_stop={patience: 1, min_delta: 1.0}",
        "train.early_stop.patience=3",
    ],
    "train.early_stop.min_delta": [
        "train.epochs=6",
        "data.dataset.train=160",
        "train.optimizer={type: sgd, lr: 0.02}",
        "train.early_stop={patience: 2, min_delta: 1.0}",
        "train.early_stop.min_delta=0.0",
    ],
    "run.precision": ["run.precision=bf16"],
    "published.test_top1": ["published={test_top1: 0.5, source: x}", "published.test_top1=0.6"],
    "published.test_top5": ["published={test_top5: 0.5, source: x}", "published.test_top5=0.6"],
    "published.source": ["published={test_top1: 0.5, source: x}", "published.source=y"],
}

ALSO = {
    "model.num_classes": ("data.dataset.num_classes=5",),
    "model.in_channels": ("data.dataset.channels=1",),
    "model.image_size": ("data.dataset.image_size=9",),
}
"""What must change with a leaf for the second value to be legal."""

EXCEPTIONS = {
    "version": "there is only one",
    "plugins": "tests/test_plugins.py",
    "model.weights.adapt_channels": "the file is refused without it; tests/weights/test_convert.py",
    "train.optimizer.aux.type": "there is only one",
    "train.evaluate_every.seconds": "refused: no run would repeat another",
    "train.sync_norm": "it takes several processes: tests/training/test_distributed.py",
    "train.activation_checkpointing": "less memory, the same bits",
    "run.device": "tests have one device; tests/test_device.py",
    "run.compile": "a minute each; tests/training/test_runtime.py",
    "run.cpu_kernels": "less time; tests/training/test_runtime.py",
    "run.log": "files of other programs: tests/training/test_tracking.py",
    "run.threads": "the command line sets them; tests/training/test_runtime.py",
    "run.report": "a page; tests/reports/test_report.py",
    "expect.parameters": "a wrong one is refused: tests/test_checks.py",
    "expect.depth": "a wrong one is refused: tests/test_checks.py",
    "expect.macs": "a wrong one is refused: tests/test_checks.py",
}


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the path of every value that a spec can hold, list indices left out."""
    for name, field in model.model_fields.items():
        inner = [kind for kind in _models(field.annotation) if not issubclass(kind, Part)]
        if not inner:
            yield path + name
        for kind in inner:
            yield from leaves(kind, f"{path}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _models(argument)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of weights to start from."""
    folder = tmp_path_factory.mktemp("weights")
    first, second, third = (build(read_spec(BASE), seed=n).state_dict() for n in (1, 2, 3))
    torch.save({"model": first, "model_ema": second}, folder / "one.pth")
    torch.save(third, folder / "other.pth")
    return folder


@pytest.fixture(scope="module")
def without() -> dict[tuple[str, ...], dict[str, Any]]:
    """Outcomes without a second value, by what was set: most leaves change the same one."""
    return {}


def outcome(folder: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Build, train, and return all that a value could have changed."""
    experiment = load_experiment(BASE, overrides=overrides)
    spec = experiment.spec
    run = RunDirectory.create(folder)
    run.checkpoints.mkdir()
    run.publish(dump_spec(spec))
    network = build(experiment, seed=experiment.train.seed)
    result = fit(network, load_data(spec), experiment, run)
    seen = re.sub(
        r'"(seconds|images_per_second|data_share)": ?[-+.e0-9]+', "", run.metrics.read_text()
    )
    record = result.record.model_dump(
        exclude={"seconds", "images_per_second", "peak_memory", "spec_sha256"}
    )
    return {
        "weights": hashlib.sha256(
            b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
        ).hexdigest(),
        "network": str(network),
        "metrics": seen,
        "result": record,
        "checkpoints": sorted(path.name for path in run.checkpoints.iterdir()),
        "name": spec.name,
    }


def test_every_leaf_is_here_once() -> None:
    known = set(leaves(Spec))
    assert not set(LEAVES) & set(EXCEPTIONS)
    assert known == set(LEAVES) | set(EXCEPTIONS)


# Their values are compared with torch's or their files', one by one, by tests that take less time.
SLOW = ("train.schedule.", "train.optimizer.")
LEFT_TO_CI = ("data.", "train.early_stop.", "model.weights.")


def marks_of(leaf: str) -> list[pytest.MarkDecorator]:
    if leaf.startswith(SLOW):
        return [pytest.mark.slow]
    return [pytest.mark.ci] if leaf.startswith(LEFT_TO_CI) else []


@pytest.mark.parametrize(
    "leaf",
    [pytest.param(leaf, marks=marks_of(leaf)) for leaf in LEAVES],
)
def test_another_value_changes_something(
    leaf: str,
    tmp_path: Path,
    weights: Path,
    without: dict[tuple[str, ...], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(weights)
    *both, change = LEAVES[leaf]
    common = tuple(both)
    if common not in without:
        without[common] = outcome(tmp_path / "before", common)
    after = outcome(tmp_path / "after", (*common, *ALSO.get(leaf, ()), change))
    assert after != without[common]
