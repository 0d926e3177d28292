"""Lines and bars of a training."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.live import Live

from resnet_builder.cli.progress import Lines, Screen, display
from resnet_builder.runs.records import ResultRecord, RuntimeConfig
from resnet_builder.training.callbacks import Progress, TrainStart
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.result import Result

GOLDEN = Path(__file__).parents[1] / "runs" / "golden"
CHOICES = RuntimeConfig(
    device="cpu",
    precision="fp32",
    memory_format="contiguous",
    compile=False,
    fused=True,
    threads=2,
    world_size=1,
)
START = TrainStart(
    step=0, total_steps=1000, steps_per_epoch=100, device="a computer", runtime=CHOICES
)
PROGRESS = Progress(
    step=150,
    total_steps=1000,
    epoch=1.5,
    lr=0.1,
    loss=0.5,
    top1=0.875,
    images_per_second=1234.0,
)
RESULT = ResultRecord.read(GOLDEN / "result.json").model_copy(update={"steps": 950})
EVALUATION = Metrics(
    loss=0.25,
    top1=0.9,
    top5=None,
    predictions=torch.zeros(10, dtype=torch.int64),
    labels=torch.zeros(10, dtype=torch.int64),
    num_classes=2,
)


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_few() -> None:
    lines: list[str] = []
    clock = Clock()
    shown = Lines(lines.append, clock=clock)
    shown.on_train_start(START)
    for second in range(25):
        clock.now = 100.0 + second
        shown.on_progress(replace(PROGRESS, step=10 * (second + 1)))
    shown.on_evaluate(150, "val", EVALUATION, is_best=True)
    shown.on_warning("not saved")
    assert lines == [
        "training from step 0 of 1,000, 100 an epoch, on a computer, fp32, 2 threads",
        "step 110 of 1,000: loss 0.5000, top-1 87.50 %, lr 0.1, 1,234 images/s, 0:01:21 left",
        "step 210 of 1,000: loss 0.5000, top-1 87.50 %, lr 0.1, 1,234 images/s, 0:01:15 left",
        "epoch 1.5, step 150: val loss 0.2500, top-1 90.00 %, the best so far",
        "warning: not saved",
    ]


def test_slow_work_is_shown_to_its_end_and_quick_work_is_not() -> None:
    lines: list[str] = []
    clock = Clock()
    shown = Lines(lines.append, clock=clock)
    for number in range(1, 6):
        shown.report("quick", number, 5)
    for second in range(13):
        clock.now = 100.0 + second
        shown.report("decoding", second, 12)
        shown.report("scanning", second, 0)
    shown.report("decoding", 1, 12)  # of another split
    assert lines == ["decoding: 83 %", "scanning: 10", "decoding: 100 %"]


def draw(width: int) -> str:
    """Draw a training on a terminal and return all that was written."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        screen = Screen(live)
        screen.report("downloading x", 1, 4)
        screen.on_train_start(START)
        screen.on_progress(PROGRESS)
        screen.on_evaluate(150, "val", EVALUATION, is_best=True)
        screen.on_warning("\x1b[2J[red]careful")
    return stream.getvalue()


def plain(text: str) -> list[str]:
    """Return the lines that were drawn, without colours; each redrawing starts new ones."""
    drawn = re.sub(r"\r|\x1b\[\d*[AK]", "\n", text)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).split("\n")


@pytest.mark.parametrize("width", [40, 80])
def test_screen_fits_the_terminal(width: int) -> None:
    lines = plain(draw(width))
    assert len([line for line in lines if "━" in line]) >= 5
    assert all(len(line) <= width for line in lines)
    text = re.sub(" +", " ", " ".join(lines))
    for shown in (
        "downloading x",
        "epoch 2/10",
        "150/1,000",
        "loss 0.5000",
        "epoch 1.5, step 150: val loss 0.2500, top-1 90.00 %, the best so far",
        "warning: \\x1b[2J[red]careful",
    ):
        assert shown in text


EARLY = "stopped early after step 950 of 1,000: validation top-1 did not rise any more"


@pytest.mark.parametrize(("total", "said"), [(950, []), (1000, [EARLY])], ids=["all", "early"])
def test_bars_end_at_what_was_done(total: int, said: list[str]) -> None:
    """The last epoch has 50 steps."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        screen = Screen(live)
        screen.on_train_start(replace(START, total_steps=total))
        screen.on_progress(replace(PROGRESS, step=950, total_steps=total))
        screen.on_evaluate(400, "test", EVALUATION, is_best=False)
        ending = {"planned_steps": total, "early_stopped": total > RESULT.steps}
        screen.on_train_end(Result(RESULT.model_copy(update=ending), None))
    lines = plain(stream.getvalue())
    bars = [line for line in lines if "━" in line]
    assert [line.split()[-1] for line in bars[-2:]] == ["50/50", "950/950"]
    assert [line for line in lines if line.startswith("stopped")] == said


class Broken(io.StringIO):
    """A terminal that nobody reads any more."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_training_goes_on_when_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    monkeypatch.setenv("TERM", "xterm")
    with display() as shown:
        assert isinstance(shown, Screen)
        shown.on_train_start(START)
        shown.on_progress(PROGRESS)


@pytest.mark.parametrize(
    ("stream", "terminal"), [(Broken(), "dumb"), (io.StringIO(), "xterm"), (None, "xterm")]
)
def test_dumb_terminal_and_no_terminal_get_lines(
    stream: io.StringIO | None, terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", terminal)
    with display() as shown:
        assert isinstance(shown, Lines)
