"""Training, validation and test images of an experiment."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnet_builder.data.interfaces import (
    AUGMENTATIONS,
    DATASETS,
    DatasetInfo,
    ImageSource,
    LoadContext,
    LoadedDataset,
    ReadTimeCrop,
    Report,
    Stop,
    load_dataset,
    never,
    silent,
)
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.random import hash_seed
from resnet_builder.data.statistics import channel_statistics, describe_constant
from resnet_builder.errors import DataError, Problem, SpecError, UsageError, counted
from resnet_builder.experiment import Experiment
from resnet_builder.spec.schema import DataSpec, ModelSpec, Normalize, Spec
from resnet_builder.system import cache_dir

DATA_VARIABLE = "RESNET_BUILDER_DATA"


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Images of an experiment, and what is known of them.

    Attributes:
        train: Training images.
        validation: Images to choose the best weights on, if any.
        test: Images to report on, if any.
        classes: Class names; a label is an index into them.
        mean: Mean of each channel of the training images, in units where white is 1.
        std: Standard deviation of each channel over all their pixels, in the same units.
        fingerprint: Digest that changes when any image, label or class does.
        validation_indices: Indices of the training images that were set aside.
        notices: Notices for the user, one line each.
        parts: Digests of parts of the data, by their names.
        skipped: Names of images that were left out because they cannot be decoded.
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

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of training images of each class."""
        labels = self.train.labels
        several = labels.ndim == 2
        counts = labels.sum(0) if several else labels.bincount(minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))


def load_data(
    experiment: Experiment | Spec,
    *,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    check_classes: bool = True,
    stop: Stop = never,
    report: Report = silent,
) -> DataSplits:
    """Read an experiment's data set and divide it.

    Args:
        experiment: Experiment, or a resolved spec with data.
        data_dir: Folder of data sets; by default ``$RESNET_BUILDER_DATA``, else the user's cache
            folder.
        skip_bad: Whether images that cannot be decoded are left out, instead of refused.
        check_classes: Whether there must be as many classes as the network has.
        stop: Polled in every loop.
        report: Progress of downloads and scans.

    Raises:
        DataError: The data set is missing, broken or too small.
        SpecError: The network is for other images or classes.
        Stopped: ``stop`` became true.
        UsageError: The spec has no data.
    """
    data, model = experiment.data, experiment.model
    if data is None:
        raise UsageError(f"{experiment.name}: the spec has no `data`")
    context = LoadContext(
        data_dir=data_dir or default_data_dir(),
        preprocess=Preprocessing(data.preprocess),
        stop=stop,
        report=report,
        crops_while_reading=_crops_while_reading(data),
        skip_bad=skip_bad,
    )
    loaded = load_dataset(data.dataset, context)
    if check_classes:
        _check_more_than_one_class(data, len(loaded.classes), loaded.notices)
    wanted, found = model.num_classes, len(loaded.classes)
    if check_classes and found != wanted:
        message = f"must be {found}, the classes of {data.dataset.type}, not {wanted}"
        raise _spec_error("mismatch", "model.num_classes", message)
    splits = {"training": loaded.train, "validation": loaded.validation, "test": loaded.test}
    check_images(model, loaded.classes, splits)
    train, validation, indices = _set_validation_aside(loaded, data)
    hashes = train.hashes()
    if check_classes:
        _check_learnable(train, hashes)
    constant: list[int] = []
    if isinstance(data.normalize, Normalize):
        mean, std = data.normalize.mean, data.normalize.std
    else:
        mean, std = channel_statistics(train, stop)
        constant = [channel for channel, deviation in enumerate(std) if deviation == 0]
        std = tuple(deviation or 1.0 for deviation in std)
    notices = (
        *loaded.notices,
        *(describe_constant(channel, mean) for channel in constant),
        *_duplicates(train, hashes, validation, loaded.test),
    )
    return DataSplits(
        train=train,
        validation=validation,
        test=loaded.test,
        classes=loaded.classes,
        mean=mean,
        std=std,
        fingerprint=loaded.fingerprint,
        validation_indices=indices,
        notices=notices,
        parts=loaded.parts,
        skipped=loaded.skipped,
    )


def inspect_data(
    data: DataSpec, data_dir: Path | None = None, *, stop: Stop = never
) -> DatasetInfo:
    """Return what is known of a data set before an image is decoded; nothing is downloaded.

    Args:
        data: Section of a resolved spec.
        data_dir: As for :func:`load_data`.
        stop: Polled in every loop.

    Raises:
        DataError: The data is missing and cannot be downloaded, or it is unusable.
        SpecError: The data set has validation images, and the spec asks for others.
        Stopped: ``stop`` became true.
    """
    dataset = DATASETS.get(data.dataset.type)(**data.dataset.options)
    inspect: Callable[..., DatasetInfo] | None = getattr(dataset, "inspect", None)
    info = dataset.info if inspect is None else inspect(data_dir or default_data_dir(), stop)
    if info.num_classes is not None:
        _check_more_than_one_class(data, info.num_classes, info.notices)
        if info.training_images is not None:
            own_validation = info.own_validation is True
            _check_validation(data, own_validation, info.training_images, info.num_classes)
    return info


def default_data_dir() -> Path:
    """Return ``$RESNET_BUILDER_DATA``, else this program's folder in the user's cache."""
    return Path(os.environ.get(DATA_VARIABLE) or cache_dir())


def _crops_while_reading(data: DataSpec) -> bool:
    first = [AUGMENTATIONS.get(part.type)(**part.options) for part in data.augment[:1]]
    return any(isinstance(augmentation, ReadTimeCrop) for augmentation in first)


def _check_more_than_one_class(data: DataSpec, num_classes: int, notices: Sequence[str]) -> None:
    if num_classes < 2:
        message = f"data.dataset: {data.dataset.type} has one class; nothing can be learnt from it"
        raise DataError(message, *(f"  {notice}" for notice in notices))


def check_images(
    model: ModelSpec, classes: Sequence[str], splits: Mapping[str, ImageSource | None]
) -> None:
    """Compare labels with the classes, and the first image of each split with the network.

    Raises:
        DataError: A label is beyond the classes, or a split has no images.
        SpecError: The network is for other images.
    """
    found = len(classes)
    for split, source in splits.items():
        if source is None:
            continue
        highest = found - 1 if source.labels.dim() == 1 else 1  # 1: the image has the label
        wrong = ((source.labels < 0) | (source.labels > highest)).nonzero()[:, 0].tolist()
        if wrong:
            label = source.labels[wrong[0]].max().item()
            raise DataError(
                f"{split} image {wrong[0]} has label {label}, beyond the {found} classes"
            )
        if not len(source):
            raise DataError(f"there are no {split} images")
        first = torch.tensor([0])
        channels, height, width = next(iter(source.subset(first).read([first]))).shape[1:]
        if channels != model.in_channels:
            takes = counted(model.in_channels or 0, "channel")
            message = f"the network takes {takes}, {split} images have {channels}"
            raise _spec_error("mismatch", "model.in_channels", message)
        if (height, width) != model.image_shape[1:]:
            wanted = "{1}x{2}".format(*model.image_shape)
            message = (
                f"the network is for images of {wanted} (height x width), {split} images are "
                f"{height}x{width}; `resize` and `center_crop` under data.preprocess change it"
            )
            raise _spec_error("mismatch", "model.image_size", message)


def _check_learnable(train: ImageSource, hashes: Collection[int]) -> None:
    """Refuse training images that tell no class from another."""
    if train.labels.dim() == 1 and len(train.labels.unique()) < 2:
        raise DataError("all training images are of one class; nothing can be learnt from it")
    if len(set(hashes)) < 2:
        raise DataError("all training images are the same; there is nothing to learn")


def _duplicates(
    train: ImageSource,
    hashes: Collection[int],
    validation: ImageSource | None,
    test: ImageSource | None,
) -> Iterator[str]:
    """Count images that equal, bit for bit, one with another label, or a training image."""
    known = Counter(hashes)
    rows = train.labels.tolist()
    labels = map(tuple, rows) if train.labels.dim() == 2 else rows
    labelled = Counter(one for one, _ in set(zip(hashes, labels, strict=True)))
    if count := sum(known[one] for one, number in labelled.items() if number > 1):
        yield f"{count:,} of {len(train):,} training images equal one with another label"
    for name, source in (("validation", validation), ("test", test)):
        others = [] if source is None else source.hashes()
        if count := sum(one in known for one in others):
            yield f"{count:,} of {len(others):,} {name} images are training images too"


def _spec_error(code: str, path: str, message: str) -> SpecError:
    return SpecError([Problem(code, path, message, file="<data>")])


def _set_validation_aside(
    loaded: LoadedDataset, data: DataSpec
) -> tuple[ImageSource, ImageSource | None, tuple[int, ...]]:
    count = len(loaded.train)
    _check_validation(data, loaded.validation is not None, count, len(loaded.classes))
    if data.validation == 0:
        return loaded.train, loaded.validation, ()
    aside = stratified(loaded.train.labels, data.set_aside(count), data.split_seed)
    kept = torch.ones(count, dtype=torch.bool).index_fill(0, aside, value=False).nonzero()[:, 0]
    return loaded.train.subset(kept), loaded.train.subset(aside), tuple(aside.tolist())


def _check_validation(data: DataSpec, own_validation: bool, count: int, num_classes: int) -> None:
    """Check that validation images can be set aside, if the spec asks for any."""
    if data.validation == 0:
        return
    if own_validation:
        message = f"{data.dataset.type} has validation images of its own; set it to 0"
        raise _spec_error("exclusive", "data.validation", message)
    amount = data.set_aside(count)
    if not num_classes <= amount <= count - num_classes:
        raise DataError(
            f"data.validation: {amount:,} of {count:,} training images cannot be set aside; at "
            f"least one for each of the {num_classes} classes must be, and as many must be left"
        )


def stratified(labels: Tensor, amount: int, seed: int) -> Tensor:
    """Choose images so that every class keeps its proportion.

    The choice is that of scikit-learn's ``train_test_split(stratify=labels)``, draw for draw.
    numpy promises that ``RandomState`` never changes, so neither do published splits.

    Args:
        labels: ``(N,)`` int64.
        amount: Number of images to choose.
        seed: Seed of the choice.

    Returns:
        ``(amount,)`` int64 indices, ascending.

    Raises:
        DataError: A class has a single image.
    """
    _, classes, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise DataError("data.validation: a class has 1 training image; at least 2 are needed")
    draws = np.random.RandomState(hash_seed(seed, "split") & 0xFFFFFFFF)
    left = _proportional(counts, len(labels) - amount, draws)
    # The rest adds up to the amount, but its rounding may draw, and what follows depends on that.
    taken = _proportional(counts - left, amount, draws)
    chosen = []
    for number, count in enumerate(counts):
        members = np.flatnonzero(classes == number)[draws.permutation(count)]
        chosen.append(members[left[number] : left[number] + taken[number]])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _proportional(
    counts: "np.ndarray[tuple[int], np.dtype[np.int64]]", total: int, draws: np.random.RandomState
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Round class counts down to a total; the largest remainders, or chance, get the rest."""
    exact = counts / counts.sum() * total
    result = np.floor(exact)
    remainders = exact - result
    missing = int(total - result.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing <= 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        raised = draws.choice(equal, size=min(len(equal), missing), replace=False)
        result[raised] += 1
        missing -= len(raised)
    return result.astype(np.int64)
