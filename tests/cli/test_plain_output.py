"""Plain lines, the same in pipes, logs and narrow terminals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from resnet_builder.cli.console import table
from resnet_builder.cli.main import main
from tests.cli.experiments import call, write_tiny

NARROW = {"COLUMNS": "40", "LINES": "10", "NO_COLOR": "1"}
COLOURED = {"COLUMNS": "40", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}

TRAINING = """\
run directory: run
training from step 0 of 12, 4 an epoch, on DEVICE
epoch 1, step 4: val FIGURES
epoch 2, step 8: val FIGURES
epoch 3, step 12: val FIGURES
epoch N, step N: test FIGURES
 ours published difference
test top-1 N 50.00 % N
published in nobody
weights of step N of 12: best on validation (top-1 N)
N s of training, N images/s
next:
 resnet-build evaluate run
 resnet-build predict run IMAGE...
 resnet-build export run -o FILE.onnx
 resnet-build publish run --to DIR
"""

COMMANDS = (
    ("summary", "resnet20"),
    ("diff", "resnet20", "resnet32"),
    ("validate", "resnet20", "resnet1"),
    ("list", "recipes"),
    ("list", "runs", "RUNS"),
    ("evaluate", "RUN"),
)


def masked(text: str) -> str:
    """Leave out whatever differs between machines."""
    for pattern, instead in (
        (r"on .*, fp32, \d+ threads", "on DEVICE"),
        (r"loss [\d.]+, top-1 [\d.]+ %(, the best so far)?", "FIGURES"),
        (r"epoch [\d.]+, step \d+: test", "epoch N, step N: test"),
        (r"(top-[15]) +[\d.]+ %", r"\1 N"),
        (r" [+-][\d.]+$", " N"),
        (r"step \d+ of 12: best", "step N of 12: best"),
        (r"[\d,.]+ (s of training|images/s)", r"N \1"),
        (r" +", " "),
    ):
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


@pytest.mark.slow
def test_training_writes_plain_lines_to_a_pipe(folder: Path) -> None:
    """In a process of its own, both streams of which are a pipe, as in ``train 2>&1 | cat``."""
    write_tiny(folder)
    done = subprocess.run(
        [sys.executable, "-m", "resnet_builder", "train", "tiny.yaml", "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, **COLOURED},
    )
    assert masked(done.stdout) == TRAINING


def test_table_is_aligned_whatever_the_script_of_its_names() -> None:
    """A terminal gives two columns to a wide letter, and none to an accent of its own."""
    rows = [("cat", "1"), ("中文", "20"), ("e\u0301cole", "3")]
    assert table(("class", "images"), rows) == [
        "class  images",
        "cat         1",
        "中文       20",
        "e\u0301cole       3",
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_results_are_the_same_on_any_terminal(
    command: tuple[str, ...], finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"RUN": str(finished_run), "RUNS": str(finished_run.parent)}
    line = [named.get(argument, argument) for argument in command]
    plain = call(*line).output
    assert plain
    assert not set("\x1b\r\b") & set(plain)
    for context in (NARROW, COLOURED):
        with monkeypatch.context() as patched:
            for variable, value in context.items():
                patched.setenv(variable, value)
            assert CliRunner().invoke(main, line, color=True).output == plain
