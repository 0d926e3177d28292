"""Curves of runs for figures: a metric by steps, epochs or seconds, seeds of one spec together."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_builder.errors import CheckpointError, SpecError, StorageError, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.group import is_group
from resnet_builder.runs.records import (
    DataRecord,
    MetricsLog,
    MetricsRow,
    curve_rows,
    data_fingerprint,
)
from resnet_builder.runs.seeds import group_by_spec, mean_and_std
from resnet_builder.spec.yaml_source import parse_plain
from resnet_builder.system import open_regular

Metric = Literal["error", "accuracy", "loss", "lr"]
Place = Literal["steps", "epochs", "seconds"]
Split = Literal["train", "validation", "test"]

_Values = NDArray[np.float64]

_SEED = re.compile(r"(?<=.)[,_-]?seed[=_-]?\d+$")
"""End of the name of a run directory, as ``sweep`` gives it."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Curve of one spec on one split: the mean over its runs.

    Attributes:
        split: Split of the images.
        x: Steps, epochs or seconds, in rising order.
        mean: Mean over the runs.
        std: Standard deviation over the runs (n - 1); 0 of one run.
    """

    split: Split
    x: _Values
    mean: _Values
    std: _Values


@dataclass(frozen=True, slots=True, eq=False)
class RunGroup:
    """Runs of one spec on the same images, which differ in their seeds.

    Attributes:
        name: Name of the spec; if another one has that name, of the run directory without its seed.
        runs: Run directories, one of each seed.
        curves: Curves of the training, then of the validation or test images.
    """

    name: str
    runs: tuple[Path, ...]
    curves: tuple[Curve, ...]


def find_run_directories(folders: Sequence[Path]) -> list[Path]:
    """Return run directories: those given, and all of a folder that holds runs or groups of runs.

    Raises:
        UsageError: A folder is no run and holds none.
    """
    found: list[Path] = []
    for folder in folders:
        inside = sorted(spec.parent for spec in folder.glob("*/spec.yaml"))
        inside += sorted(
            spec.parent for spec in folder.glob("*/*/spec.yaml") if is_group(spec.parents[1])
        )
        is_run = (folder / "spec.yaml").exists() or not inside
        found += [RunDirectory.open(folder).path] if is_run else inside
    return list(dict.fromkeys(found))


def read_groups(runs: Sequence[Path], *, metric: Metric, place: Place) -> list[RunGroup]:
    """Read the curves of runs. Runs whose specs differ in the seed alone become one group.

    Of several runs with the same seed, the first is in the group: copies have no spread.

    Args:
        runs: Run directories, finished or not.
        metric: Metric: ``error`` and ``accuracy`` in percent, of the first guess.
        place: Horizontal axis.

    Raises:
        CheckpointError: A file is damaged.
        StorageError: A file cannot be read.
        UsageError: A run has no such values yet.
    """
    specs = [_plain_spec(path) for path in runs]
    members = group_by_spec(specs, [data_fingerprint(RunDirectory(path)) for path in runs])
    names = [str(specs[first].get("name")) for first, *_ in members]
    groups = []
    for numbers, name in zip(members, names, strict=True):
        one_of_each = {_seed_of(specs[number]): number for number in reversed(numbers)}
        paths = [runs[number] for number in sorted(one_of_each.values())]
        if names.count(name) > 1:
            name = _SEED.sub("", paths[0].resolve().name)
        rows = [list(_points(path, metric, place)) for path in paths]
        curves = [
            curve for split in ("train", "validation", "test") for curve in _curve(rows, split)
        ]
        if not curves:
            raise UsageError(f"{paths[0]} has no {metric} to show yet: nothing was evaluated")
        groups.append(RunGroup(name, tuple(paths), tuple(curves)))
    return groups


def _plain_spec(path: Path) -> dict[str, Any]:
    spec = RunDirectory.open(path).spec
    try:
        with open_regular(spec) as file:
            values = parse_plain(file.read().decode(), str(spec))
    except (OSError, UnicodeDecodeError, SpecError) as error:
        raise StorageError(f"cannot read {spec}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{spec} is damaged: it holds no spec")
    return values


def _seed_of(spec: dict[str, Any]) -> str:
    recipe = spec.get("train")
    return str(recipe.get("seed") if isinstance(recipe, dict) else None)


def _points(path: Path, metric: Metric, place: Place) -> Iterator[tuple[Split, float, float]]:
    """Yield split, place and value of each row that has one."""
    run = RunDirectory.open(path)
    seconds = 0.0
    length = _steps_per_epoch(run) if place == "epochs" else 1
    for row in curve_rows(MetricsLog(run).read()):
        seconds = seconds if row.seconds is None else row.seconds
        value = _value(row, metric)
        if value is not None:
            yield row.event, seconds if place == "seconds" else row.step / length, value


def _value(row: MetricsRow, metric: Metric) -> float | None:
    if metric == "lr":
        return row.lr
    prefix = {"train": "train", "validation": "val", "test": "test"}[row.event]
    found: float | None = getattr(row, f"{prefix}_{'loss' if metric == 'loss' else 'top1'}")
    if found is None or metric == "loss":
        return found
    return 100 * (found if metric == "accuracy" else 1 - found)


def _steps_per_epoch(run: RunDirectory) -> int:
    recipe = _plain_spec(run.path).get("train")
    batch = recipe.get("batch_size") if isinstance(recipe, dict) else None
    images = DataRecord.read(run.data).images.get("train", 0)
    if not isinstance(batch, int) or batch < 1 or images < batch:
        raise CheckpointError(f"{run.spec} is damaged: its batch size does not fit {run.data}")
    return images // batch


def _curve(runs: Sequence[Sequence[tuple[Split, float, float]]], split: Split) -> Iterator[Curve]:
    """Yield the mean over runs at the places of the longest, as far as each of them came.

    The test images are read once, so their curve is a point; with validation images, it is left
    out.
    """
    if split == "test" and any(one == "validation" for run in runs for one, _, _ in run):
        return
    found = [
        np.array([(x, value) for one, x, value in run if one == split], dtype=float) for run in runs
    ]
    found = [points for points in found if len(points)]
    if not found:
        return
    x = max(found, key=lambda points: float(points[-1, 0]))[:, 0]
    values = np.array([_interpolated(points, x) for points in found])
    known = [column[np.isfinite(column)].tolist() for column in values.T]
    spreads = [mean_and_std(column) if column else (math.nan, None) for column in known]
    mean = np.array([mean for mean, _ in spreads])
    std = np.array([std or 0.0 for _, std in spreads])
    yield Curve(split, x, mean, std)


def _interpolated(points: _Values, x: _Values) -> _Values:
    """Return a run's values at the places ``x``; NaN where it has none."""
    found: _Values = np.interp(x, points[:, 0], points[:, 1], left=np.nan, right=np.nan)
    return found
