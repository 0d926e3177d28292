"""Seeds: runs whose specs differ in nothing else, and statistics over them."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_LEFT_OUT = {
    "": ("expect", "published"),
    "train": ("seed", "checkpoint_every", "keep_checkpoints"),
    "run": ("device", "threads", "log", "report"),
}
"""Keys, by their sections, that may differ between seeds of one experiment.

Device and threads say where a run was computed; a sweep itself shares the threads out to its jobs.
``run.precision``, ``run.compile`` and the like say how: runs that differ in them are compared.
"""


def without_seed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a spec without its seed, and without all that makes no other experiment."""
    found = {key: value for key, value in spec.items() if key not in _LEFT_OUT[""]}
    for section, keys in _LEFT_OUT.items():
        values = found.get(section)
        if isinstance(values, Mapping):
            found[section] = {key: value for key, value in values.items() if key not in keys}
    return found


def group_by_spec(
    specs: Sequence[Mapping[str, Any] | None], images: Sequence[str | None] | None = None
) -> list[tuple[int, ...]]:
    """Group runs whose specs are equal up to the seed, and which saw the same images.

    Args:
        specs: Plain data of the resolved spec of each run; a run without one is alone.
        images: Digest of the images of each run; one without joins the first run of its spec.

    Returns:
        Numbers of the runs of each group, from 0, in the order of the first ones.
    """
    keys = [
        str(number) if spec is None else json.dumps(without_seed(spec), sort_keys=True)
        for number, spec in enumerate(specs)
    ]
    digests = images or [None] * len(specs)
    first: dict[str, str] = {}
    for key, digest in zip(keys, digests, strict=True):
        if digest is not None:
            first.setdefault(key, digest)
    members: dict[object, list[int]] = {}
    for number, (key, digest) in enumerate(zip(keys, digests, strict=True)):
        members.setdefault((key, digest or first.get(key)), []).append(number)
    return [tuple(numbers) for numbers in members.values()]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) of at least one value; ``None`` of one alone."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), std
