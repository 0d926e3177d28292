"""Group of runs on the command line: ``train --seeds``, and what a sweep shares with it."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from resnet_builder.cli.console import note, show, show_json, table
from resnet_builder.cli.launcher import is_worker
from resnet_builder.cli.options import Invocation
from resnet_builder.cli.result import run_row
from resnet_builder.errors import Stopped, UsageError, counted, first_line, percent, points

if TYPE_CHECKING:
    from resnet_builder.launch.check import TrialCheck
    from resnet_builder.launch.group import Group
    from resnet_builder.launch.plan import Plan
    from resnet_builder.runs.group import GroupRecord, SettingSummary
    from resnet_builder.runs.status import RunStatus

F = TypeVar("F", bound=Callable[..., Any])

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 1_024),
    metavar="N",
    help="Train N runs at the same time. They share the cores.  [default: 1]",
)


def seeds_options(command: F) -> F:
    """Add ``--seeds`` and ``--jobs`` to ``train``; with ``--seeds``, a group is trained."""

    @wraps(command)
    def with_seeds(*args: Any, seeds: str | None, jobs: int | None, **options: Any) -> Any:
        if seeds is not None:
            return _train_seeds(seeds=seeds, jobs=jobs or 1, **options)
        if jobs is not None:
            raise click.UsageError("--jobs needs --seeds: one run is one job")
        return command(*args, **options)

    what = "Train one run for each of these seeds, such as 0-4 or 0,3,7, in one directory. The "
    what += "same line continues them after a stop."
    decorated: Any = click.option("--seeds", metavar="SEEDS", help=what)(jobs_option(with_seeds))
    return cast(F, decorated)


def _train_seeds(
    *,
    spec: str | None,
    out: Path | None,
    resume: str | None,
    seeds: str,
    jobs: int,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    data_dir: Path | None,
    skip_bad: bool,
    allow_spec_change: bool,
    allow_inexact: bool,
    no_report: bool,
    nproc: int | None,
    as_json: bool,
) -> None:
    """Train a spec with several seeds."""
    from resnet_builder.launch.sweep_file import parse_seeds

    if spec is None:
        raise click.UsageError(
            "--seeds needs a SPEC; to continue its runs, repeat the line that started them"
        )
    if resume:
        raise click.UsageError(
            "--seeds resumes its runs by itself: repeat the line without --resume"
        )
    try:
        wanted = parse_seeds(seeds)
    except ValueError as error:
        raise click.UsageError(f"--seeds {seeds}: {error}") from error

    from resnet_builder.launch.plan import plan_seeds

    overrides += ("run.report=false",) if no_report else ()
    plan = plan_seeds(spec, wanted, overrides=overrides, fragments=fragments, data=data)
    for notice in plan.trials[0].base.draft().notices:
        note(notice)
    words = [*(["--allow-spec-change"] * allow_spec_change), *(["--allow-inexact"] * allow_inexact)]
    train_group(
        plan,
        out or Path("runs") / f"{plan.name}-seeds",
        jobs=jobs,
        plugins=plugins,
        data_dir=data_dir,
        skip_bad=skip_bad,
        nproc=nproc,
        more=words,
        allow_spec_change=allow_spec_change,
        as_json=as_json,
    )


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Group of runs that was trained.

    Attributes:
        path: Its directory.
        settings: Results of each setting, the best first.
        runs: Each run, a :class:`~resnet_builder.runs.status.RunStatus`.
    """

    path: Path
    settings: "tuple[Any, ...]"
    runs: "tuple[Any, ...]"


def train_group(
    plan: "Plan",
    path: Path,
    *,
    jobs: int,
    plugins: tuple[str, ...],
    data_dir: Path | None,
    skip_bad: bool,
    nproc: int | None,
    more: Sequence[str] = (),
    allow_spec_change: bool = False,
    as_json: bool = False,
) -> None:
    """Check all trials of a plan, train them, and print what they came to.

    Args:
        plan: The plan.
        path: Directory of the group.
        jobs: Number of runs at a time.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets.
        skip_bad: Whether images that cannot be decoded are left out.
        nproc: Processes of each run.
        more: Further arguments of ``train``, of each run.
        allow_spec_change: Whether the recipe may be another than that of the group.
        as_json: Whether the result is printed as JSON.
    """
    if is_worker():
        raise UsageError(
            "torchrun trains one run; start this line without torchrun, and with --nproc N"
        )

    from resnet_builder.cli.group_progress import display
    from resnet_builder.launch.check import check_trials
    from resnet_builder.launch.group import check_group, open_group
    from resnet_builder.launch.search import Search, import_optuna
    from resnet_builder.launch.workers import Options, Queue, run_trials, share_of_threads
    from resnet_builder.reports.completion import complete_run
    from resnet_builder.runs.group import REPORT

    if plan.method != "grid":
        import_optuna()
    check_group(path, plan, allow_changes=allow_spec_change)
    checks = check_trials(plan, plugins=plugins, data_dir=data_dir, processes=nproc or 1)
    is_free = all(check.spec.run.threads == "auto" for check in checks)
    words = [
        *(word for plugin in plugins for word in ("--plugin", plugin)),
        *(() if data_dir is None else ("--data-dir", str(data_dir))),
        *(["--skip-bad"] * skip_bad),
        *(() if nproc is None else ("--nproc", str(nproc))),
        *more,
    ]
    options = Options(
        tuple(words),
        share_of_threads(jobs, nproc or 1) if is_free else None,
        nproc or 1,
        trains_on=allow_spec_change,
    )
    invocation = cast(Invocation, click.get_current_context().find_object(Invocation))
    with open_group(path, plan, _warn, allow_changes=allow_spec_change) as group:
        note(f"directory: {path}")
        queue = Search(plan, group, _warn) if plan.method != "grid" else Queue(plan.trials)
        with display(plan.num_runs) as shown, invocation.signals.polled() as should_stop:
            try:
                code = run_trials(
                    group, queue, options, jobs=jobs, display=shown, should_stop=should_stop
                )
            except Stopped as error:
                again = shlex.join(["resnet-build", *invocation.arguments])
                raise Stopped(f"{error}; to continue: {again}") from error
        finished = _show_group(group, plan, plugins, as_json=as_json)
        with_report = all(check.spec.run.report for check in checks)
        for run in finished:
            complete_run(run, plugins, data_dir, _warn, with_report=with_report)
        if finished and with_report:
            _write_report(finished, path / REPORT, plugins)
    if code:
        raise click.exceptions.Exit(code)


def _warn(message: str) -> None:
    note(f"warning: {message}")


def _show_group(
    group: "Group", plan: "Plan", plugins: tuple[str, ...], *, as_json: bool
) -> list[Path]:
    """Print the results; return the finished runs, those of the best setting first."""
    from resnet_builder.runs.group import group_runs, summarize_group

    runs = group_runs(group.path, group.record)
    summaries = summarize_group(group.record, runs)
    if as_json:
        show_json(GroupResult(group.path, tuple(summaries), tuple(runs)))
    elif plan.kind == "seeds":
        _show_seeds(runs, summaries)
    else:
        _show_sweep(group.record, runs, summaries)
    for one in runs:
        if one.state in {"failed", "unreadable"} and one.error is not None:
            note(f"{one.path}: {one.error}")
    if len({repr((one.spec, one.settings)) for one in summaries}) < len(summaries):
        _warn(
            "the images changed between these runs (data.json: fingerprint), so one setting has "
            "several lines; to compare the settings, train all runs again, with another --out"
        )
    if summaries and not as_json:
        _show_next(group, plan, summaries, plugins)
    return [group.path / name for summary in summaries for name in summary.runs]


def _write_report(runs: Sequence[Path], out: Path, plugins: tuple[str, ...]) -> None:
    """Write the report; what goes wrong is a warning, as the runs are finished."""
    from resnet_builder.reports.page import write_report

    try:
        write_report(runs, out, plugins=plugins)
    except Exception as error:  # the runs are finished, whatever goes wrong here
        _warn(f"the report was not written: {first_line(error)}")
    else:
        note(f"report: {out}")


def _show_seeds(runs: Sequence["RunStatus"], summaries: Sequence["SettingSummary"]) -> None:
    header = ("run", "state", "step", "seed", "time", "validation", "test", "difference")
    show(*table(header, [run_row(one, one.path.name) for one in runs], left=2))
    for one in summaries:
        show(*_statistics(one))


def _statistics(one: "SettingSummary") -> Iterator[str]:
    """Lines of the means of a setting."""
    found = {"validation": (one.val_mean, one.val_std), "test": (one.test_mean, one.test_std)}
    for split, (mean, std) in found.items():
        if mean is not None:
            spread = "" if std is None else f", sample standard deviation {100 * std:.2f}"
            line = f"{split} {one.metric}: mean {percent(mean)}{spread}, n = {one.n}"
            if split == "test" and one.published is not None:
                line += f"; published {percent(one.published)} ({points(mean - one.published)})"
            yield line


def _show_sweep(
    record: "GroupRecord", runs: Sequence["RunStatus"], summaries: Sequence["SettingSummary"]
) -> None:
    from resnet_builder.launch.plan import short_names

    names = short_names(tuple(record.axes))
    metric = summaries[0].metric if summaries else "top-1"
    header = (*names.values(), "n", f"validation {metric}", "std", f"test {metric}", "std")
    rows = [
        (
            *(_short(one.settings[axis]) for axis in names),
            str(one.n),
            *(percent(one.val_mean), _spread(one.val_std)),
            *(percent(one.test_mean), _spread(one.test_std)),
        )
        for one in summaries
    ]
    if rows:
        show(*table(header, rows, left=len(names)))
    states = Counter(run.state for run in runs)
    show(f"{counted(len(runs), 'run')}: " + ", ".join(f"{n} {one}" for one, n in states.items()))
    if summaries and any(one.val_mean is None for one in summaries):
        note(
            "the settings are not ranked, as there are no validation images; the rows are in the "
            "order of the axes; to rank them, set training images aside: --set data.validation=0.1"
        )


def _spread(std: float | None) -> str:
    return "" if std is None else f"{100 * std:.2f}"


def _short(value: object) -> str:
    from resnet_builder.spec.dump import dump_value

    text = f"{value:.4g}" if isinstance(value, float) else dump_value(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _show_next(
    group: "Group",
    plan: "Plan",
    summaries: Sequence["SettingSummary"],
    plugins: tuple[str, ...],
) -> None:
    """Print what can be done with the best setting and its best run, and with the whole group."""
    best = summaries[0]
    if plan.kind == "sweep" and best.val_mean is None:
        return
    more = [word for plugin in plugins for word in ("--plugin", plugin)]
    note("next:")
    if plan.kind == "sweep":
        words = ["resnet-build", "train", *plan.best_arguments(group.path, best), *more]
        if best.n == 1:
            note(f"  {shlex.join([*words, '--seeds', '0-4'])}")
    run = best.runs[0]
    if best.n > 1 and plan.kind == "sweep":
        from resnet_builder.runs.directory import RunDirectory
        from resnet_builder.runs.status import run_status

        accuracies = {
            name: run_status(RunDirectory(group.path / name)).val_top1 or 0.0 for name in best.runs
        }
        run = max(accuracies, key=lambda name: accuracies[name])
    chosen = str(group.path / run)
    for line in (
        ["evaluate", chosen, *more],
        ["publish", chosen, *more, "--to", "DIR"],
        ["plot", str(group.path), *more, "-o", "curves.pdf"],
    ):
        note(f"  {shlex.join(['resnet-build', *line])}")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """Run of a plan, or of a search one at the ends of its axes.

    Attributes:
        name: Name of its directory.
        state: State of the run there, or ``new``.
        parameters: Learnt parameters.
        macs: Multiply-adds for one image.
        length: Length of the training.
        overrides: What is laid over the base spec.
    """

    name: str
    state: str
    parameters: int
    macs: int
    length: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedRuns:
    """Plan of a group: number of its runs, and the runs that are known."""

    num_runs: int
    runs: tuple[PlannedRun, ...]


def show_plan(plan: "Plan", checks: Sequence["TrialCheck"], path: Path, *, as_json: bool) -> None:
    """Print the trials of a plan, and what they take, without training them."""
    from resnet_builder.runs.directory import RunDirectory
    from resnet_builder.runs.status import run_status

    by_setting = {repr((one.trial.base.name, one.trial.settings)): one for one in checks}
    planned, costs, seconds = [], [], {}
    for trial in plan.trials:
        check = by_setting[repr((trial.base.name, trial.settings))]
        status = run_status(RunDirectory(path / trial.name))
        state = status.state if (path / trial.name).exists() else "new"
        counts = check.parameters, check.macs
        planned.append(PlannedRun(trial.name, state, *counts, check.length, trial.overrides))
        if check.cost is not None:
            costs.append(check.cost)
            if status.result is not None:
                seconds[check.cost] = status.result.seconds
    if as_json:
        show_json(PlannedRuns(plan.num_runs, tuple(planned)))
        return
    header = ("run", "state", "parameters", "MACs", "length")
    rows = [
        (one.name, one.state, f"{one.parameters:,}", f"{one.macs:,}", one.length) for one in planned
    ]
    if plan.method == "grid":
        show(*table(header, rows, left=2))
        line = counted(len(rows), "run")
        if len(costs) == len(rows) and costs[0]:
            line += f", about {sum(costs) / costs[0]:.1f} times the computation of the first"
            if seconds:
                cost, time = next(iter(seconds.items()))
                line += f", {timedelta(seconds=round(sum(costs) / cost * time))} of training here"
        show(line)
    else:
        show(f"{plan.num_runs} trials by {plan.method}; at the ends of the axes:")
        show(*table(header[:1] + header[2:], [(row[0], *row[2:]) for row in rows]))
