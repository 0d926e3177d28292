"""The splits that an experiment trains, chooses and reports on."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from resnet_builder.data.hashing import mix, tag
from resnet_builder.data.interfaces import (
    AUGMENTATIONS,
    DATASETS,
    CropsPictures,
    ImageSource,
    LoadContext,
    LoadedDataset,
    Recognises,
    Report,
    Stop,
    never,
    silent,
)
from resnet_builder.data.memory import InMemoryImages
from resnet_builder.data.pipeline import WHITE
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.errors import DataError, Problem, SpecError, Stopped
from resnet_builder.spec.schema import DataSpec, Normalize, Spec
from resnet_builder.system import cache_dir

DATA_VARIABLE = "RESNET_BUILDER_DATA"

STATISTICS_IMAGES = 10_000
"""Pictures that are streamed are not all read for their mean: this many, evenly spaced, are."""

_LEVELS = 256
_BYTES = 2**24
_STREAMED = 100


@dataclass(frozen=True, slots=True)
class DataSplits:
    """What an experiment trains, chooses and reports on.

    Attributes:
        train: Training images.
        validation: What the best weights are chosen on, if anything.
        test: What is reported, if there is any.
        classes: Class names; a label is an index into them.
        mean: Of each channel of the training images, in units where white is 1.
        std: Standard deviation of each channel over all their pixels, in the same units.
        fingerprint: A digest that changes when any image, label or class does.
        validation_indices: Which of the data set's training images were set aside.
        notices: What a user should know, one line each.
        parts: Digests of parts of the data, by their names.
        skipped: Names of pictures that were left out because they cannot be decoded.
    """

    train: ImageSource
    validation: ImageSource | None
    test: ImageSource | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    validation_indices: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def load_data(
    spec: Spec,
    *,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    stop: Stop = never,
    report: Report = silent,
) -> DataSplits:
    """Read a spec's data set and divide it.

    Args:
        spec: The experiment, resolved, with data.
        data_dir: Where data sets live; by default ``$RESNET_BUILDER_DATA``, else the user's
            cache folder.
        skip_bad: Whether pictures that cannot be decoded are left out, instead of refused.
        stop: Polled in every loop.
        report: Told of downloads and scans.

    Raises:
        DataError: The data set is missing, broken or too small.
        SpecError: It is not what the network is for.
        Stopped: ``stop`` became true.
    """
    assert spec.data is not None, "the spec has data"
    data = spec.data
    dataset = DATASETS.get(data.dataset.type)(**data.dataset.options)
    preprocess = Preprocessing(data.preprocess)
    loaded = dataset.load(
        LoadContext(
            data_dir=data_dir or default_data_dir(),
            preprocess=preprocess,
            stop=stop,
            report=report,
            whole_pictures=_crops_pictures(data),
            skip_bad=skip_bad,
        )
    )
    _refuse_other_classes(spec, loaded)
    _refuse_other_images(spec, loaded)
    train, validation, indices = _divide(loaded, data)
    mean, std = _statistics(train, data, stop)
    return DataSplits(
        train=train,
        validation=validation,
        test=loaded.test,
        classes=loaded.classes,
        mean=mean,
        std=std,
        fingerprint=loaded.fingerprint,
        validation_indices=indices,
        notices=(*loaded.notices, *_repetitions(train, validation, loaded.test)),
        parts=loaded.parts,
        skipped=loaded.skipped,
    )


def default_data_dir() -> Path:
    """Return ``$RESNET_BUILDER_DATA``, else this program's folder in the user's cache."""
    if given := os.environ.get(DATA_VARIABLE):
        return Path(given)
    return cache_dir()


def _crops_pictures(data: DataSpec) -> bool:
    """Tell whether the first augmentation crops pictures while they are read."""
    first = data.augment[:1]
    made = [AUGMENTATIONS.get(part.type)(**part.options) for part in first]
    return any(isinstance(augmentation, CropsPictures) for augmentation in made)


def _divide(
    loaded: LoadedDataset, data: DataSpec
) -> tuple[ImageSource, ImageSource | None, tuple[int, ...]]:
    """Set the validation images aside.

    Raises:
        SpecError: The data set brings its own, or training images are asked for more than once.
    """
    if data.validation == 0:
        return loaded.train, loaded.validation, ()
    if loaded.validation is not None:
        raise _spec_error(
            "exclusive",
            "data.validation",
            f"{data.dataset.type} has validation images of its own; set it to 0",
        )
    count = len(loaded.train)
    amount = data.set_aside(count)
    if not len(loaded.classes) <= amount < count:
        raise DataError(
            f"data.validation: {amount:,} of {count:,} training images cannot be set aside; at "
            f"least one for each of the {len(loaded.classes)} classes, and not all, must be"
        )
    aside = stratified(loaded.train.labels, amount, data.split_seed)
    kept = torch.ones(count, dtype=torch.bool).index_fill(0, aside, value=False).nonzero()[:, 0]
    return loaded.train.take(kept), loaded.train.take(aside), tuple(aside.tolist())


def stratified(labels: Tensor, amount: int, seed: int) -> Tensor:
    """Choose images so that every class has its share.

    Args:
        labels: ``(N,)`` int64.
        amount: How many to choose.
        seed: Chooses them.

    Returns:
        ``(amount,)`` int64 indices, ascending.
    """
    from sklearn.model_selection import train_test_split

    try:
        _, chosen = train_test_split(
            range(len(labels)),
            test_size=amount,
            stratify=labels.numpy(),
            random_state=mix(seed, tag("split")) & 0xFFFFFFFF,
        )
    except ValueError as error:
        raise DataError(f"data.validation: {error}") from error
    return torch.tensor(sorted(chosen))


def _repetitions(
    train: ImageSource, validation: ImageSource | None, test: ImageSource | None
) -> Iterator[str]:
    """Say how many images to choose or to report on are, bit for bit, training images."""
    known = set(_hashes(train))
    for name, other in (("validation", validation), ("test", test)):
        hashes = _hashes(other)
        if again := sum(one in known for one in hashes):
            yield f"{again:,} of {len(hashes):,} {name} images are training images too"


def _hashes(source: ImageSource | None) -> list[int]:
    return source.hashes() if isinstance(source, Recognises) else []


def _refuse_other_classes(spec: Spec, loaded: LoadedDataset) -> None:
    wanted, found = spec.model.num_classes, len(loaded.classes)
    if found != wanted:
        raise _spec_error(
            "mismatch",
            "model.num_classes",
            f"the network is for {wanted} classes, the data has {found}",
        )
    for split, source in _sources(loaded):
        wrong = ((source.labels < 0) | (source.labels >= found)).nonzero()[:, 0]
        if len(wrong):
            index = int(wrong[0])
            label = int(source.labels[index])
            raise DataError(f"{split} image {index} has label {label}, beyond the {found} classes")


def _refuse_other_images(spec: Spec, loaded: LoadedDataset) -> None:
    """Compare the first image of each split with what the network is for."""
    model = spec.model
    for split, source in _sources(loaded):
        if not len(source):
            raise DataError(f"there are no {split} images")
        first = next(iter(source.take(torch.tensor([0])).read([torch.tensor([0])])))
        channels, height, width = first.shape[1:]
        if channels != model.in_channels:
            raise _spec_error(
                "mismatch",
                "model.in_channels",
                f"the network takes {model.in_channels} channels, {split} images have {channels}",
            )
        if (height, width) != (model.image_size,) * 2:
            raise _spec_error(
                "mismatch",
                "model.image_size",
                f"the network is for images of {model.image_size} pixels a side, {split} images "
                f"are {width}x{height}; `resize` and `center_crop` under data.preprocess change it",
            )


def _sources(loaded: LoadedDataset) -> Iterator[tuple[str, ImageSource]]:
    """Yield the splits that there are, by the names that users know them by."""
    yield "training", loaded.train
    if loaded.validation is not None:
        yield "validation", loaded.validation
    if loaded.test is not None:
        yield "test", loaded.test


def _spec_error(code: str, path: str, message: str) -> SpecError:
    return SpecError([Problem(code, path, message, file="<data>")])


def _statistics(
    train: ImageSource, data: DataSpec, stop: Stop
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what images are normalised by: the spec's numbers, or the training images' own."""
    if isinstance(data.normalize, Normalize):
        return data.normalize.mean, data.normalize.std
    return channel_statistics(train, stop)


def channel_statistics(
    source: ImageSource, stop: Stop = never
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, over all pixels of all images.

    Not the mean of each image's deviation, which is smaller, though it is often quoted. Of
    streamed pictures at most 10,000, evenly spaced, are looked at.

    Args:
        source: The images.
        stop: Polled at every batch of them.

    Raises:
        DataError: A channel is the same everywhere.
        Stopped: ``stop`` became true.
    """
    levels = _levels(source, stop).double()
    pixels = levels.sum(1)
    values = torch.arange(_LEVELS, dtype=torch.float64)
    mean = levels @ values / pixels
    variance = (levels * (values - mean[:, None]).square()).sum(1) / pixels
    if not bool((variance > 0).all()):
        raise DataError("all training images are the same everywhere; there is nothing to learn")
    return tuple((mean / WHITE).tolist()), tuple((variance.sqrt() / WHITE).tolist())


def _levels(source: ImageSource, stop: Stop) -> Tensor:
    """Count, exactly, how many pixels of each channel have each of 256 levels: ``(C, 256)``."""
    counted = torch.zeros((), dtype=torch.int64)
    for images in source.read(_looked_at(source)):
        if stop():
            raise Stopped("stopped while computing the images' statistics")
        counted = counted + torch.stack(
            [torch.bincount(channel.flatten(), minlength=_LEVELS) for channel in images.unbind(1)]
        )
    return counted


def _looked_at(source: ImageSource) -> tuple[Tensor, ...]:
    """Choose the images whose pixels are counted, in batches that take little memory."""
    count = len(source)
    chosen = torch.arange(count)
    if isinstance(source, InMemoryImages):
        return chosen.split(max(1, _BYTES // source.images[0].numel()))
    if count > STATISTICS_IMAGES:
        chosen = torch.linspace(0, count - 1, STATISTICS_IMAGES, dtype=torch.float64).long()
    return chosen.split(_STREAMED)
