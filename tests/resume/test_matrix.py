"""Resume matrix: a key of the spec changed on an interrupted and on a finished run.

``REGENERATE_GOLDEN=1 pytest -m "ci or slow" tests/resume/test_matrix.py -n 0`` writes the table in
docs/reliability.md again: read the difference.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from resnet_builder.runs.directory import RunDirectory
from tests.cli.experiments import call
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.resume.runs import contents, resume, stopping_after

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
START, END = "<!-- table: resume -->\n", "<!-- end -->"
HEADER = """\
| changed on resume | interrupted | with both flags | finished | with both flags | message |
|---|---|---|---|---|---|
"""
FLAGS = ("--allow-spec-change", "--allow-inexact")
KEYS = (
    "name=other",
    "model.activation=gelu",
    "model.stages.0.blocks=2",
    "model.drop_path=0.1",
    "model.zero_init_residual=true",
    "data.dataset.seed=1",
    "data.validation=10",
    "data.split_seed=1",
    "data.augment=[horizontal_flip]",
    "data.normalize={mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}",
    "train.epochs=4",
    "train.epochs=1",
    "train.batch_size=6",
    "train.batch_size=4096",
    "train.accumulate=2",
    "train.optimizer.lr=0.2",
    "train.optimizer={type: adamw, lr: 0.01}",
    "train.schedule=cosine",
    "train.ema={decay: 0.9}",
    "train.clip_norm=1.0",
    "train.loss={type: cross_entropy, label_smoothing: 0.1}",
    "train.seed=1",
    "train.evaluate_every={steps: 2}",
    "train.early_stop={patience: 1}",
    "train.checkpoint_every={steps: 2}",
    "train.keep_checkpoints=5",
    "train.activation_checkpointing=all",
    "run.precision=bf16",
    "run.threads=2",
    "run.device=cuda",
    "published={test_top1: 0.5, source: nobody}",
)
LEFT_TO_CI = {
    "model.activation=gelu",
    "data.validation=10",
    "train.epochs=4",
    "train.epochs=1",
    "train.optimizer.lr=0.2",
    "train.seed=1",
    "run.precision=bf16",
    "run.threads=2",
    "published={test_top1: 0.5, source: nobody}",
}


@dataclass(frozen=True)
class Runs:
    """One experiment, interrupted after seven of its ten steps, and finished."""

    interrupted: Path
    finished: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("matrix")
    spec = write_experiment(folder, "early", epochs=2)
    with stopping_after(7):
        assert call(*train_line(spec, folder / "interrupted")).exit_code == 130
    assert call(*train_line(spec, folder / "finished")).exit_code == 0
    return Runs(folder / "interrupted", folder / "finished")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(key, marks=pytest.mark.ci if key in LEFT_TO_CI else pytest.mark.slow)
        for key in KEYS
    ],
)
def test_change_is_harmless_refused_or_allowed_by_a_flag(
    change: str, runs: Runs, tmp_path: Path
) -> None:
    """A refusal names the flag, if there is one; the run's own line finishes it in the end."""
    if change == "run.device=cuda" and torch.cuda.is_available():
        pytest.skip("it is refused where there is no such device")
    cells, messages = [], []
    for path in (runs.interrupted, runs.finished):
        for flags in ((), FLAGS):
            run = RunDirectory(tmp_path / f"{path.name}-{len(flags)}")
            shutil.copytree(path, run.path)
            before = contents(run)
            result = resume(run, "--set", change, *flags)
            assert "Traceback" not in result.stderr
            changed = contents(run) != before
            complete = "is already complete\n" in result.stderr
            assert changed == (result.exit_code == 0 and not complete), result.stderr
            message = result.stderr.partition("error: ")[2].replace(str(run.path), "RUN").strip()
            asks = any(flag in message for flag in FLAGS)
            if flags:
                assert not asks or "already complete" in message
            else:
                messages.append(message)
            cells.append(
                f"refused ({result.exit_code})"
                if result.exit_code
                else "complete"
                if complete
                else "trains on"
                if run.earlier_result(10).exists()
                else "resumes"
            )
            own = resume(run)
            assert own.exit_code == 0, own.stderr
            if complete or result.exit_code:
                assert_same_outcome(run.path, outcome_of(runs.finished))
    text = messages[0].rpartition("\n")[2]  # the advice
    assert_row(change, f"| `{change}` | {' | '.join(cells)} | {text} |\n")


def assert_row(change: str, row: str) -> None:
    """Compare a row of the table with the documentation, or write it there."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    table, _, after = rest.partition(END)
    rows = {line.split(" | ")[0]: line for line in table.splitlines(keepends=True)[2:]}
    key = row.split(" | ")[0]
    if os.environ.get("REGENERATE_GOLDEN"):
        rows[key] = row
        known = [rows[name] for name in (f"| `{change}`" for change in KEYS) if name in rows]
        new = before + START + HEADER + "".join(known) + END + after
        PAGE.write_text(new, encoding="utf-8")
    else:
        assert rows[key] == row
