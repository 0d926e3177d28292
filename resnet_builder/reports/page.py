"""The page of a report: one self-contained HTML file.

The template and the style sheet are in ``templates/``. A value of a file stands in a ``<data>``
element, whose title names the file and the key.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_builder.errors import counted, first_line, percent, points, printable
from resnet_builder.experiment import Experiment
from resnet_builder.memory import size_text
from resnet_builder.parts import resolve
from resnet_builder.reports import charts
from resnet_builder.reports.curves import accuracy_against_time, accuracy_by_time, curves
from resnet_builder.reports.drawing import draw_svg
from resnet_builder.reports.report import METRICS, Group, Report, RunReport, Setting, read_report
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, write_atomically
from resnet_builder.runs.records import package_version
from resnet_builder.runs.status import resume_command
from resnet_builder.spec.dump import dump_spec, dump_value
from resnet_builder.spec.load import load_spec
from resnet_builder.training.callbacks import Callback
from resnet_builder.training.result import Result

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES = Path(__file__).with_name("templates")
_MAX_EVENTS = 60
_MAX_PROBLEMS = 5
_ABSENT = "\N{EN DASH}"


def write_report(
    runs: Sequence[Path], out: Path, *, plugins: Sequence[str] = (), data_dir: Path | None = None
) -> None:
    """Write the page of one run or several, in place of an older page.

    Args:
        runs: Run directories, finished or not.
        out: The file.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets, for the images that the page of one run shows.

    Raises:
        StorageError: The file cannot be written.
        UsageError: A directory is no run.
    """
    report = read_report(runs, plugins=plugins, data_dir=data_dir)
    write_atomically(out, [render_html(report).encode()])


def report_callbacks(
    experiment: Experiment, run: Path, plugins: Sequence[str], data_dir: Path | None, warn: Warn
) -> list[Callback]:
    """Return the callback that writes ``report.html`` at the end of a training, if it is wanted.

    Args:
        experiment: The experiment, whose ``run.report`` says so.
        run: Run directory.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets.
        warn: Called if the page cannot be written.
    """
    return [_WriteReport(run, plugins, data_dir, warn)] if experiment.run.report else []


class _WriteReport(Callback):
    def __init__(
        self, run: Path, plugins: Sequence[str], data_dir: Path | None, warn: Warn
    ) -> None:
        self._run = run
        self._plugins = plugins
        self._data_dir = data_dir
        self._warn = warn

    def on_train_end(self, result: Result) -> None:
        """Write the page. The run is finished by now: whatever goes wrong is a warning."""
        try:
            out = RunDirectory(self._run).report
            write_report([self._run], out, plugins=self._plugins, data_dir=self._data_dir)
        except Exception as error:
            self._warn(f"the report was not written: {first_line(error)}")


def render_html(report: Report) -> str:
    """Render the page of a report."""
    single = report.runs[0] if len(report.runs) == 1 else None
    sections = _sections_of_run(single) if single else _sections_of_runs(report)
    names = list(dict.fromkeys(run.name for run in report.runs))
    title = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return (
        _environment()
        .get_template("report.html")
        .render(
            version=package_version(),
            style=_safe((_TEMPLATES / "report.css").read_text(encoding="utf-8") + charts.STYLE),
            title=title,
            kicker=_kicker(single) if single else counted(len(report.runs), "run"),
            subtitle=_short_path(single.path) if single else _common_folder(report.runs),
            source="the run directory" if single else "the run directories",
            sections=[one for one in sections if one.html or one.parts],
        )
    )


@dataclass(frozen=True, slots=True)
class _Section:
    """Section of the page, or a part of one; ``html`` is complete."""

    id: str
    title: str
    html: str
    parts: tuple["_Section", ...] = ()


@cache
def _environment() -> "Environment":
    """Environment of the templates: everything that is not ours is escaped, line ends included."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def _macro(name: str, *arguments: object, **options: object) -> "Markup":
    macro: Any = getattr(_environment().get_template("sections.html").module, name)
    return _safe(str(macro(*arguments, **options)).strip())


def _safe(html: str) -> "Markup":
    from markupsafe import Markup

    return Markup(html)


def _joined(*parts: str, by: str = "\n") -> "Markup":
    """Parts as HTML, one behind the other; plain text among them is escaped."""
    return _macro("joined", [part for part in parts if part], _safe(by))


# ---- values --------------------------------------------------------------------------------------


def _data(value: float | None, kind: str, source: str) -> "Markup":
    """Value of a file with its source, as ``<data>``; nothing if it is absent."""
    if value is None or not math.isfinite(value):
        return _safe("")
    return _macro("data", repr(value), source, _FORMATS[kind](value))


def _duration(seconds: float) -> str:
    """Time for readers: ``"1.2 s"``, ``"14 min 20 s"``, ``"2 h 3 min"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _points(value: float) -> str:
    return points(value).replace("-", "\N{MINUS SIGN}")


_FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": percent,
    "points": _points,
    "count": lambda value: f"{value:,}",
    "rate": lambda value: f"{value:,.0f}",
    "seconds": _duration,
    "size": lambda value: size_text(round(value)),
    "share": lambda value: percent(value, 0),
}


def _spread(group: Group, key: str, kind: str = "percent") -> "Markup":
    """Mean and standard deviation of a group."""
    found = group.metrics.get(key)
    if found is None:
        return _safe("")
    source = f"mean of {counted(found.n, 'run')}: result.json: {key}"
    mean = _data(found.mean, kind, source)
    if found.std is None:
        return mean
    std = _data(found.std, kind, f"standard deviation of {counted(found.n, 'run')}: {key}")
    if kind == "percent":  # one sign for both
        mean = _safe(str(mean).replace(" %</data>", "</data>"))
    return _macro("spread", mean, std)


# ---- one run -------------------------------------------------------------------------------------


def _sections_of_run(run: RunReport) -> list[_Section]:
    return [
        _Section("result", "Result", _headline(run)),
        _Section("curves", "Curves", _curves_of_run(run)),
        _Section("spec", "Spec", _spec(run)),
        _Section("network", "Network", _network(run)),
        _Section("predictions", "Predictions", "", tuple(_predictions(run))),
        _Section("cost", "Cost", _cost(run)),
        _Section("record", "Environment and record", "", tuple(_record(run))),
    ]


def _kicker(run: RunReport) -> str:
    dataset = "" if run.spec is None or run.spec.data is None else run.spec.data.dataset.type
    return ", ".join(filter(None, [run.state, f"trained on {dataset}" if dataset else ""]))


def _headline(run: RunReport) -> str:
    result, source = run.result, "result.json"
    key = next(iter(_ordered(run.metrics)), None)
    parts = [_problem(line) for line in run.problems]
    if run.error is not None:
        parts.append(_problem(f"failed: {run.error}", failed=True))
    if key is not None:
        value = run.metrics[key]
        where = f"{source}: {key}" if result is not None else f"best of metrics.jsonl: {key}"
        label = METRICS[key] + ("" if result is not None else ", the best until now")
        parts.append(_macro("hero", _data(value, "percent", where), label, list(_beside(run, key))))
    else:
        parts.append(_macro("note", "There is no evaluation yet."))
    steps = _joined(
        _data(run.step, "count", "result.json: steps" if result else "checkpoints: last step"),
        f"of {run.total_steps:,}" if run.total_steps is not None else "",
        by=" ",
    )
    rate = result.images_per_second if result else None
    parts.append(
        _macro(
            "facts",
            [
                *_metric_facts(run, key),
                ("weights of", _selected(run)),
                ("steps", steps),
                (
                    "seed",
                    "" if run.seed is None else _data(run.seed, "count", "spec.yaml: train.seed"),
                ),
                ("training time", _data(run.seconds, "seconds", _seconds_source(run))),
                ("images/s", _data(rate, "rate", f"{source}: images_per_second")),
                ("machine", "" if run.environment is None else run.environment.device),
            ],
        )
    )
    if run.state in {"stopped", "killed", "failed"}:
        parts.append(_macro("note", "This command resumes the run:"))
        parts.append(_macro("code", resume_command(Path(run.path))))
    parts.append(_macro("note", "This command repeats the run:"))
    parts.append(_macro("code", run.command))
    return _joined(*parts)


def _seconds_source(run: RunReport) -> str:
    return "result.json: seconds" if run.result else "metrics.jsonl: seconds, last row"


def _ordered(metrics: dict[str, float]) -> list[str]:
    """Keys of metrics, the one that a run is judged by first."""
    order = ("test.map", "test.top1", "val.map", "val.top1", "test.top5")
    return [key for key in order if key in metrics]


def _metric_facts(run: RunReport, shown: str | None) -> Iterator[tuple[str, "Markup"]]:
    """Accuracies beside the one of the headline, with the published top-5."""
    result = run.result
    if result is None:
        return
    for key in _ordered(run.metrics):
        if key != shown:
            yield METRICS[key], _data(run.metrics[key], "percent", f"result.json: {key}")
    if result.published is not None:
        top5 = result.published.test_top5
        yield "published top-5", _data(top5, "percent", "result.json: published.test.top5")


def _beside(run: RunReport, key: str) -> Iterator[str]:
    """Lines beside the headline's number: the published one, or why there is none."""
    result = run.result
    published = None if result is None else result.published
    if published is not None and published.test_top1 is not None and key == "test.top1":
        theirs = _data(published.test_top1, "percent", "result.json: published.test.top1")
        difference = published.test_top1_difference
        ours = _data(difference, "points", "result.json: published.test.top1.difference")
        yield _safe(f"<b>{ours}</b> points from the published {theirs}")
        yield published.source
    elif result is not None and run.data is not None and "test" not in run.data.images:
        yield "There are no test images."
    elif result is not None and published is None:
        yield "The spec states no published result (key published)."


def _selected(run: RunReport) -> str:
    if run.result is None:
        return ""
    step = _data(run.result.selected_step, "count", "result.json: selected_step")
    how = "the last" if run.result.selected_on == "none" else "best on validation images"
    return _safe(f"step {step}, {how}")


def _problem(line: str, *, failed: bool = False) -> "Markup":
    return _macro("problem", line, failed)


def _curves_of_run(run: RunReport) -> str:
    drawn = curves([run], [((0,), "")])
    if not drawn:
        return _macro("note", "There are no curves before the first evaluation.")
    return _macro("charts", list(map(_safe, drawn)))


def _spec(run: RunReport) -> str:
    if not run.text:
        return _macro("note", "spec.yaml cannot be read.")
    lines = run.text.splitlines()
    changed: set[int] = set()
    parts = []
    if run.origin is not None and run.spec is not None:
        before = dump_spec(resolve(load_spec(run.origin))).splitlines()
        matcher = SequenceMatcher(None, before, lines, autojunk=False)
        for tag, _, _, start, end in matcher.get_opcodes():
            changed |= set(range(start, end)) if tag != "equal" else set()
        if run.changes:
            told = f"{counted(len(run.changes), 'value')} differ"
            told = told.replace("1 value differ", "One value differs")
            parts.append(_macro("note", f"{told} from the bundled spec {run.origin}."))
            parts.append(_settings(run.changes, (run.origin, "this run")))
        else:
            parts.append(_macro("note", f"This is the bundled spec {run.origin}, unchanged."))
    marked = [(line, number in changed) for number, line in enumerate(lines)]
    parts.append(_macro("listing", marked, f"spec.yaml, {counted(len(lines), 'line')}"))
    return _joined(*parts)


def _settings(changes: Sequence[Setting], header: Sequence[str]) -> "Markup":
    rows = [
        (one.path, *(_ABSENT if value is None else dump_value(value) for value in one.values))
        for one in changes
    ]
    return _macro("table", ("key", *header), rows, left=len(header) + 1)


def _network(run: RunReport) -> str:
    if run.network is None:
        return _macro("note", "The network cannot be built here, so it is not drawn.")
    return _safe(f'<div class="drawing">{draw_svg(run.network)}</div>')


def _predictions(run: RunReport) -> Iterator[_Section]:
    """Fragments with something to show; why the others are missing is said once for each reason."""
    missing: dict[str, list[str]] = {}
    for one in run.fragments:
        if one.html:
            yield _Section(one.name, one.title, _safe(one.html))
        elif one.missing:
            missing.setdefault(one.missing, []).append(one.title)
    for reason, titles in missing.items():
        yield _Section(
            "",
            titles[0] if len(titles) == 1 else "Not shown",
            _macro("note", reason if len(titles) == 1 else f"{', '.join(titles)}: {reason}"),
        )


def _cost(run: RunReport) -> str:
    cost, memory = run.cost, "expected by the estimate of memory, from spec.yaml and env.json"
    known = "result.json" if run.result else "counted from spec.yaml"
    parts = [
        _macro(
            "facts",
            [
                ("parameters", _data(cost.parameters, "count", f"{known}: parameters")),
                ("MACs an image", _data(cost.macs, "count", f"{known}: macs")),
                ("depth", _data(cost.depth, "count", "counted from spec.yaml: depth")),
                ("memory, expected", _data(cost.expected_memory, "size", memory)),
                ("memory, at most", _data(cost.peak_memory, "size", "result.json: peak_memory")),
            ],
        )
    ]
    if cost.expected_memory and cost.peak_memory:
        on_device = run.environment is not None and run.environment.runtime.device == "cuda"
        whole = "of tensors on the device" if on_device else "of the whole process, torch included"
        parts.append(_macro("note", f"Expected: without the program itself. At most: {whole}."))
    if cost.time is not None:
        shares = [
            ("batches: reading, augmenting, waiting", cost.time.batches),
            ("training steps", cost.time.steps),
            ("evaluations, checkpoints", cost.time.other),
        ]
        parts.append(_macro("note", "Where the training time went:"))
        told = "computed from metrics.jsonl: seconds, images_per_second, data_share"
        parts.append(
            _macro(
                "shares",
                [(name, _data(share, "share", told), 100 * share) for name, share in shares],
            )
        )
    return _joined(*parts)


def _record(run: RunReport) -> Iterator[_Section]:
    if run.environment is None:
        yield _Section("environment", "Environment", _macro("note", "env.json cannot be read."))
    else:
        yield _Section("environment", "Environment", _environment_of(run))
    if run.data is None:
        yield _Section("data", "Data", _macro("note", "data.json cannot be read."))
    else:
        yield _Section("data", "Data", _data_of(run))
    shown = run.trail[-_MAX_EVENTS:]
    trail: str = _macro("trail", shown)
    if len(shown) < len(run.trail):
        left = counted(len(run.trail) - len(shown), "earlier event")
        trail = _joined(_macro("note", f"{left}: train.log, changes.jsonl"), trail)
    yield _Section("trail", "Trail", trail if shown else _macro("note", "train.log is missing."))


def _environment_of(run: RunReport) -> str:
    env = run.environment
    assert env is not None, "the caller has checked it"
    runtime = dict(env.runtime)
    facts = [
        ("device", env.device),
        ("platform", env.platform),
        *(
            (name.replace("_", " "), str(value))
            for name, value in runtime.items()
            if value is not None and name != "device"
        ),
        *env.versions.items(),
        *((name.replace("_", " "), value) for name, value in env.flags.items()),
        *env.variables.items(),
        *((f"plugin {name}", digest[:16]) for name, digest in env.plugins.items()),
    ]
    return _macro("facts", facts, compact=True)


def _data_of(run: RunReport) -> str:
    data = run.data
    assert data is not None, "the caller has checked it"
    images = [
        (f"{name} images", _data(count, "count", f"data.json: images.{name}"))
        for name, count in data.images.items()
    ]
    names = ", ".join(data.classes[:12]) + (", ..." if len(data.classes) > 12 else "")
    facts = [
        *images,
        ("classes", f"{names} ({len(data.classes):,})"),
        ("labels of an image", "several" if data.multi_label else "one"),
        ("left out", f"{len(data.skipped):,} that cannot be decoded" if data.skipped else ""),
        ("mean", ", ".join(f"{value:.4f}" for value in data.mean)),
        ("standard deviation", ", ".join(f"{value:.4f}" for value in data.std)),
        ("fingerprint", data.fingerprint),
    ]
    return _macro("facts", facts, compact=True)


# ---- several runs --------------------------------------------------------------------------------


def _sections_of_runs(report: Report) -> list[_Section]:
    return [
        _Section("result", "Result", _headline_of_runs(report)),
        _Section("curves", "Curves", _curves_of_runs(report)),
        _Section("differences", "Differences", _differences(report)),
        _Section("runs", "Runs", _runs(report)),
        _Section("network", "Network", _network_of_runs(report)),
        _Section("cost", "Cost", _cost_of_runs(report)),
        _Section("environment", "Environment", _environment_of_runs(report)),
    ]


def _common_folder(runs: Sequence[RunReport]) -> str:
    folders = {str(Path(run.path).parent) for run in runs}
    return _short_path(folders.pop()) if len(folders) == 1 else ""


def _short_path(path: str) -> str:
    """Relative path as it was given; of another one its end, as pages are published."""
    return str(Path(*Path(path).parts[-2:])) if Path(path).is_absolute() else path


def _headline_of_runs(report: Report) -> str:
    key = report.main_metric
    problems = [f"{run.path}: {line}" for run in report.runs for line in run.problems]
    parts = list(map(_problem, problems[:_MAX_PROBLEMS]))
    if len(problems) > _MAX_PROBLEMS:
        parts.append(_problem(f"and {len(problems) - _MAX_PROBLEMS} more"))
    parts += [
        _problem(f"{run.path}: failed: {run.error}", failed=True)
        for run in report.runs
        if run.error is not None
    ]
    if key is None:
        return _joined(*parts, _macro("note", "There is no evaluation yet."))
    if len(report.groups) == 1:
        parts.append(_hero_of_group(report, report.groups[0], key))
        return _joined(*parts)
    # Test images choose nothing, where there are others to choose by.
    val = key.replace("test.", "val.")
    chosen = val if all(val in group.metrics for group in report.groups) else key
    ranked = sorted(
        enumerate(report.groups),
        key=lambda item: -item[1].metrics[chosen].mean if chosen in item[1].metrics else math.inf,
    )
    rows = []
    for place, (number, group) in enumerate(ranked):
        published = _published(report, group)
        spread = group.metrics.get(key)
        score = _spread(group, chosen)
        if place == 0 and score:
            score = _safe(f'<span class="best">{score}</span>')
        difference: str = ""
        if published is not None and spread is not None and key == "test.top1":
            source = "mean of result.json: test.top1, less the spec's published.test_top1"
            difference = _data(spread.mean - published, "points", source)
        rows.append(
            [
                _named(number, group.name, len(report.groups)),
                _count_of_runs(group),
                score,
                *([] if chosen == key else [_spread(group, key)]),
                difference,
                _spread(group, "seconds", "seconds"),
                _spread(group, "images_per_second", "rate"),
            ]
        )
    header = ["spec", "runs", METRICS[chosen], "from published", "training time", "images/s"]
    if chosen != key:
        header.insert(3, METRICS[key])
    if not any(row[-3] for row in rows):
        for cells in (header, *rows):
            del cells[-3]
    by = " on the validation images" if chosen != key else ""
    told = f"Mean and, of several seeds, standard deviation. The best{by} comes first."
    return _joined(*parts, _macro("table", header, rows), _safe(f'<p class="caption">{told}</p>'))


def _count_of_runs(group: Group) -> "Markup":
    """Number of seeds; of those with a result, if some have none."""
    all_runs = _data(len(group.distinct), "count", "runs of this spec")
    if group.finished == len(group.distinct):
        return all_runs
    return _joined(_data(group.finished, "count", "finished runs"), "of", all_runs, by=" ")


def _named(number: int, name: str, groups: int) -> "Markup":
    """Name of a group with the colour that it has in the charts."""
    return _macro("named", name, number % 12 + 1 if groups > 1 else 0)


def _published(report: Report, group: Group) -> float | None:
    spec = report.runs[group.runs[0]].spec
    return None if spec is None or spec.published is None else spec.published.test_top1


def _hero_of_group(report: Report, group: Group, key: str) -> "Markup":
    first = report.runs[group.runs[0]]
    spread = group.metrics.get(key)
    beside: list[str] = []
    published = _published(report, group)
    if spread is not None and published is not None and key == "test.top1":
        theirs = _data(published, "percent", "spec.yaml: published.test_top1")
        source = "mean of result.json: test.top1, less the spec's published.test_top1"
        ours = _data(spread.mean - published, "points", source)
        beside.append(_safe(f"<b>{ours}</b> points from the published {theirs}"))
        if first.spec is not None and first.spec.published is not None:
            beside.append(first.spec.published.source)
    runs = [report.runs[number] for number in group.distinct]
    seeds = ", ".join(str(run.seed) for run in runs if run.seed is not None)
    label = METRICS[key]
    if group.finished:
        label += f", mean ± standard deviation of {counted(group.finished, 'run')}"
    else:
        label += ", the best until now of runs of which none is finished"
    devices = dict.fromkeys(run.environment.device for run in runs if run.environment)
    hero = (
        _macro("hero", _spread(group, key), label, beside)
        if spread
        else _macro("note", "No run is finished.")
    )
    facts = [
        ("finished", f"{group.finished:,} of {counted(len(runs), 'run')}"),
        ("seeds", seeds),
        ("training time of a run", _spread(group, "seconds", "seconds")),
        ("images/s", _spread(group, "images_per_second", "rate")),
        ("machine", ", ".join(devices)),
    ]
    command = _joined(
        _macro("note", "This command repeats the first run:"), _macro("code", first.command)
    )
    return _joined(hero, _macro("facts", facts), command)


def _curves_of_runs(report: Report) -> str:
    is_one = len(report.groups) == 1
    groups = [(group.distinct, "" if is_one else group.name) for group in report.groups]
    drawn = [*curves(report.runs, groups), *accuracy_against_time(report.runs, groups)]
    if report.main_metric is not None:
        drawn += accuracy_by_time(report, report.main_metric)
    if not drawn:
        return _macro("note", "There are no curves before the first evaluation.")
    caption = ""
    if any(len(group.distinct) > 1 for group in report.groups):
        caption = (
            "Lines over epochs are means over the seeds; bands and error bars are one standard "
            "deviation to each side."
        )
    return _macro("charts", list(map(_safe, drawn)), caption)


def _differences(report: Report) -> str:
    if len(report.groups) == 1:
        return _macro("note", "The specs are equal but for the seed.")
    if not report.differences:
        return _macro("note", "A spec cannot be read, so that the specs are not compared.")
    count = len(report.groups)
    if count <= 6:
        names = [_named(number, one.name, count) for number, one in enumerate(report.groups)]
        return _settings(report.differences, names)
    # Of many specs each is a row, and what differs a column.
    rows = [
        (
            _named(number, group.name, count),
            *(_brief(one.values[number]) for one in report.differences),
        )
        for number, group in enumerate(report.groups)
    ]
    header = ("spec", *(one.path for one in report.differences))
    return _macro("table", header, rows, left=len(header), style="brief")


def _brief(value: Any) -> str:
    text = _ABSENT if value is None else dump_value(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _runs(report: Report) -> str:
    keys = [key for key in METRICS if any(key in run.metrics for run in report.runs)]
    of_group = {n: number for number, group in enumerate(report.groups) for n in group.runs}
    rows = []
    for number, run in enumerate(report.runs):
        source = "result.json" if run.result else "best of metrics.jsonl"
        rows.append(
            (
                _named(of_group[number], Path(run.path).resolve().name, len(report.groups)),
                run.state,
                _data(run.seed, "count", "spec.yaml: train.seed"),
                *(_data(run.metrics.get(key), "percent", f"{source}: {key}") for key in keys),
                _data(run.step, "count", "result.json: steps" if run.result else "last step"),
                _data(run.seconds, "seconds", _seconds_source(run)),
            )
        )
    header = ("run", "state", "seed", *(METRICS[key] for key in keys), "steps", "time")
    commands = [(run.command, False) for run in report.runs]
    told = "The commands that repeat these runs"
    return _joined(_macro("table", header, rows, left=2), _macro("listing", commands, told))


def _network_of_runs(report: Report) -> str:
    networks = [report.runs[group.runs[0]].network for group in report.groups]
    if any(one is None for one in networks) or any(one != networks[0] for one in networks):
        return ""
    return _network(report.runs[0])


def _cost_of_runs(report: Report) -> str:
    rows = []
    for number, group in enumerate(report.groups):
        runs = [report.runs[member] for member in group.runs]
        cost = runs[0].cost
        peak = max(run.cost.peak_memory or 0 for run in runs) or None
        shares = [run.cost.time for run in runs if run.cost.time is not None]
        batches = sum(one.batches for one in shares) / len(shares) if shares else None
        told = "computed from metrics.jsonl: seconds, images_per_second, data_share"
        rows.append(
            (
                _named(number, group.name, len(report.groups)),
                _data(cost.parameters, "count", "result.json: parameters"),
                _data(cost.macs, "count", "result.json: macs"),
                _data(cost.depth, "count", "counted from spec.yaml: depth"),
                _data(cost.expected_memory, "size", "estimate of memory"),
                _data(peak, "size", "result.json: peak_memory"),
                _data(batches, "share", told),
            )
        )
    header = (
        "spec",
        "parameters",
        "MACs",
        "depth",
        "memory, expected",
        "memory, at most",
        "time for batches",
    )
    return _macro("table", header, rows)


def _environment_of_runs(report: Report) -> str:
    """Environment that all runs share, and what differs among them."""
    found = [run.environment for run in report.runs if run.environment is not None]
    if not found:
        return _macro("note", "env.json of no run can be read.")
    values: dict[str, list[str]] = {}
    for env in found:
        runtime = {
            name.replace("_", " "): value
            for name, value in env.runtime
            if name != "device" and value is not None
        }
        told = {"device": env.device, "platform": env.platform, **runtime, **env.versions}
        for name, value in told.items():
            values.setdefault(name, []).append(str(value))
    return _macro(
        "facts", [(name, ", ".join(dict.fromkeys(some))) for name, some in values.items()]
    )
