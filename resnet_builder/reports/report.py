"""Report: the numbers of runs, read from their directories.

The page, and ``--format md``, ``csv`` and ``json``, show these numbers and no others. ``--format
json`` writes the dataclasses as they are: their fields are its keys.
"""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from resnet_builder.builder import build_on_meta
from resnet_builder.errors import CheckpointError, ResnetBuilderError, UsageError, dotted
from resnet_builder.experiment import Experiment
from resnet_builder.memory import estimate_training
from resnet_builder.parts import resolve
from resnet_builder.plugins import import_plugins
from resnet_builder.registry import described
from resnet_builder.reports.diagnostics import Fragment, read_diagnostics
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import (
    Change,
    DataRecord,
    EnvRecord,
    MetricsLog,
    MetricsRow,
    ResultRecord,
    is_cosmetic,
    read_changes,
)
from resnet_builder.runs.seeds import group_by_spec, mean_and_std, without_seed
from resnet_builder.runs.status import LogLine, RunStatus, read_log, run_status
from resnet_builder.spec.bundled import bundled_names
from resnet_builder.spec.diagnostics import Positions
from resnet_builder.spec.differences import spec_differences
from resnet_builder.spec.dump import dump_value, plain_data
from resnet_builder.spec.load import load_spec, load_spec_text
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.yaml_source import document_of
from resnet_builder.summary import Summary, summarize
from resnet_builder.system import open_regular

T = TypeVar("T")

METRICS = {
    "test.top1": "test top-1",
    "test.top5": "test top-5",
    "test.map": "test mAP",
    "val.top1": "validation top-1",
    "val.map": "validation mAP",
}
"""Metrics of a result, by their keys in ``result.json``."""

_DISPLAYS = ("report", "log")  # keys of `run` that only show a training

_LOG_BYTES = 2**20
_MAX_SETTINGS = 6  # changes of a bundled spec that a command spells out
_DROP = 0.7  # a learning rate that falls below this fraction between two evaluations has dropped
_DROPPING = ("multistep", "step", "plateau")


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of a spec that differs from another spec's.

    Attributes:
        path: Place in the specs.
        values: Plain data in each spec; ``None`` where it is absent.
    """

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a training: a start, a stop, a warning, a failure, a change of the spec.

    Attributes:
        time: Time, in UTC.
        text: One line.
        step: Step that it stands for, if it says so.
    """

    time: str
    text: str
    step: int | None = None


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Where the training time went, as fractions of it.

    Attributes:
        batches: Reading and augmenting batches, and waiting for them.
        steps: The training steps themselves.
        other: Evaluations and checkpoints.
    """

    batches: float
    steps: float
    other: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Size of the network, and the memory and time that its training took.

    Attributes:
        parameters: Learnt parameters.
        macs: Multiply-adds for one image.
        depth: Depth, as in the names of He et al. 2015.
        expected_memory: Bytes that a training process was expected to take, without the program.
        peak_memory: Bytes that it took at most: on CUDA tensors on the device, otherwise all of it.
        time: Where the training time went.
    """

    parameters: int | None = None
    macs: int | None = None
    depth: int | None = None
    expected_memory: int | None = None
    peak_memory: int | None = None
    time: TimeShares | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation, or a report of the training between two of them.

    Attributes:
        epoch: Passes over the training images, with a fraction; steps, if that is not known.
        row: Line of ``metrics.jsonl``.
    """

    epoch: float
    row: MetricsRow


@dataclass(frozen=True, slots=True)
class RunReport:
    """Report of one run. What a missing or damaged file would tell is absent.

    Attributes:
        path: Run directory.
        name: Name of the spec; of the directory, if the spec cannot be read.
        state: State of the run, as ``list runs`` prints it.
        error: Reason of a failure.
        step: Steps done.
        total_steps: Steps of the recipe.
        seed: Seed of the recipe.
        seconds: Training time so far.
        command: Command that repeats the run.
        origin: Name of the bundled spec that has the name of this one.
        changes: Values that differ from the origin's.
        result: Contents of ``result.json``.
        history: Rows of ``metrics.jsonl``, with their epochs.
        resumed_at: Steps from which the run was resumed.
        rate_drops: Steps before which the learning rate was lowered.
        cost: Size of the network, memory and time.
        environment: Contents of ``env.json``.
        data: Contents of ``data.json``.
        trail: Starts, stops, warnings, failures and changes, in order.
        problems: Files that cannot be used, one line each.
        predictions: Accuracies of the classes, confusion, calibration and the like, by name; only
            of a report of one run.
    """

    path: str
    name: str
    state: str
    error: str | None
    step: int | None
    total_steps: int | None
    seed: int | None
    seconds: float | None
    command: str
    origin: str | None
    changes: tuple[Setting, ...]
    result: ResultRecord | None
    history: tuple[Point, ...]
    resumed_at: tuple[int, ...]
    rate_drops: tuple[int, ...]
    cost: Cost
    environment: EnvRecord | None
    data: DataRecord | None
    trail: tuple[Event, ...]
    problems: tuple[str, ...]
    predictions: dict[str, Any] = field(default_factory=dict)
    text: Annotated[str, Field(exclude=True)] = field(default="", repr=False)
    spec: Annotated[Spec | None, Field(exclude=True)] = field(default=None, repr=False)
    network: Annotated[Summary | None, Field(exclude=True)] = field(default=None, repr=False)
    fragments: Annotated[tuple[Fragment, ...], Field(exclude=True)] = field(default=(), repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies of the selected weights; of a run without a result, the best until now."""
        if self.result is not None:
            found = self.result.model_dump(by_alias=True, include=set(map(_field, METRICS)))
            return {key: found[key] for key in METRICS if found.get(key) is not None}
        rows = [point.row for point in self.history if point.row.event == "validation"]
        best: dict[str, float] = {}
        for key in ("val.top1", "val.map"):
            values = [value for row in rows if (value := getattr(row, _field(key))) is not None]
            best |= {key: max(values)} if values else {}
        return best

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return any(key.endswith(".map") for key in self.metrics)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over runs.

    Attributes:
        mean: Mean.
        std: Standard deviation of the sample (n - 1); ``None`` of one run.
        n: Number of runs.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Mean and standard deviation of at least one value."""
        return cls(*mean_and_std(values), len(values))


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one spec on the same images, which differ in their seeds.

    Attributes:
        name: Values that tell the group from the others, or the name of the spec.
        runs: Numbers of the runs in the report, from 0.
        distinct: Those of them whose seeds differ: one run of each seed, a finished one if any is.
        finished: How many of these are finished.
        metrics: Spread of each metric that all these finished runs have, and of ``seconds`` and
            ``images_per_second``.
    """

    name: str
    runs: tuple[int, ...]
    distinct: tuple[int, ...]
    finished: int
    metrics: dict[str, Spread]


@dataclass(frozen=True, slots=True)
class Report:
    """Report of runs.

    Attributes:
        runs: The runs, in the order given.
        groups: The runs by their specs, seeds apart.
        differences: Values that differ between the specs of the groups, one for each group.
    """

    runs: tuple[RunReport, ...]
    groups: tuple[Group, ...]
    differences: tuple[Setting, ...]

    @property
    def main_metric(self) -> str | None:
        """Key of the metric that the report is about: of the test images, if any run has it."""
        found = {key for run in self.runs for key in run.metrics}
        order = ("test.map", "test.top1", "val.map", "val.top1")
        return next((key for key in order if key in found), None)


def read_report(
    runs: Sequence[Path], *, plugins: Sequence[str] = (), data_dir: Path | None = None
) -> Report:
    """Read the report of one run or several from their directories.

    A file that is missing, damaged or of a plugin without consent leaves out what it would tell,
    and says so in ``problems``.

    Args:
        runs: Run directories, finished or not.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets, for the images that the page of one run shows.

    Raises:
        UsageError: A directory is no run, or there is none.
    """
    if not runs:
        raise UsageError("name at least one run directory")
    directories = [RunDirectory.open(path) for path in runs]
    built: dict[str, tuple[Experiment, Summary]] = {}
    found = tuple(_read_run(run, plugins, built) for run in directories)
    if len(found) == 1:
        pieces = read_diagnostics(directories[0].path, plugins=plugins, data_dir=data_dir)
        numbers = {one.name: one.numbers for one in pieces if one.numbers is not None}
        found = (replace(found[0], predictions=numbers, fragments=tuple(pieces)),)
    groups = group_by_spec(
        [None if run.spec is None else plain_data(run.spec) for run in found],
        [None if run.data is None else run.data.fingerprint for run in found],
    )
    distinct = [_distinct(found, members) for members in groups]
    found = _with_repeats(found, groups, distinct)
    specs = [found[members[0]].spec for members in groups]
    known = [spec for spec in specs if spec is not None]
    differences: tuple[Setting, ...] = ()
    if len(known) == len(groups) > 1:
        differences = _differences(*known, ignored=["train.seed"])
        differences += _data_differences(found, groups)
    names = _group_names(found, groups, differences)
    return Report(
        runs=found,
        groups=tuple(
            Group(
                name,
                members,
                different,
                sum(found[number].result is not None for number in different),
                _spreads([found[number] for number in different]),
            )
            for name, members, different in zip(names, groups, distinct, strict=True)
        ),
        differences=differences,
    )


# ---- one run -------------------------------------------------------------------------------------


def _read_run(
    run: RunDirectory, plugins: Sequence[str], built: dict[str, tuple[Experiment, Summary]]
) -> RunReport:
    problems: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (ResnetBuilderError, OSError) as error:
            problems.append(str(error).partition("\n")[0])
            return None

    status = run_status(run)
    text = attempt(lambda: _text_of(run.spec)) or ""
    spec = attempt(lambda: load_spec_text(text, name=str(run.spec))) if text else None
    data = attempt(lambda: DataRecord.read(run.data))
    env = attempt(lambda: EnvRecord.read(run.env))
    rows = attempt(MetricsLog(run).read) or []
    result = status.result
    if run.is_finished and result is None:
        attempt(lambda: ResultRecord.read(run.result))
    found = None if spec is None else attempt(lambda: _build(spec, plugins, built))
    experiment, network = found or (None, None)
    log = read_log(run.log, _LOG_BYTES)
    length = _steps_per_epoch(spec, data)
    seed = spec.train.seed if spec is not None and spec.train is not None else status.seed
    origin, changes = (None, ()) if spec is None else _origin(spec)
    return RunReport(
        path=str(run.path),
        name=run.path.resolve().name if spec is None else spec.name,
        state=status.state,
        error=status.error if status.state == "failed" else None,
        step=status.step,
        total_steps=status.total_steps,
        seed=seed,
        seconds=status.seconds,
        command=_command(run, spec, origin, changes, env),
        origin=origin,
        changes=changes,
        result=result,
        history=tuple(Point(row.step / length if length else row.step, row) for row in rows),
        resumed_at=tuple(line.start for line in log if line.start),
        rate_drops=_rate_drops(spec, rows),
        cost=_cost(status, rows, spec, env, network, experiment),
        environment=env,
        data=data,
        trail=_trail(log, attempt(lambda: read_changes(run)) or []),
        problems=tuple(dict.fromkeys(problems)),
        text=text,
        spec=spec,
        network=network,
    )


def _build(
    spec: Spec, plugins: Sequence[str], built: dict[str, tuple[Experiment, Summary]]
) -> tuple[Experiment, Summary]:
    """Build the network of a resolved spec on meta, once for all seeds.

    The spec is that of a run, which was checked when the run began; its file or the code of a
    plugin may have changed since.
    """
    import_plugins(spec.plugins, plugins, Positions(document_of({}).root))
    key = repr(without_seed(plain_data(spec)))
    if key not in built:
        try:
            resolved = resolve(spec)
            built[key] = Experiment(resolved, build_on_meta(resolved.model)), summarize(resolved)
        except ResnetBuilderError:
            raise
        except Exception as error:
            raise CheckpointError(f"spec.yaml cannot be built: {described(error)}") from error
    return built[key]


def _text_of(path: Path) -> str:
    with open_regular(path) as file:
        return file.read().decode("utf-8", "replace")


def _field(key: str) -> str:
    """Name of the field of a key: ``val_top1`` of ``val.top1``."""
    return key.replace(".", "_")


def _steps_per_epoch(spec: Spec | None, data: DataRecord | None) -> int:
    if spec is None or spec.train is None or data is None:
        return 0
    return data.images.get("train", 0) // spec.train.batch_size


def _rate_drops(spec: Spec | None, rows: Sequence[MetricsRow]) -> tuple[int, ...]:
    """Steps of the evaluations after which a schedule by steps lowered the learning rate."""
    if spec is None or spec.train is None or spec.train.schedule.type not in _DROPPING:
        return ()
    rates = [(row.step, row.lr) for row in rows if row.lr is not None]
    return tuple(
        before[0]
        for before, after in pairwise(rates)
        if before[1] and after[1] is not None and after[1] < _DROP * before[1]
    )


def _cost(
    status: RunStatus,
    rows: Sequence[MetricsRow],
    spec: Spec | None,
    env: EnvRecord | None,
    network: Summary | None,
    experiment: Experiment | None,
) -> Cost:
    result = status.result
    expected = None
    if experiment is not None and env is not None:
        runtime = env.runtime
        estimate = estimate_training(experiment, runtime.precision, processes=runtime.world_size)
        # A GPU need not hold the images.
        expected = estimate.memory - (estimate.images if runtime.device != "cpu" else 0)
    batch_size = spec.train.batch_size if spec is not None and spec.train is not None else None
    return Cost(
        parameters=result.parameters if result else network.parameters if network else None,
        macs=result.macs if result else network.macs if network else None,
        depth=None if network is None else network.depth,
        expected_memory=expected,
        peak_memory=None if result is None else result.peak_memory,
        time=None if batch_size is None else _time_shares(rows, batch_size),
    )


def _time_shares(rows: Sequence[MetricsRow], batch_size: int) -> TimeShares | None:
    """Shares of the training time, from the reports of the training."""
    reports = [row for row in rows if row.event == "train"]
    batches = steps = step = 0.0
    for row in reports:
        if row.images_per_second and row.data_share is not None:
            seconds = (row.step - step) * batch_size / row.images_per_second
            batches += seconds * row.data_share
            steps += seconds * (1 - row.data_share)
        step = row.step
    total = reports[-1].seconds if reports else None
    if not total or not batches + steps:
        return None
    total = max(total, batches + steps)
    return TimeShares(batches / total, steps / total, 1 - (batches + steps) / total)


def _trail(log: Sequence[LogLine], changes: Sequence[Change]) -> tuple[Event, ...]:
    """Lines of the log but its evaluations and checkpoints, and the changes, by time."""
    events = [
        Event(line.time, line.text, line.start)
        for line in log
        if line.text and not line.text.startswith("step ")
    ]
    events += [Event(change.time, f"changed: {change}") for change in changes]
    return tuple(sorted(events, key=lambda event: event.time))


# ---- where a spec comes from ---------------------------------------------------------------------


@cache
def _bundled(name: str) -> Spec:
    return resolve(load_spec(name))


def _origin(spec: Spec) -> tuple[str | None, tuple[Setting, ...]]:
    """Bundled spec of the same name, and what differs from it."""
    if spec.name not in bundled_names():
        return None, ()
    try:
        return spec.name, _differences(_bundled(spec.name), spec)
    except ResnetBuilderError:
        return None, ()


def _differences(*specs: Spec, ignored: Sequence[str] = ()) -> tuple[Setting, ...]:
    """Values that differ, but for those that say nothing about a result."""
    passed_over = ("expect", "published", *(f"run.{key}" for key in _DISPLAYS), *ignored)
    return tuple(
        Setting(dotted(found.path), tuple(map(plain_data, found.values)))
        for found in spec_differences(*specs)
        if not dotted(found.path).startswith(passed_over)
    )


def _command(
    run: RunDirectory,
    spec: Spec | None,
    origin: str | None,
    changes: Sequence[Setting],
    env: EnvRecord | None,
) -> str:
    """Command that repeats a run: of its bundled spec, if few words tell the changes."""
    source, overrides = str(run.spec), []
    if spec is not None and origin is not None and len(changes) <= _MAX_SETTINGS:
        settings = [(change.path, change.values[1]) for change in changes]
        given = [
            f"{path.replace('[', '.').replace(']', '')}={dump_value(value)}"
            for path, value in settings
        ]
        if _repeats(origin, given, spec):
            source, overrides = origin, given
    words = ["resnet-build", "train", source]
    for override in overrides:
        key, _, value = override.partition("=")
        words += ["--seed", value] if key == "train.seed" else ["--set", override]
    words += [word for plugin in (spec.plugins if spec else ()) for word in ("--plugin", plugin)]
    if env is not None and env.runtime.world_size > 1:
        words += ["--nproc", str(env.runtime.world_size)]
    return shlex.join(words)


def _repeats(origin: str, overrides: Sequence[str], spec: Spec) -> bool:
    """Whether a bundled spec with some values set is the spec, as far as bits depend on it."""
    try:
        again = resolve(load_spec(origin, overrides=overrides))
    except (ResnetBuilderError, ValueError):  # the spec was edited
        return False
    return all(is_cosmetic(dotted(one.path)) for one in spec_differences(again, spec))


# ---- several runs --------------------------------------------------------------------------------


def _distinct(runs: Sequence[RunReport], members: Sequence[int]) -> tuple[int, ...]:
    """Numbers of one run of each seed: copies of a run say nothing about its spread."""
    chosen: dict[int | None, int] = {}
    for number in members:
        other = chosen.setdefault(runs[number].seed, number)
        if runs[other].result is None and runs[number].result is not None:
            chosen[runs[number].seed] = number
    return tuple(sorted(chosen.values()))


def _with_repeats(
    runs: Sequence[RunReport],
    groups: Sequence[tuple[int, ...]],
    distinct: Sequence[tuple[int, ...]],
) -> tuple[RunReport, ...]:
    """Runs, of which those that repeat a seed of their group say so among their problems."""
    told = list(runs)
    for members, different in zip(groups, distinct, strict=True):
        by_seed = {runs[number].seed: runs[number] for number in different}
        for number in set(members) - set(different):
            run = runs[number]
            problem = (
                f"it has the spec and the seed {run.seed} of {by_seed[run.seed].path}: "
                "means leave it out"
            )
            told[number] = replace(run, problems=(*run.problems, problem))
    return tuple(told)


def _data_differences(
    runs: Sequence[RunReport], groups: Sequence[tuple[int, ...]]
) -> tuple[Setting, ...]:
    """Digests of the images, if they alone tell two groups apart."""
    members = [runs[numbers[0]] for numbers in groups]
    specs = [plain_data(run.spec) for run in members if run.spec is not None]
    if len(group_by_spec(specs)) == len(specs):
        return ()
    digests = [None if run.data is None else run.data.fingerprint[:12] for run in members]
    return (Setting("data fingerprint", tuple(digests)),)


def _group_names(
    runs: Sequence[RunReport], groups: Sequence[tuple[int, ...]], differences: Sequence[Setting]
) -> list[str]:
    """Name of each group: the values of up to two keys that differ, else of its spec or run."""
    names = [runs[members[0]].name for members in groups]
    if len(set(names)) == len(names):
        return names
    told = [one for one in differences if one.path != "name"]
    if 0 < len(told) <= 2:
        return [
            ", ".join(f"{one.path.rpartition('.')[2]} {_short(one.values[n])}" for one in told)
            for n in range(len(groups))
        ]
    return [Path(runs[members[0]].path).name for members in groups]


def _short(value: Any) -> str:
    """Value in a few words: of a part its name."""
    if isinstance(value, dict) and "type" in value:
        value = value["type"]
    return "none" if value is None else dump_value(value)


def _spreads(runs: Sequence[RunReport]) -> dict[str, Spread]:
    finished = [run for run in runs if run.result is not None]
    found = [run.metrics for run in finished or runs]
    spreads = {
        key: Spread.of([one[key] for one in found])
        for key in METRICS
        if found and all(key in one for one in found)
    }
    results = [run.result for run in runs if run.result is not None]
    for key in ("seconds", "images_per_second") if results else ():
        values = [getattr(result, key) for result in results]
        if all(map(math.isfinite, values)):
            spreads[key] = Spread.of(values)
    return spreads
