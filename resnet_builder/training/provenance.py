"""Provenance: what decides the bits of a run, recorded with it and compared when it is resumed.

Each checkpoint holds the provenance of its weights. ``spec.yaml``, ``env.json`` and ``data.json``
are copies of it for readers; they count only as long as a run has no checkpoint.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import CheckpointError, DataError, StorageError, UsageError, counted
from resnet_builder.experiment import Experiment
from resnet_builder.parts import resolve
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import append_line, storage_errors
from resnet_builder.runs.records import (
    Change,
    DataRecord,
    EnvRecord,
    Record,
    RuntimeConfig,
    compare_specs,
    read_changes,
)
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec_text
from resnet_builder.system import open_regular
from resnet_builder.weights.pretrained import pretrained_commit, pretrained_digest

R = TypeVar("R", bound=Record)

_MAX_LISTED = 20
"""Changes that a message lists."""


class Provenance(BaseModel):
    """Everything that decides the bits of a run.

    Attributes:
        spec: Resolved spec, as YAML.
        env: Environment: runtime configuration, plugins, versions. A run without a checkpoint may
            lack it, like ``data``.
        data: Images, and the digest of pretrained weights.
    """

    model_config = ConfigDict(frozen=True)

    spec: str
    env: EnvRecord | None = None
    data: DataRecord | None = None

    @classmethod
    def read(cls, run: RunDirectory) -> "Provenance":
        """Return what the files of a run say.

        Raises:
            StorageError: ``spec.yaml`` cannot be read.
        """
        with storage_errors("read", run.spec), open_regular(run.spec) as file:
            spec = file.read().decode(errors="replace")
        return cls(spec=spec, env=_read(EnvRecord, run.env), data=_read(DataRecord, run.data))

    @property
    def runtime(self) -> RuntimeConfig | None:
        """Runtime configuration, if it is known."""
        return None if self.env is None else self.env.runtime


def check_unchanged(
    run: RunDirectory,
    before: Provenance | None,
    experiment: Experiment,
    data: DataSplits,
    env: EnvRecord,
    *,
    allow_spec_change: bool,
    allow_inexact: bool,
) -> tuple[Provenance, list[Change]]:
    """Describe what decides the bits of a training, and compare it with what a run recorded.

    Args:
        run: The run directory, which is only read.
        before: Provenance of the run; ``None`` for a new one.
        experiment: The experiment.
        data: The images.
        env: Environment, without the plugins.
        allow_spec_change: Whether the recipe, plugins and the place of the data may have changed.
        allow_inexact: Whether the environment may have changed.

    Returns:
        The provenance of the training, and the changes; :func:`record_provenance` writes both.

    Raises:
        DataError: The images or the pretrained weights have changed.
        SpecError: The run's spec is not valid any more.
        UsageError: Another change is refused, or needs a flag that was not given.
    """
    recorded = before.data if before else None
    if run.has_checkpoints and recorded is not None:
        # From its first checkpoint on, no run needs them.
        pretrained, commit = recorded.pretrained_sha256, recorded.pretrained_commit
    else:
        weights = experiment.model.weights
        pretrained = None if weights is None else pretrained_digest(weights)
        commit = None if weights is None else pretrained_commit(weights)
    plugins = plugin_digests(experiment)
    splits = {"train": data.train, "val": data.validation, "test": data.test}
    env = env.model_copy(update={"plugins": plugins})
    images = DataRecord(
        fingerprint=data.fingerprint,
        classes=data.classes,
        images={name: len(images) for name, images in splits.items() if images is not None},
        class_counts=dict(zip(data.classes, data.info.class_counts or (), strict=True)),
        validation=data.validation_indices,
        parts=dict(data.parts),
        skipped=data.skipped,
        mean=data.mean,
        std=data.std,
        multi_label=data.info.multi_label,
        pretrained_sha256=pretrained,
        pretrained_commit=commit,
    )
    changes: list[Change] = []
    if before is not None:
        changes = spec_changes(run, before, experiment, plugins)
        check_consent(run, changes, allow_spec_change=allow_spec_change)
        changes += check_environment_unchanged(run, before, env, allow_inexact=allow_inexact)
        if recorded is not None:
            is_split_free = any(change.kind == "split" for change in changes)
            _check_data(run, recorded, images, is_split_free=is_split_free)
    return Provenance(spec=dump_spec(experiment.spec), env=env, data=images), changes


def spec_changes(
    run: RunDirectory, before: Provenance, experiment: Experiment, plugins: Mapping[str, str]
) -> list[Change]:
    """Compare a spec and its plugins with those of a run, before any data is read.

    Args:
        run: The run directory, which is only read.
        before: Provenance of the run.
        experiment: The experiment now.
        plugins: Digests of its plugins.

    Returns:
        All changes, which may need consent.

    Raises:
        SpecError: The run's spec is not valid any more.
        UsageError: A change is refused whatever is allowed.
    """
    changes: list[Change] = []
    if dump_spec(experiment.spec) != before.spec:
        old = load_spec_text(before.spec, name=f"spec of {run.path}")
        changes = compare_specs(resolve(old), resolve(experiment.spec))
    if before.env is not None:
        shared = plugins.keys() & before.env.plugins.keys()  # others are changes of the spec
        was, is_now = (
            {name: one[name] for name in shared} for one in (before.env.plugins, plugins)
        )
        changes += _changes(was, is_now, "trajectory", prefix="contents of ")
    networks = [str(change) for change in changes if change.kind == "architecture"]
    if networks:
        advice = (
            "give the run's own spec; to use another one, start another run, from these weights by "
            "`model.weights` if you like"
        )
        raise UsageError(*_message(f"{run.path} is of another network", networks, advice))
    splits = [str(change) for change in changes if change.kind == "split"]
    if splits and run.has_checkpoints:
        advice = "start another run: the validation images chose this run's best weights"
        raise UsageError(*_message(f"{run.path} has other validation images", splits, advice))
    return changes


def check_consent(run: RunDirectory, changes: Sequence[Change], *, allow_spec_change: bool) -> None:
    """Check that the user allows the changes that need that, now or before.

    Raises:
        UsageError: A change needs a flag that was not given.
    """
    given = consents(run)
    refused = [str(c) for c in changes if c.needs_consent and not _is_consented(c, given)]
    if refused and not allow_spec_change:
        advice = "add --allow-spec-change to resume all the same, or start another run"
        raise UsageError(*change_message(run, refused, advice))


def check_environment_unchanged(
    run: RunDirectory, before: Provenance, now: EnvRecord, *, allow_inexact: bool
) -> list[Change]:
    """Compare the environment with that of a run, but for plugins, which go with the spec.

    Returns:
        All changes, which :func:`record_provenance` writes.

    Raises:
        UsageError: There are changes, and ``allow_inexact`` is false.
    """
    if before.env is None:
        return []
    changes = list(_changes({"device": before.env.device}, {"device": now.device}, "environment"))
    for group in ("runtime", "versions", "flags", "variables"):
        old, new = (dict(getattr(env, group)) for env in (before.env, now))
        changes += _changes(old, new, "environment", prefix=f"{group}.")
    # The number of processes is a choice of the command line, and threads follow from it.
    free = {"runtime.world_size", "runtime.threads"}
    allowed = free if any(change.path == "runtime.world_size" for change in changes) else set()
    given = consents(run)
    refused = {c.path for c in changes if not _is_consented(c, given)} - allowed
    if refused and not allow_inexact:
        raise UsageError(
            f"the run cannot resume to the same bits: {_listed(changes)}; restore the old values, "
            "or add --allow-inexact"
        )
    return changes


def record_provenance(
    run: RunDirectory, now: Provenance, changes: Sequence[Change], *, step: int
) -> None:
    """Write what changed, then the files that differ. The spec comes last and makes a run.

    The result of a run that trains on is kept under another name.

    Args:
        run: The run directory.
        now: Provenance of the training.
        changes: Changes since the run's last checkpoint.
        step: Step that the training starts from.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    given = consents(run)
    for change in changes:
        if not _is_consented(change, given):
            append_line(run.changes, change.to_json())
    before = Provenance.read(run) if run.is_published else None
    if now.data is not None and (before is None or now.data != before.data):
        now.data.write(run.data)
    if now.env is not None and (before is None or now.env != before.env):
        now.env.write(run.env)
    if before is None or now.spec != before.spec:
        run.publish(now.spec)
    if run.is_finished:
        with storage_errors("rename", run.result):
            os.replace(run.result, run.earlier_result(step))


def change_message(run: RunDirectory, changes: Sequence[object], advice: str) -> tuple[str, ...]:
    """Lines of an error about changes of the spec, with what to do."""
    what = f"{run.path} was started with another recipe, other data or other plugins"
    return _message(what, list(map(str, changes)), advice)


def change_notices(changes: Sequence[Change]) -> list[str]:
    """Return what the user is told of changes that were not refused, one line each."""
    notices = [f"changed: {change}" for change in changes if change.kind != "environment"]
    if inexact := [change for change in changes if change.kind == "environment"]:
        notices.append(f"the run resumes, but not to the same bits: {_listed(inexact)}")
    return notices


def consents(run: RunDirectory) -> dict[str, Any]:
    """Return the last recorded value of each key that was changed on resume.

    A run that was killed before its next checkpoint needs no consent for them again.
    """
    return {change.path: change.after for change in read_changes(run)}


def recorded_runtime(run: RunDirectory, before: Provenance) -> RuntimeConfig | None:
    """Return the runtime configuration to repeat: that of a run, with the changes allowed since."""
    if before.runtime is None:
        return None
    allowed = {path.removeprefix("runtime."): value for path, value in consents(run).items()}
    known = {name: allowed[name] for name in dict(before.runtime) if name in allowed}
    return before.runtime.model_copy(update=known)


def _check_data(
    run: RunDirectory, before: DataRecord, after: DataRecord, *, is_split_free: bool
) -> None:
    """Compare the images and the pretrained weights with those of a run."""
    if before.pretrained_sha256 != after.pretrained_sha256:
        raise DataError(
            f"{run.path} cannot be resumed: the file of `model.weights` has changed; its SHA-256 "
            f"was {before.pretrained_sha256} and is {after.pretrained_sha256}; bring the file "
            "back, or start another run"
        )
    # The first two only explain a change; the spec is compared for itself. Another commit may have
    # the same weights.
    ignored: dict[str, object] = {"parts": {}, "skipped": (), "mean": (), "std": ()}
    ignored["pretrained_commit"] = None
    if before.model_copy(update=ignored) == after.model_copy(update=ignored):
        return
    if before.fingerprint == after.fingerprint and is_split_free:
        return
    changes = list(_data_changes(before, after)) or ["as many as before, but not the same"]
    what = f"{run.path} cannot be resumed: its images have changed"
    raise DataError(*_message(what, changes, "bring them back, or start another run"))


def _is_consented(change: Change, given: Mapping[str, Any]) -> bool:
    return change.path in given and given[change.path] == change.after


def _read(kind: type[R], path: Path) -> R | None:
    """Read a record; one that is missing or damaged is written anew."""
    try:
        return kind.read(path)
    except (CheckpointError, StorageError):
        return None


def plugin_digests(experiment: Experiment) -> dict[str, str]:
    """Return the SHA-256 digests of the code of an experiment's plugins, by their names."""
    return {name: _plugin_digest(name) for name in experiment.spec.plugins}


def _plugin_digest(plugin: str) -> str:
    """SHA-256 digest of a plugin's code: of a file, or of all files of a module's package."""
    digest = hashlib.sha256()
    for path in _plugin_files(plugin):
        with storage_errors("read", path), open_regular(path) as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def _plugin_files(plugin: str) -> list[Path]:
    if plugin.endswith(".py"):
        return [Path(plugin)]
    package = sys.modules.get(plugin.partition(".")[0])
    folders = [Path(folder) for folder in getattr(package, "__path__", [])]
    if not folders:
        file = getattr(package, "__file__", None)
        return [Path(file)] if file else []
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def _changes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    kind: Literal["trajectory", "environment"],
    *,
    prefix: str = "",
) -> Iterator[Change]:
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old != new:
            yield Change(path=f"{prefix}{name}", before=old, after=new, kind=kind)


def _data_changes(before: DataRecord, after: DataRecord) -> Iterator[str]:
    for split in {**before.images, **after.images}:
        old, new = (record.images.get(split, 0) for record in (before, after))
        if old != new:
            yield f"{split}: {counted(old, 'image')}, now {new:,}"
    for name in after.classes:
        if name not in before.classes:
            yield f"{name}: a new class"
    for name in before.classes:
        if name not in after.classes:
            yield f"{name}: no class now"
    for name in sorted({*before.skipped} ^ {*after.skipped}):
        yield f"{name}: {'cannot' if name in after.skipped else 'can'} be decoded now"
    for name, digest in before.parts.items():
        if after.parts.get(name, digest) != digest:
            yield f"{name}: its contents have changed"


def _listed(changes: Iterable[Change]) -> str:
    return ", ".join(
        f"{change.path} was {_text(change.before)} and is {_text(change.after)}"
        for change in changes
    )


def _text(value: object) -> str:
    return "not set" if value is None else str(value)


def _message(what: str, lines: Sequence[str], advice: str) -> tuple[str, ...]:
    more = len(lines) - _MAX_LISTED
    listed = [*lines[:_MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
    return (f"{what}:", *(f"  {line}" for line in listed), advice)
