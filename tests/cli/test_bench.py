"""``resnet-build bench``."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import torch

from resnet_builder import bench
from tests.cli.experiments import call, write_tiny

SHOWN = r"""tiny: \d+ images of 3 x 8 x 8 a step
on CPU \(.*\)

 +images/s +quartiles +seconds a step
train +N +N to N +N
baseline +N +N to N +N
speed-up +N

baseline: fp32, torch's own memory layout, not compiled, weights updated tensor by tensor, \
the loss read after every step, batches ready in memory

recipe: 12 steps of 32 images take \d:\d\d:\d\d(, at the rate of smaller ones)?, \
evaluations left out
memory: at most N MiB held, N MiB of it by steps

runtime *
device +cpu
precision +fp32
""".replace("\\\n", "").replace("N", r"[\d.,e-]+")


@pytest.fixture
def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the command line that measures the experiment, whether or not the machine is busy."""
    monkeypatch.setattr(bench, "cpu_seconds", lambda: None)
    return ["bench", write_tiny(folder), "--seconds", "0.1"]


def test_figures_and_settings_are_shown(measured: list[object]) -> None:
    result = call(*measured)
    assert result.exit_code == 0, result.stderr
    assert re.match(SHOWN, result.stdout), result.stdout


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="nobody counts cores")
def test_figures_of_a_busy_machine_are_marked(
    measured: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(bench, "cpu_seconds", lambda: (cores * (time.perf_counter() - begun), 0.0))
    result = call(*measured)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[3] == (
        f"busy machine: other processes used {cores:.1f} processor cores meanwhile. The figures are"
    )
    assert lines[4] == "no measure of this machine; run the command again when it is quiet."
    assert [line.split()[1][0] for line in lines[7:10]] == ["~", "~", "~"]
    assert "recipe: 12 steps; how long they take is not known, as the machine is busy" in lines


@pytest.mark.ci
def test_nothing_is_left_behind(measured: list[object], folder: Path) -> None:
    precision = torch.get_float32_matmul_precision()
    call(*measured, "--json")
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.ci
def test_smaller_steps_are_measured_where_the_recipe_s_take_too_long(
    measured: list[object],
) -> None:
    result = call(*measured, "--set", "train.batch_size=128", "--set", "run.threads=1", "--json")
    found = json.loads(result.stdout)
    assert found["recipe"]["batch_size"] == 128
    assert found["batch_size"] in {2, 4, 8, 16, 32, 64, 128}
    seconds = found["recipe"]["steps"] * 128 / found["train"]["images_per_second"]
    assert found["recipe"]["seconds"] == pytest.approx(seconds)


@pytest.mark.ci
def test_recipe_of_images_that_nobody_has_counted_has_no_length(measured: list[object]) -> None:
    dataset = "data.dataset={type: image_folder, path: nowhere}"
    sizes = ("--set", "model.image_size=8", "--set", "data.validation=0")
    result = call(*measured, "--set", dataset, *sizes)
    assert result.exit_code == 0, result.stderr
    length = r"^recipe: 3 epochs take .*\d for each 1,000,000 training"
    assert re.search(length, result.stdout, re.M)


def test_spec_without_a_recipe_is_refused(folder: Path) -> None:
    (folder / "bare.yaml").write_text(
        "extends: resnet20\ntrain: null\npublished: null\n", encoding="utf-8"
    )
    result = call("bench", "bare.yaml")
    assert result.exit_code == 2
    assert result.stderr.endswith("a spec to train needs `data` and `train`\n")
