"""What a run is trained on: written down when it begins, and the same whenever it goes on."""

from collections.abc import Iterator

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import DataError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord

_SHOWN = 20


def describe_data(splits: DataSplits, pretrained_sha256: str | None = None) -> DataRecord:
    """Record what a run trains on.

    Args:
        splits: The images.
        pretrained_sha256: Of the file that it starts from, if it does.
    """
    sources = {"train": splits.train, "val": splits.validation, "test": splits.test}
    return DataRecord(
        fingerprint=splits.fingerprint,
        classes=splits.classes,
        images={split: len(source) for split, source in sources.items() if source is not None},
        validation=splits.validation_indices,
        parts=dict(splits.parts),
        skipped=splits.skipped,
        pretrained_sha256=pretrained_sha256,
    )


def check_data_unchanged(
    run: RunDirectory, splits: DataSplits, *, allow_spec_change: bool = False
) -> None:
    """Compare the images with those that a run was begun with.

    Args:
        run: A run that is published.
        splits: The images to go on with.
        allow_spec_change: Whether other images may be set aside for validation.

    Raises:
        DataError: They are others.
        StorageError: What they were cannot be read or written.
    """
    before = DataRecord.read(run.data)
    after = describe_data(splits, before.pretrained_sha256)
    if _images_of(before) == _images_of(after):
        return
    if before.fingerprint == after.fingerprint and allow_spec_change:
        after.write(run.data)
        return
    changes = list(_changes(before, after)) or ["as many as before, but not the same"]
    more = len(changes) - _SHOWN
    what = [*changes[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
    raise DataError(
        "\n  ".join([f"{run.path} cannot go on, as its images have changed:", *what])
        + "\nbring them back, or start another run"
    )


def leaves_out(run: RunDirectory) -> bool:
    """Tell whether a run was begun without the pictures that could not be decoded.

    Raises:
        CheckpointError: What it trains on cannot be told, as the record is damaged.
        StorageError: The record cannot be read.
    """
    return bool(DataRecord.read(run.data).skipped)


def _images_of(record: DataRecord) -> DataRecord:
    """Leave out of a record what only explains it."""
    return record.model_copy(update={"parts": {}, "skipped": ()})


def _changes(before: DataRecord, after: DataRecord) -> Iterator[str]:
    """Yield what differs, a line each."""
    for split in {**before.images, **after.images}:
        counts = [record.images.get(split, 0) for record in (before, after)]
        if counts[0] != counts[1]:
            yield f"{split}: {counts[0]:,} images, now {counts[1]:,}"
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
            yield f"{name}: not what it was"
