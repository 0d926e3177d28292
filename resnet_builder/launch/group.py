"""Directory of a group of runs: made, or found again and extended, and locked while runs train."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from resnet_builder.errors import UsageError
from resnet_builder.launch.plan import Base, Plan, Trial, override_key
from resnet_builder.runs import lock
from resnet_builder.runs.files import (
    TEMPORARY,
    Warn,
    prepare_directory,
    storage_errors,
    write_atomically,
)
from resnet_builder.runs.group import RECORD, SPECS, GroupRecord, GroupRun, is_group, read_group
from resnet_builder.runs.records import COSMETIC, compare_specs
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.keys import FLAGS
from resnet_builder.spec.load import load_spec_text

_COSMETIC = tuple(f"{key}." for key in COSMETIC)

_BEFORE_RECORD = {SPECS, lock.LOCK, lock.HOLDER}


class Group:
    """Directory of a group, and its record, which is written at each change.

    Args:
        path: The directory.
        record: Its record.
    """

    def __init__(self, path: Path, record: GroupRecord) -> None:
        self.path = path
        self.record = record

    def add(self, trial: Trial) -> None:
        """Add a trial that a search has chosen.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        if trial.name not in {one.name for one in self.record.runs}:
            self._write_spec(trial.base)
            self._write((*self.record.runs, trial.planned()))

    def mark(
        self, trial: Trial, ended: Literal["failed", "pruned"] | None, error: str | None = None
    ) -> None:
        """Record how a trial ended that leaves no result, or that it begins again.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        update = {"ended": ended, "error": error}
        runs = tuple(
            one.model_copy(update=update) if one.name == trial.name else one
            for one in self.record.runs
        )
        if runs != self.record.runs:
            self._write(runs)

    def extend(self, plan: Plan) -> None:
        """Record a plan, and copy its specs; runs that are not in it any more are kept.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        for base in _bases(plan):
            self._write_spec(base)
        before = {one.name: one for one in self.record.runs}
        trials = plan.trials if plan.method == "grid" else ()
        runs = [before.get(trial.name, trial.planned()) for trial in trials]
        planned = {trial.name for trial in trials}
        runs += [
            one
            for one in before.values()
            if one.name not in planned
            and (plan.method != "grid" or (self.path / one.name).exists())
        ]
        self.record = new_record(plan)
        self._write(runs)

    def _write_spec(self, base: Base) -> None:
        file = base.file(self.path)
        with storage_errors("make", file.parent):
            file.parent.mkdir(exist_ok=True)
        text = base.text.encode()
        with storage_errors("read", file):
            is_new = not file.is_file() or file.read_bytes() != text
        if is_new:
            write_atomically(file, [text])

    def _write(self, runs: Sequence[GroupRun]) -> None:
        self.record = self.record.model_copy(update={"runs": tuple(runs)})
        self.record.write(self.path / RECORD)


@contextlib.contextmanager
def open_group(
    path: Path, plan: Plan, warn: Warn, *, allow_changes: bool = False
) -> Iterator[Group]:
    """Hold the directory of a plan, which is made, or extended if it was made for the same.

    Args:
        path: The directory.
        plan: The plan.
        warn: Told of a process that ended without freeing the directory.
        allow_changes: Whether it may have been made for another spec or sweep.

    Raises:
        BusyError: Another process uses it.
        StorageError: The disk is full, read-only or failing.
        UsageError: It is something else, or was made for another sweep or spec.
    """
    check_group(path, plan, allow_changes=allow_changes)
    with storage_errors("make", path):
        path.mkdir(parents=True, exist_ok=True)
    with lock.hold_lock(path, warn):
        prepare_directory(path)
        check_group(path, plan, allow_changes=allow_changes)
        group = Group(path, read_group(path) if is_group(path) else new_record(plan))
        group.extend(plan)
        yield group


def new_record(plan: Plan) -> GroupRecord:
    """Record of a plan without runs."""
    axes = {} if plan.sweep is None else {one.name: one.definition for one in plan.sweep.axes}
    search: dict[str, Any] = {}
    if plan.sweep is not None and plan.method != "grid":
        file = plan.sweep.file
        search = {"trials": file.trials, "sampler_seed": file.sampler_seed, "pruning": file.pruning}
        search |= {} if plan.seeds is None else {"seeds": list(plan.seeds)}
    return GroupRecord(
        kind=plan.kind,
        name=plan.name,
        method=plan.method,
        axes=axes,
        overrides=plan.overrides,
        search=search,
    )


def check_group(path: Path, plan: Plan, *, allow_changes: bool = False) -> None:
    """Check that a directory is none, or was made for the same plan. Changes no file.

    New values of an axis, new seeds and more trials are the same plan.

    Raises:
        CheckpointError: Its record is damaged.
        StorageError: A file cannot be read.
        UsageError: It is something else, or was made for another sweep or spec.
    """
    if not is_group(path):
        if path.exists() and not _is_unpublished(path):
            raise UsageError(
                f"{path} exists, and is no group of runs: choose another directory with --out"
            )
        return
    changes = [] if allow_changes else list(_changes(path, read_group(path), plan))
    if changes:
        raise UsageError(
            f"{path} holds runs of another {'sweep' if plan.kind == 'sweep' else 'spec'}; "
            "nothing was changed:",
            *(f"  {change}" for change in changes),
            "choose another directory with --out, or undo the changes",
        )


def _changes(path: Path, before: GroupRecord, plan: Plan) -> Iterator[str]:
    after = new_record(plan)
    if (before.kind, before.method) != (after.kind, after.method):
        yield f"{before.kind} by {before.method} there, {after.kind} by {after.method} now"
        return
    if plan.method == "grid":
        if before.axes.keys() != after.axes.keys():
            yield f"axes: {_names(before.axes)} there, {_names(after.axes)} now"
    else:
        for name in {**before.axes, **after.axes}:
            yield from _change(f"axes.{name}", before.axes.get(name), after.axes.get(name))
        for name in {**before.search, **after.search}:
            if name != "trials":
                yield from _change(name, before.search.get(name), after.search.get(name))
    for one in _that_count(before.overrides):
        if one not in after.overrides:
            yield f"{one} there, and not now"
    for one in _that_count(after.overrides):
        if one not in before.overrides:
            yield f"{one} now, and not there"
    for base in _bases(plan):
        file = base.file(path)
        if file.is_file():
            with storage_errors("read", file):
                text = file.read_text(encoding="utf-8")
            old, new = load_spec_text(text, name=str(file)), load_spec_text(base.text)
            for change in compare_specs(old, new):
                if change.kind != "cosmetic":
                    there = "nothing" if change.before is None else dump_value(change.before)
                    now = "nothing" if change.after is None else dump_value(change.after)
                    yield f"{base.name}: {change.path}: {there} there, {now} now"


def _that_count(overrides: Sequence[str]) -> list[str]:
    """Overrides that change results, as the device of ``--device`` does not."""
    keys = {one: override_key(one) for one in overrides}
    paths = {
        one: FLAGS.get(key.removeprefix("--").replace("-", "_"), key) for one, key in keys.items()
    }
    return [one for one, path in paths.items() if not f"{path}.".startswith(_COSMETIC)]


def _change(name: str, before: object, after: object) -> Iterator[str]:
    if before != after:
        there, now = ("nothing" if one is None else dump_value(one) for one in (before, after))
        yield f"{name}: {there} there, {now} now"


def _names(axes: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(axes) or "none"


def _bases(plan: Plan) -> list[Base]:
    found: dict[str, Base] = {}
    for trial in plan.trials:
        found.setdefault(trial.base.name, trial.base)
    return list(found.values())


def _is_unpublished(path: Path) -> bool:
    """Whether a path is a directory with nothing in it but what comes before the record."""
    if not path.is_dir():
        return False
    with storage_errors("read", path):
        names = {entry.name for entry in path.iterdir()} - _BEFORE_RECORD
    return all(name.startswith(TEMPORARY) for name in names)
