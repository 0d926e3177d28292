"""Tables of a report as Markdown and CSV."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

from resnet_builder.errors import percent, printable
from resnet_builder.reports.report import METRICS, Group, Report, RunReport, Spread
from resnet_builder.spec.dump import dump_value


def render_markdown(report: Report) -> str:
    """Render a report as Markdown: the runs, and what differs between their specs."""
    groups = [(f"**{_cell(group.name)}**", group) for group in report.groups]
    keys = [key for key in METRICS if any(key in group.metrics for _, group in groups)]
    lines = ["| spec | runs |" + "".join(f" {METRICS[key]} |" for key in keys) + " seconds |"]
    lines.append("|---|--:|" + "--:|" * (len(keys) + 1))
    for name, group in groups:
        cells = [_mean_and_std(group.metrics.get(key)) for key in keys]
        seconds = group.metrics.get("seconds")
        cells.append("" if seconds is None else f"{seconds.mean:,.1f}")
        lines.append(f"| {name} | {_count_of_runs(group)} | {' | '.join(cells)} |")
    lines += ["", *_markdown_of_runs(report.runs)]
    if report.differences:
        names = " | ".join(_cell(group.name) for group in report.groups)
        lines += ["", f"| key | {names} |", "|---|" + "---|" * len(report.groups)]
        lines += [
            f"| `{one.path}` | " + " | ".join(map(_value, one.values)) + " |"
            for one in report.differences
        ]
    return "\n".join(lines) + "\n"


def render_csv(report: Report) -> str:
    """Render a report as CSV: a row for each run, accuracies as fractions."""
    paths = [one.path for one in report.differences]
    header = [*_COLUMNS, *paths]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for number, run in enumerate(report.runs):
        group = next(n for n, one in enumerate(report.groups) if number in one.runs)
        values = [one.values[group] for one in report.differences]
        told = ["" if value is None else dump_value(value) for value in values]
        row = [*_row(run, report.groups[group].name), *told]
        writer.writerow([printable(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


_COLUMNS = (
    *("run", "name", "group", "state", "seed", "steps", "total_steps"),
    *METRICS,
    *("published.test.top1", "published.test.top1.difference", "selected_on", "selected_step"),
    *("seconds", "images_per_second", "parameters", "macs", "expected_memory", "peak_memory"),
    *("batches_share", "device", "command"),
)


def _row(run: RunReport, group: str) -> Iterator[object]:
    result, cost = run.result, run.cost
    published = None if result is None else result.published
    yield from (run.path, run.name, group, run.state, run.seed, run.step, run.total_steps)
    yield from (run.metrics.get(key) for key in METRICS)
    yield None if published is None else published.test_top1
    yield None if published is None else published.test_top1_difference
    yield None if result is None else result.selected_on
    yield None if result is None else result.selected_step
    yield run.seconds
    yield None if result is None else result.images_per_second
    yield from (cost.parameters, cost.macs, cost.expected_memory, cost.peak_memory)
    yield None if cost.time is None else cost.time.batches
    yield None if run.environment is None else run.environment.device
    yield run.command


def _markdown_of_runs(runs: Sequence[RunReport]) -> Iterator[str]:
    keys = [key for key in METRICS if any(key in run.metrics for run in runs)]
    names = "".join(f" {METRICS[key]} |" for key in keys)
    yield f"| run | state | seed |{names} steps | seconds |"
    yield "|---|---|--:|" + "--:|" * (len(keys) + 2)
    for run in runs:
        scores = [percent(run.metrics.get(key)) for key in keys]
        steps = "" if run.step is None else f"{run.step:,}"
        seconds = "" if run.seconds is None else f"{run.seconds:,.1f}"
        cells = [_cell(Path(run.path).resolve().name), run.state, str(run.seed), *scores]
        yield "| " + " | ".join([*cells, steps, seconds]) + " |"


def _count_of_runs(group: Group) -> str:
    """Number of seeds; of those with a result, if some have none."""
    number = len(group.distinct)
    return str(number) if group.finished == number else f"{group.finished} of {number}"


def _mean_and_std(spread: Spread | None) -> str:
    if spread is None or spread.std is None:
        return percent(None if spread is None else spread.mean)
    return f"{100 * spread.mean:.2f} ± {percent(spread.std)}"


def _cell(text: str) -> str:
    """Text in a cell: names are of users, and may hold what Markdown or HTML obeys."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\|*_`[]" else letter for letter in shown)


def _value(value: object) -> str:
    text = "" if value is None else dump_value(value)
    return f"`{printable(text).replace('|', chr(92) + '|').replace('`', chr(39))}`" if text else ""
