"""Random valid specs: ``validate`` refuses those, and only those, that three steps cannot train."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.blocks import ATTENTIONS, BLOCKS, NORMS, SHORTCUTS
from resnet_builder.builder import build, build_on_meta, check_source, read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.dump import dump_spec
from resnet_builder.training.trainer import fit
from tests.cli.experiments import call

SIDE, STEPS = 16, 3


def draw_spec(choose: random.Random) -> tuple[dict[str, Any], int]:
    """Draw a spec that is as small as one can be, and a number of processes."""
    processes, accumulate = choose.choice((1, 2)), choose.choice((1, 1, 2))
    norm = choose.choice((*NORMS.names(), "batch_norm"))
    attention = choose.choice(ATTENTIONS.names())
    block = choose.choice(BLOCKS.names())
    stages = [
        {
            "channels": 4,
            "blocks": choose.choice((1, 3)),
            "stride": choose.choice((1, 2, 2, 4)),
            "dilation": choose.choice((1, 1, 1, 2, 9)),
        }
        for _ in range(choose.randint(1, 4))
    ]
    stem = {"type": choose.choice(("conv3x3", "conv7x7_maxpool", "deep", "conv")), "channels": 4}
    if stem["type"] == "conv":
        kernel_size, stride = choose.choice(((5, 1), (5, 2), (2, 2), (4, 4)))
        max_pool = choose.random() < 0.5
        stem |= {"kernel_size": kernel_size, "stride": stride, "max_pool": max_pool}
    sizes = choose.choice(((), (), (4,), (8, 12), (1, 8)))
    model = {
        "num_classes": 3,
        "stem": stem,
        "block": block,
        "shortcut": choose.choice(SHORTCUTS.names()),
        "norm": {"type": norm, "groups": choose.choice((2, 4))} if norm == "group_norm" else norm,
        "attention": {"type": "se", "reduction": 4} if attention == "se" else attention,
        "stages": stages,
    }
    train = {
        "steps": STEPS,
        "batch_size": choose.randint(1, 4) * accumulate * processes,
        "accumulate": accumulate,
        "optimizer": {"type": "sgd", "lr": 0.01},
        "progressive_resizing": [{"size": size, "fraction": 0.34} for size in sizes],
    }
    run = {"device": "cpu", "precision": "fp32", "cpu_kernels": choose.random() < 0.5}
    size = choose.choice((SIDE, SIDE, SIDE, [SIDE, 23], [20, SIDE]))
    data = {"dataset": {"type": "synthetic", "num_classes": 3, "image_size": size, "train": 48}}
    return {"name": "drawn", "model": model, "data": data, "train": train, "run": run}, processes


def drawn_specs(seed: int, count: int) -> list[tuple[dict[str, Any], int]]:
    """Draw specs until so many are sound, but for what only a training step shows."""
    choose, found = random.Random(seed), list[tuple[dict[str, Any], int]]()
    while len(found) < count:
        spec, processes = draw_spec(choose)
        if not check_source(spec).problems:
            found.append((spec, processes))
    return found


def can_be_trained(spec: dict[str, Any], processes: int, folder: Path) -> bool:
    """Train the share of one process, without any check before it."""
    train = {**spec["train"], "batch_size": spec["train"]["batch_size"] // processes}
    resolved = read_spec({**spec, "train": train})
    experiment = Experiment(resolved, build_on_meta(resolved.model))
    run = RunDirectory.create(folder)
    run.checkpoints.mkdir()
    run.publish(dump_spec(resolved))
    splits = replace(load_data(resolved), validation=None)
    try:
        fit(build(resolved, seed=0), splits, experiment, run)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "count", [pytest.param(12, marks=pytest.mark.ci), pytest.param(60, marks=pytest.mark.slow)]
)
def test_validate_refuses_what_cannot_be_trained_and_nothing_else(
    count: int, tmp_path: Path
) -> None:
    outcomes = []
    for number, (spec, processes) in enumerate(drawn_specs(seed=27, count=count)):
        problems = check_source(spec, with_forward=True, processes=processes).problems
        trained = can_be_trained(spec, processes, tmp_path / str(number))
        assert trained == (not problems), (spec, processes, [str(one) for one in problems])
        outcomes.append(trained)
    assert count / 12 < outcomes.count(False) < count / 2


@pytest.mark.slow
@pytest.mark.parametrize("is_sound", [True, False])
def test_two_processes_agree_with_validate(is_sound: bool, tmp_path: Path) -> None:
    def sound(spec: dict[str, Any]) -> bool:
        return not check_source(spec, with_forward=True, processes=2).problems

    drawn = (spec for spec, processes in drawn_specs(seed=27, count=20) if processes == 2)
    spec = next(one for one in drawn if sound(one) == is_sound)
    path, out = tmp_path / "drawn.yaml", tmp_path / "run"
    path.write_text(dump_spec(read_spec(spec)))
    validated = call("validate", path, "--nproc", 2)
    trained = call("train", path, "--nproc", 2, "--out", out)
    assert validated.exit_code == trained.exit_code == (0 if is_sound else 2)
    assert out.exists() is is_sound
