"""Result of a training, as ``train`` prints it, and the progress of runs for other commands."""

import shlex
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_builder.cli.console import note, show, table
from resnet_builder.errors import percent, points

if TYPE_CHECKING:
    from resnet_builder.runs.records import ResultRecord
    from resnet_builder.runs.status import RunStatus


def show_result(record: "ResultRecord") -> None:
    """Print the accuracy, the published one and the difference, and which weights were tested."""
    from resnet_builder.runs.records import METRIC_WORDS

    ours = {"mAP": record.test_map, "top-1": record.test_top1, "top-5": record.test_top5}
    published = record.published
    if published is None:
        found = ", ".join(f"{name} {percent(top)}" for name, top in ours.items() if top is not None)
        show(f"test {found}" if found else "no test images")
    else:
        theirs = {
            "top-1": (published.test_top1, published.test_top1_difference),
            "top-5": (published.test_top5, published.test_top5_difference),
        }
        rows = [
            (f"test {name}", percent(ours[name]), percent(top), points(difference))
            for name, (top, difference) in theirs.items()
            if ours[name] is not None or top is not None
        ]
        show(*table(("", "ours", "published", "difference"), rows))
        show(f"published in {published.source}")
    chosen = "the last" if record.selected_on == "none" else "best on validation"
    metric, value = record.monitored, record.monitored_value
    val = ""
    if metric is not None and value is not None:
        text = f"{value:.4f}" if metric == "loss" else percent(value)
        val = f" ({METRIC_WORDS[metric]} {text})"
    early = f", stopped early ({record.planned_steps:,} planned)" if record.early_stopped else ""
    show(f"weights of step {record.selected_step:,} of {record.steps:,}{early}: {chosen}{val}")
    digits = 1 if record.seconds < 10 else 0
    show(f"{record.seconds:,.{digits}f} s of training, {record.images_per_second:,.0f} images/s")


def show_next(run: Path, plugins: tuple[str, ...]) -> None:
    """Print where the report of a finished run is, and what can be done with the run."""
    if (run / "report.html").is_file():
        note(f"report: {run / 'report.html'}")
    words = [str(run), *(word for plugin in plugins for word in ("--plugin", plugin))]
    note("next:")
    file = "FILE.onnx" if find_spec("onnxscript") else "FILE.pt2"  # which needs no extra
    for command, *more in (
        ("evaluate",),
        ("predict", "IMAGE..."),
        ("export", "-o", file),
        ("publish", "--to", "DIR"),
    ):
        note(f"  resnet-build {command} {shlex.join(words)}{''.join(f' {one}' for one in more)}")
    quoted = shlex.quote(str(run))
    if (run / "tensorboard").is_dir():
        note(f"  tensorboard --logdir {quoted}")
    if any(run.glob("wandb/offline-run-*")):
        note(f"  wandb sync {quoted}/wandb/offline-run-*")
    if (run / "mlflow.json").is_file():
        note("  mlflow ui")


def progress(run: "RunStatus") -> tuple[str, str, str]:
    """Steps done of how many, seed, and training time; empty where they are not known."""
    total = "" if run.total_steps is None else f" of {run.total_steps:,}"
    steps = "" if run.step is None else f"{run.step:,}{total}"
    seed = "" if run.seed is None else str(run.seed)
    time = "" if run.seconds is None else str(timedelta(seconds=round(run.seconds)))
    return steps, seed, time


def run_row(one: "RunStatus", name: str) -> tuple[str, ...]:
    """Row of a run in a table: name, state, progress and accuracies."""
    return (
        name,
        one.state,
        *progress(one),
        _accuracy(one.val_map, one.val_top1),
        _accuracy(one.test_map, one.test_top1),
        points(one.test_top1_difference),
    )


def _accuracy(of_several_labels: float | None, top1: float | None) -> str:
    return percent(top1) if of_several_labels is None else f"mAP {percent(of_several_labels)}"
