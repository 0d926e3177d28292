"""Curves of trainings: loss, accuracy, learning rate and images/s over the epochs, and over time.

Runs of one spec are one line, the mean over the seeds, with a band of one standard deviation.
"""

from collections.abc import Sequence
from math import floor, isfinite, nan

from resnet_builder.reports import charts
from resnet_builder.reports.charts import Mark, Series, line_chart
from resnet_builder.reports.report import METRICS, Point, Report, RunReport
from resnet_builder.reports.scale import Axis
from resnet_builder.runs.records import curve_rows
from resnet_builder.runs.seeds import mean_and_std

Groups = Sequence[tuple[Sequence[int], str]]
"""Numbers of the runs of each group, and its name."""

_EARLY = 0.2  # fraction of the epochs whose accuracies may lie below the axis, of several runs
_EPOCHS = Axis("epoch")
_WIDTH, _HEIGHT = 440, 260  # legible on a phone, and two side by side elsewhere


def curves(runs: Sequence[RunReport], groups: Groups) -> list[str]:
    """Draw loss, accuracy, learning rate and images/s over the epochs, as SVG.

    A chart without values is left out. Of one run, training and validation are in one chart, with
    marks where it was resumed and where the learning rate fell, and at its best weights.

    Args:
        runs: The runs.
        groups: The runs by their specs.
    """
    is_single = len(runs) == 1
    score = "map" if any(run.is_multi_label for run in runs) else "top1"
    name = "mAP" if score == "map" else "top-1"
    if is_single:
        drawn = [
            _chart(runs, groups, "loss", ["train_loss", "val_loss"], Axis("epoch"), Axis()),
            _chart(runs, groups, name, _accuracies(score), Axis("epoch"), Axis(unit="%")),
        ]
    else:
        drawn = [
            _chart(
                runs,
                groups,
                f"validation {name}",
                [f"val_{score}"],
                _EPOCHS,
                _late(runs, f"val_{score}"),
            ),
            _chart(
                runs, groups, "training top-1", ["train_top1"], _EPOCHS, _late(runs, "train_top1")
            ),
            _chart(runs, groups, "validation loss", ["val_loss"], _EPOCHS, Axis()),
            _chart(runs, groups, "training loss", ["train_loss"], _EPOCHS, Axis()),
        ]
    is_log = any(run.rate_drops for run in runs)  # smooth schedules end at almost 0
    drawn.append(_chart(runs, groups, "learning rate", ["lr"], _EPOCHS, Axis(log=is_log)))
    rate = Axis(limits=(0, None))
    drawn.append(_chart(runs, groups, "images/s", ["images_per_second"], _EPOCHS, rate))
    return [chart for chart in drawn if chart]


def accuracy_against_time(runs: Sequence[RunReport], groups: Groups) -> list[str]:
    """Draw the validation accuracy over the training time, a line for each run, as SVG.

    Args:
        runs: The runs.
        groups: The runs by their specs.
    """
    score = "map" if any(run.is_multi_label for run in runs) else "top1"
    lines = []
    size, unit = _time_unit(max((run.seconds or 0 for run in runs), default=0))
    for number, (members, name) in enumerate(groups):
        for run_number in members:
            seconds: float | None = None
            x, y = [], []
            for point in runs[run_number].history:
                seconds = point.row.seconds if point.row.seconds is not None else seconds
                value = getattr(point.row, f"val_{score}")
                if value is not None and seconds is not None:
                    x.append(seconds / size)
                    y.append(100 * value)
            if x:
                told = name if run_number == members[0] else ""
                lines.append(Series(told, x, y, color=number % 12 + 1))
    if not lines:
        return []
    title = f"validation {'mAP' if score == 'map' else 'top-1'} by training time"
    time = Axis("training time", unit=unit)
    return [
        line_chart(
            lines, title=title, x=time, y=_late(runs, f"val_{score}"), width=_WIDTH, height=_HEIGHT
        )
    ]


def _accuracies(score: str) -> list[str]:
    return ["train_top1", "val_top1"] if score == "top1" else ["val_map"]


def accuracy_by_time(report: Report, metric: str) -> list[str]:
    """Draw the accuracy of each group over its training time, with standard deviations, as SVG.

    Args:
        report: The report, of several groups.
        metric: Key of the accuracy.
    """
    size, unit = _time_unit(max((run.seconds or 0 for run in report.runs), default=0))
    points = []
    for number, group in enumerate(report.groups):
        score, seconds = group.metrics.get(metric), group.metrics.get("seconds")
        if score is None or seconds is None:
            continue
        y, y_std = 100 * score.mean, 100 * (score.std or 0)
        x, x_std = seconds.mean / size, (seconds.std or 0) / size
        color = number % 12 + 1
        spread = (x - x_std, x + x_std, y - y_std, y + y_std)
        points.append(charts.Point(group.name, x, y, *spread, color=color))
    if len(points) < 2:
        return []
    time, title = Axis("training time", unit=unit), f"{METRICS[metric]} by training time"
    drawn = charts.scatter_chart(
        points, title=title, x=time, y=Axis(unit="%"), width=_WIDTH, height=_HEIGHT
    )
    return [drawn]


def _time_unit(longest: float) -> tuple[int, str]:
    """Seconds of the unit of time that suits a duration, and its name."""
    return (3600, "h") if longest > 7200 else (60, "min") if longest > 120 else (1, "s")


def _late(runs: Sequence[RunReport], field: str) -> Axis:
    """Axis of accuracies that leaves room for their differences: from the least of late ones."""
    late = []
    for run in runs:
        begin = _EARLY * max((point.epoch for point in run.history), default=0.0)
        values = [getattr(point.row, field) for point in run.history if point.epoch >= begin]
        late += [value for value in values if value is not None]
    low = floor(20 * min(late, default=0.0)) * 5  # a multiple of 5 %
    return Axis(unit="%", limits=(low, None))


_NAMES = {"train": "training", "val": "validation"}


def _chart(
    runs: Sequence[RunReport], groups: Groups, title: str, fields: Sequence[str], x: Axis, y: Axis
) -> str | None:
    """Chart of some fields of the rows, of each group a line; ``None`` without values."""
    lines: list[Series] = []
    scale = 100 if y.unit == "%" else 1
    for field in fields:
        for number, (members, group) in enumerate(groups):
            name = group if len(fields) == 1 else _NAMES[field.partition("_")[0]]
            color = (number if len(fields) == 1 else len(lines)) % 12 + 1
            line = _series([runs[n].history for n in members], field, scale, name, color)
            lines += [line] if line else []
    if not lines:
        return None
    marks = _marks(runs[0], fields[-1], scale) if len(runs) == 1 else ()
    return line_chart(lines, title=title, x=x, y=y, marks=marks, width=_WIDTH, height=_HEIGHT)


def _series(
    histories: Sequence[Sequence[Point]], field: str, scale: float, name: str, color: int
) -> Series | None:
    """Line of the mean over runs at each epoch that any of them reports, with its band."""
    found: dict[float, list[float]] = {}
    for history in histories:
        epochs = {point.row.step: point.epoch for point in history}
        for row in curve_rows(point.row for point in history):
            value: float | None = getattr(row, field)
            if value is None:
                continue
            values = found.setdefault(epochs[row.step], [])
            if isfinite(value):  # a loss may not be
                values.append(scale * value)
    if not found:
        return None
    x = sorted(found)
    spreads = [mean_and_std(found[at]) if found[at] else (nan, None) for at in x]
    means = [mean for mean, _ in spreads]
    if len(histories) == 1:
        return Series(name, x, means, color=color)
    low = [mean - (std or 0.0) for mean, std in spreads]
    high = [mean + (std or 0.0) for mean, std in spreads]
    return Series(name, x, means, low, high, color=color)


def _marks(run: RunReport, field: str, scale: float) -> list[Mark]:
    epochs = {point.row.step: point.epoch for point in run.history}
    marks = [Mark(epochs[step], "rate drop") for step in run.rate_drops if step in epochs]
    length = next((point.row.step / point.epoch for point in run.history if point.epoch), None)
    marks += [Mark(step / length, "resumed") for step in run.resumed_at if length]
    result = run.result
    if result is not None and result.selected_on == "val" and field.startswith("val"):
        for point in run.history:
            value = getattr(point.row, field)
            if point.row.step == result.selected_step and value is not None:
                marks.append(Mark(point.epoch, "best", scale * value))
                break
    return marks
