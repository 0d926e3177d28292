"""Data record of a run: which images it is trained on, and whether they are still the same."""

from collections.abc import Iterator

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import DataError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord

_MAX_LISTED = 20
"""Changes that a message lists."""


def describe_data(data: DataSplits, pretrained_sha256: str | None = None) -> DataRecord:
    """Make the record of the images of a run.

    Args:
        data: The images.
        pretrained_sha256: Digest of the pretrained weights, if there are any.
    """
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


def check_unchanged(
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
    after = describe_data(data, before.pretrained_sha256)
    ignored: dict[str, object] = {"parts": {}, "skipped": ()}  # they only explain a change
    if before.model_copy(update=ignored) == after.model_copy(update=ignored):
        return
    if before.fingerprint == after.fingerprint and allow_spec_change:
        after.write(run.data)
        return
    changes = list(_data_changes(before, after)) or ["as many as before, but not the same"]
    more = len(changes) - _MAX_LISTED
    listed = [*changes[:_MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
    raise DataError(
        "\n  ".join([f"{run.path} cannot be resumed: its images have changed:", *listed])
        + "\nbring them back, or start another run"
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
