"""Notebooks: progress of a training, and a run at a glance, as HTML of Jupyter's output cells."""

import importlib
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from resnet_builder.reports.charts import STYLE, Mark, Series, line_chart
from resnet_builder.reports.html import escaped, percent, table
from resnet_builder.reports.scale import Axis
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, MetricsRow, ResultRecord, curve_rows
from resnet_builder.runs.status import run_status
from resnet_builder.training.callbacks import Callback, Progress, TrainStart
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.result import Result

_SHOWN_ROWS = 12
"""Evaluations in the table of the progress; earlier ones are left out."""

# Jupyter's own style sheet aligns tables at the right, and stripes them.
_STYLE = """<style>
.resnet-run { font-family: system-ui, sans-serif; font-size: 13px; max-width: 72rem; }
.resnet-run p { margin: .3rem 0; }
.resnet-run progress { width: min(34rem, 100%); display: block; }
.resnet-run table { border-collapse: collapse; margin: .4rem 0; font-size: inherit; }
.resnet-run th, .resnet-run td { padding: .2rem 1.2rem .2rem 0; text-align: left; }
.resnet-run th { font-weight: 600; border-bottom: 1px solid rgb(128 128 128 / 50%); }
.resnet-run .faint { opacity: .7; }
.resnet-run .num { text-align: right; font-variant-numeric: tabular-nums; }
.resnet-run .charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.resnet-run .charts > svg { background: var(--page); }
</style>"""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython is not imported for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class NotebookProgress(Callback):
    """Progress of a training in the output of a notebook's cell: bar, latest metrics, evaluations.

    The output is one, which changes; at the end it is a table with the result below.
    """

    def __init__(self) -> None:
        display: Any = importlib.import_module("IPython.display")
        self._html = display.HTML
        self._output = display.display(self._html(""), display_id=True)
        self._start: TrainStart | None = None
        self._began = 0.0
        self._train: Progress | None = None
        self._rows: list[list[str]] = []
        self._best: int | None = None
        self._score = ""
        self._notes: list[str] = []

    def report(self, what: str, done: int, total: int) -> None:
        """Show the progress of work on data; ``total`` is 0 where it is not known."""
        self._show(_bar(done, total, f"{what}: {done:,}{f' of {total:,}' if total else ''}"))

    def on_train_start(self, start: TrainStart) -> None:
        """Show the bar."""
        self._start, self._began = start, monotonic()
        self._show(_bar(start.step, start.total_steps, f"training on {start.device}"))

    def on_progress(self, progress: Progress) -> None:
        """Move the bar, and show the latest metrics."""
        assert self._start is not None, "the training has started"
        self._train = progress
        done = max(1, progress.step - self._start.step)
        seconds = (monotonic() - self._began) / done * (progress.total_steps - progress.step)
        said = (
            f"step {progress.step:,} of {progress.total_steps:,}, epoch {progress.epoch:.1f}: "
            f"loss {progress.loss:.4f}, top-1 {percent(progress.top1)}, lr {progress.lr:.4g}, "
            f"{progress.images_per_second:,.0f} images/s, {timedelta(seconds=round(seconds))} left"
        )
        self._show(_bar(progress.step, progress.total_steps, said))

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Add a row to the table."""
        assert self._start is not None, "the training has started"
        train = self._train if split == "val" else None  # of the steps since the last report
        self._score = "top-1" if metrics.map is None else "mAP"
        self._best = len(self._rows) if is_best else self._best
        self._rows.append(
            [
                {"val": "validation"}.get(split, split),
                f"{step / self._start.steps_per_epoch:.1f}".removesuffix(".0"),
                f"{step:,}",
                "" if train is None else f"{train.loss:.4f}",
                "" if train is None else percent(train.top1),
                f"{metrics.loss:.4f}",
                percent(metrics.score),
            ]
        )
        self._train = None
        self._show(_bar(step, self._start.total_steps, f"step {step:,}"))

    def on_warning(self, message: str) -> None:
        """Keep a warning on show."""
        self._notes.append(message)
        self._show("")

    def on_train_end(self, result: Result) -> None:
        """Show the result in place of the bar."""
        self._show(f"<p><b>{escaped(_result_text(result.record))}</b></p>")

    def on_exception(self, error: BaseException) -> None:
        """Show that training ended, in place of the bar; the error itself is raised."""
        self._show(f"<p>{escaped(str(error).partition(chr(10))[0] or type(error).__name__)}</p>")

    def _show(self, below: str) -> None:
        heads = ("", "epoch", "step", "train loss", "train top-1", "loss", self._score)
        shown = [
            [f"{row[0]}, best" if number == self._best else row[0], *row[1:]]
            for number, row in enumerate(self._rows)
        ]
        rows = table(heads, shown[-_SHOWN_ROWS:], numbers=6) if shown else ""
        notes = "".join(f'<p class="faint">{escaped(note)}</p>' for note in self._notes)
        html = f'{_STYLE}<div class="resnet-run">{notes}{rows}{below}</div>'
        self._output.update(self._html(html))


def _bar(done: int, total: int, said: str) -> str:
    value = f'value="{done}" max="{total}"' if total else ""
    return f"<p><progress {value}></progress>{escaped(said)}</p>"


def run_html(path: Path) -> str:
    """Return a run as HTML for a notebook: its state, result and curves.

    Args:
        path: Run directory.

    Raises:
        ResnetBuilderError: A file of the run is damaged.
    """
    run = RunDirectory(path)
    status = run_status(run)
    said = f"{path}: {status.state}"
    if status.step is not None and status.total_steps is not None:
        said += f", step {status.step:,} of {status.total_steps:,}"
    result = f"<p>{escaped(_result_text(status.result))}</p>" if status.result else ""
    rows = MetricsLog(run).read()
    score = "val_map" if any(row.val_map is not None for row in rows) else "val_top1"
    charts = [
        _chart(rows, "loss", ["train_loss", "val_loss"], 1, Axis()),
        _chart(rows, "top-1", ["train_top1", score], 100, Axis(unit="%"), best=score),
    ]
    drawn = f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""
    style = f"{_STYLE}<style>{STYLE}</style>"
    return f'{style}<div class="resnet-run"><p><b>{escaped(said)}</b></p>{result}{drawn}</div>'


def _chart(
    rows: Sequence[MetricsRow],
    title: str,
    fields: Sequence[str],
    scale: float,
    axis: Axis,
    best: str | None = None,
) -> str:
    series = []
    marks = []
    for field in fields:
        points = [(row.epoch, getattr(row, field)) for row in curve_rows(rows)]
        points = [(epoch, scale * value) for epoch, value in points if value is not None]
        if points:
            x, y = zip(*points, strict=True)
            series.append(Series("validation" if field.startswith("val") else "training", x, y))
        if points and field == best:
            epoch, value = max(points, key=lambda point: point[1])
            marks.append(Mark(epoch, f"best {value:.2f}", value))
    return line_chart(series, title=title, x=Axis("epoch"), y=axis, marks=marks) if series else ""


def _result_text(record: ResultRecord) -> str:
    ours = {
        "test mAP": record.test_map,
        "test top-1": record.test_top1,
        "validation mAP": record.val_map,
        "validation top-1": record.val_top1,
    }
    found = [f"{name} {percent(value)}" for name, value in ours.items() if value is not None]
    if record.published is not None and record.published.test_top1 is not None:
        found.append(f"published {percent(record.published.test_top1)}")
    found.append(f"weights of step {record.selected_step:,} of {record.steps:,}")
    found.append(f"{record.seconds:,.0f} s, {record.images_per_second:,.0f} images/s")
    return ", ".join(found)
