"""Group of runs: a directory of runs that one command line trains, such as the seeds of a spec.

Each run is an ordinary run directory directly below it. ``group.json`` says which runs there are to
be, and by what they differ.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from resnet_builder.errors import UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import Count, Record, data_fingerprint
from resnet_builder.runs.seeds import mean_and_std
from resnet_builder.runs.status import RunStatus, run_status

RECORD = "group.json"
SPECS = "specs"
REPORT = "report.html"

GroupKind = Literal["seeds", "sweep"]
Method = Literal["grid", "random", "tpe"]


class GroupRun(BaseModel):
    """Run of a group, begun or not.

    Attributes:
        name: Name of its directory.
        spec: Name of the spec that it is trained with, below ``specs/``, without ``.yaml``.
        settings: Values by which it differs from that spec, besides the seed, by their axes.
        seed: Seed.
        ended: ``failed`` or ``pruned``, if it ended so; what else became of it, its files tell.
        error: Reason of a failure.
    """

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]  # it is below the group's directory
    spec: str
    settings: dict[str, Any] = Field({})
    seed: Count
    ended: Literal["failed", "pruned"] | None = None
    error: str | None = None


class GroupRecord(Record):
    """``group.json``: the runs of a group, in the order of their plan.

    Attributes:
        kind: Seeds of one spec, or a sweep.
        name: Name of the spec, or of the sweep.
        method: How settings are chosen.
        axes: Values of each axis: a list, or a mapping with ``low`` and ``high``.
        overrides: What is laid over every spec, as ``--set`` and flags.
        search: Further settings of a search, such as the number of trials.
        runs: The runs.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    kind: GroupKind
    name: str
    method: Method = "grid"
    axes: dict[str, Any] = Field({})
    overrides: tuple[str, ...] = ()
    search: dict[str, Any] = Field({})
    runs: tuple[GroupRun, ...] = ()


@dataclass(frozen=True, slots=True)
class SettingSummary:
    """Results of the finished runs that differ by their seeds alone.

    Attributes:
        spec: Name of the spec.
        settings: Values by which it differs from the spec.
        runs: Names of the runs.
        n: Number of the runs.
        metric: ``top-1``; or ``mAP``, where images have several labels.
        val_mean: Mean accuracy on the validation images.
        val_std: Its sample standard deviation; ``None`` of fewer than two runs.
        test_mean: Mean accuracy on the test images.
        test_std: Its sample standard deviation.
        published: Published accuracy on the test images.
    """

    spec: str
    settings: Mapping[str, Any]
    runs: tuple[str, ...]
    n: int
    metric: str
    val_mean: float | None
    val_std: float | None
    test_mean: float | None
    test_std: float | None
    published: float | None


def is_group(path: Path) -> bool:
    """Whether a directory is a group of runs."""
    return (path / RECORD).is_file()


def find_groups(folder: Path) -> list[Path]:
    """Groups in a folder, by name."""
    return sorted(record.parent for record in folder.glob(f"*/{RECORD}"))


def read_group(path: Path) -> GroupRecord:
    """Record of a group.

    Raises:
        CheckpointError: The record is damaged.
        StorageError: It cannot be read.
        UsageError: The directory is no group, or a newer release wrote it.
    """
    if not is_group(path):
        raise UsageError(f"{path} is no group of runs: it has no {RECORD}")
    return GroupRecord.read(path / RECORD)


def group_runs(path: Path, record: GroupRecord | None = None) -> list[RunStatus]:
    """Status of each run of a group, in the order of the plan.

    Besides the states of a run, there are ``waiting`` and ``pruned``.
    """
    record = record or read_group(path)
    return [_status(path / one.name, one) for one in record.runs]


def _status(path: Path, planned: GroupRun) -> RunStatus:
    run = RunDirectory(path)
    if not run.is_published:
        state: Literal["failed", "waiting"] = "failed" if planned.ended == "failed" else "waiting"
        return RunStatus(path, state, seed=planned.seed, error=planned.error)
    found = run_status(run)
    if planned.ended == "pruned" and found.state in {"stopped", "killed"}:
        return replace(found, state="pruned")
    if planned.ended == "failed" and found.state in {"stopped", "killed"}:
        return replace(found, state="failed", error=planned.error)
    return found


def summarize_group(record: GroupRecord, runs: Sequence[RunStatus]) -> list[SettingSummary]:
    """Mean and standard deviation of each setting with a finished run.

    A setting whose runs saw different images has an entry for each of these datasets.
    The best mean on the validation images comes first. If a run has no such accuracy, the order is
    that of the plan: test images choose nothing.

    Args:
        record: Record of the group.
        runs: Status of its runs, as :func:`group_runs` tells it.
    """
    found = list(_summaries(record, runs))
    if all(one.val_mean is not None for one in found):
        found.sort(key=lambda one: -(one.val_mean or 0.0))
    return found


def _summaries(record: GroupRecord, runs: Sequence[RunStatus]) -> Iterator[SettingSummary]:
    groups: dict[str, list[tuple[GroupRun, RunStatus]]] = {}
    for planned, status in zip(record.runs, runs, strict=True):
        if status.result is not None:
            key = repr(
                (planned.spec, planned.settings, data_fingerprint(RunDirectory(status.path)))
            )
            groups.setdefault(key, []).append((planned, status))
    for members in groups.values():
        results = [status.result for _, status in members if status.result is not None]
        has_map = any(one.val_map is not None or one.test_map is not None for one in results)
        val_mean, val_std = _mean(one.val_map if has_map else one.val_top1 for one in results)
        test_mean, test_std = _mean(one.test_map if has_map else one.test_top1 for one in results)
        published = results[0].published
        yield SettingSummary(
            spec=members[0][0].spec,
            settings=members[0][0].settings,
            runs=tuple(planned.name for planned, _ in members),
            n=len(members),
            metric="mAP" if has_map else "top-1",
            val_mean=val_mean,
            val_std=val_std,
            test_mean=test_mean,
            test_std=test_std,
            published=None if published is None or has_map else published.test_top1,
        )


def _mean(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation, as far as they are known."""
    known = [value for value in values if value is not None]
    return mean_and_std(known) if known else (None, None)
