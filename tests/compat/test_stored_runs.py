"""Runs as earlier forms of their files left them: every release goes on with them.

Each directory holds one that was stopped after step 10 of 12, and is never changed or removed. A
new form of a checkpoint, of weights or of a record adds a directory, written by the release that
first has it.
"""

import shutil
from pathlib import Path

import pytest
import torch

from resnet_builder.runs.checkpoint import checkpoint_path, load_checkpoint
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.metrics import MetricsLog
from resnet_builder.runs.records import ResultRecord
from resnet_builder.trained import load_model
from tests.cli.experiments import call

RUNS = Path(__file__).parent / "runs"
NAMES = sorted(path.name for path in RUNS.iterdir())

LOGITS = [0.370558, -0.103303, 0.283787]
"""Of the stored weights, for an image whose pixels rise from -1 to 1."""


def test_no_stored_run_is_lost() -> None:
    assert NAMES == ["schema-1"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"row69-{name}")
def test_stored_run_is_gone_on_with(name: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(RUNS / name, run.path)
    before = MetricsLog(run).read()
    result = call("train", "--resume", run.path)
    assert result.exit_code == 0, result.stderr
    assert "training from step 10 of 12" in result.stderr
    rows = MetricsLog(run).read()
    assert rows[: len(before)] == before
    assert [row.step for row in rows[len(before) :] if row.event == "validation"] == [12]
    assert ResultRecord.read(run.result).steps == 12


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"row69-{name}")
def test_stored_checkpoint_is_read(name: str) -> None:
    checkpoint = load_checkpoint(checkpoint_path(RunDirectory(RUNS / name), 10))
    assert checkpoint.step == checkpoint.state["counters"]["step"] == 10
    assert {key.split("/")[0] for key in checkpoint.tensors} == {"model", "ema", "best", "optim"}
    assert checkpoint.tensors["model/fc.weight"].shape == (3, 4)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"row69-{name}")
def test_stored_weights_are_used(name: str) -> None:
    trained = load_model(RUNS / name)
    assert trained.classes == ("class_0", "class_1", "class_2")
    assert trained.header.step == 8
    image = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    with torch.no_grad():
        assert trained.network(image)[0].tolist() == pytest.approx(LOGITS, abs=1e-4)
