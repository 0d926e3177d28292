"""Provenance of a run: its spec, images and pretrained weights, compared when it is resumed."""

from collections.abc import Iterator, Sequence

from resnet_builder.builder import check_source
from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import DataError, PartError, RegistryError, SpecError, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.parts import resolve
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, append_line, storage_errors
from resnet_builder.runs.records import DataRecord, compare_specs
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.weights.pretrained import pretrained_digest

_MAX_LISTED = 20
"""Changes that a message lists."""


def record_provenance(run: RunDirectory, experiment: Experiment, data: DataSplits) -> None:
    """Write ``data.json``, then ``spec.yaml``, which makes the directory a run."""
    weights = experiment.model.weights
    digest = None if weights is None else pretrained_digest(weights)
    _data_record(data, digest).write(run.data)
    run.publish(dump_spec(experiment.spec))


def check_spec_unchanged(
    run: RunDirectory, experiment: Experiment, *, allow_spec_change: bool, warn: Warn
) -> None:
    """Compare the spec with that of a run; changes that are allowed are recorded.

    Raises:
        SpecError: The run's own spec is not valid any more.
        StorageError: ``spec.yaml`` cannot be read, or a change cannot be recorded.
        UsageError: The network has changed; or the recipe or the data, which is not allowed.
    """
    text = dump_spec(experiment.spec)
    with storage_errors("read", run.spec):
        if run.spec.read_bytes() == text.encode():
            return  # the same text need not be parsed again
    changes = compare_specs(_own_spec(run), experiment.spec)
    if not changes:
        return
    networks = [str(change) for change in changes if change.kind == "architecture"]
    if networks:
        advice = "start another run; `model.weights` can start it from the weights of this one"
        raise UsageError(*_message(f"{run.path} is of another network", networks, advice))
    recipes = [str(change) for change in changes if change.kind == "trajectory"]
    if recipes and not allow_spec_change:
        advice = "add --allow-spec-change to resume all the same, or start another run"
        what = f"{run.path} was started with another recipe or other data"
        raise UsageError(*_message(what, recipes, advice))
    for change in changes:
        warn(f"changed: {change}")
        append_line(run.changes, change.to_json())
    run.publish(text)


def check_data_unchanged(
    run: RunDirectory, data: DataSplits, *, allow_spec_change: bool = False
) -> None:
    """Compare the images with those that a run was started with.

    Args:
        run: The run directory.
        data: The images now.
        allow_spec_change: Whether other images may be used for validation.

    Raises:
        DataError: They have changed.
        StorageError: The record cannot be read or written.
    """
    before = DataRecord.read(run.data)
    after = _data_record(data, before.pretrained_sha256)
    ignored: dict[str, object] = {"parts": {}, "skipped": ()}  # they only explain a change
    if before.model_copy(update=ignored) == after.model_copy(update=ignored):
        return
    if before.fingerprint == after.fingerprint and allow_spec_change:
        after.write(run.data)
        return
    changes = list(_data_changes(before, after)) or ["as many as before, but not the same"]
    more = len(changes) - _MAX_LISTED
    listed = [*changes[:_MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
    what = f"{run.path} cannot be resumed: its images have changed"
    raise DataError(*_message(what, listed, "bring them back, or start another run"))


def check_weights_unchanged(run: RunDirectory, experiment: Experiment) -> None:
    """Compare the pretrained weights with those that a run was started with.

    Raises:
        DataError: They have changed.
    """
    weights = experiment.model.weights
    if weights is None:
        return
    before, now = DataRecord.read(run.data).pretrained_sha256, pretrained_digest(weights)
    if now != before:
        raise DataError(
            f"{run.path} cannot be resumed: {weights.path} has changed; its SHA-256 was {before} "
            f"and is {now}; bring the file back, or start another run"
        )


def _own_spec(run: RunDirectory) -> Spec:
    try:
        return resolve(load_spec(run.spec))
    except (PartError, RegistryError) as error:  # the file was edited: say where
        raise SpecError(check_source(run.spec).problems) from error


def _data_record(data: DataSplits, pretrained_sha256: str | None) -> DataRecord:
    splits = {"train": data.train, "val": data.validation, "test": data.test}
    return DataRecord(
        fingerprint=data.fingerprint,
        classes=data.classes,
        images={name: len(images) for name, images in splits.items() if images is not None},
        validation=data.validation_indices,
        parts=dict(data.parts),
        skipped=data.skipped,
        pretrained_sha256=pretrained_sha256,
    )


def _data_changes(before: DataRecord, after: DataRecord) -> Iterator[str]:
    for split in {**before.images, **after.images}:
        old, new = (record.images.get(split, 0) for record in (before, after))
        if old != new:
            yield f"{split}: {old:,} images, now {new:,}"
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


def _message(what: str, lines: Sequence[str], advice: str) -> tuple[str, ...]:
    return (f"{what}:", *(f"  {line}" for line in lines), advice)
