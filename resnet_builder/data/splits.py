"""Training, validation and test images of an experiment."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from resnet_builder.data.interfaces import (
    AUGMENTATIONS,
    DATASETS,
    DatasetInfo,
    ImageSource,
    LoadContext,
    ReadTimeCrop,
    Report,
    Stop,
    load_dataset,
    never,
    silent,
)
from resnet_builder.data.location import default_data_dir, find_data, unused_place
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.statistics import channel_statistics, describe_constant
from resnet_builder.data.validation import (
    check_validation,
    class_counts,
    set_validation_aside,
    single_image_notice,
)
from resnet_builder.errors import DataError, Problem, SpecError, UsageError, counted
from resnet_builder.experiment import Experiment
from resnet_builder.spec.schema import DataSpec, ModelSpec, Normalize, Spec


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
    def info(self) -> DatasetInfo:
        """Description of the training images."""
        labels = self.train.labels
        return DatasetInfo(
            num_classes=len(self.classes),
            training_images=len(labels),
            classes=self.classes,
            class_counts=tuple(class_counts(labels, len(self.classes)).tolist()),
            multi_label=labels.dim() == 2,
        )


def load_data(
    experiment: Experiment | Spec,
    *,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    left_out: tuple[str, ...] | None = None,
    check_classes: bool = True,
    stop: Stop = never,
    report: Report = silent,
) -> DataSplits:
    """Read an experiment's dataset and divide it.

    Args:
        experiment: Experiment, or a resolved spec with data.
        data_dir: Folder of datasets; by default ``$RESNET_BUILDER_DATA``, else the user's cache
            folder.
        skip_bad: Whether images that cannot be decoded are left out, instead of refused.
        left_out: Names of images that were left out before, to read only a few again: nothing is
            downloaded or verified then, and there may be no fingerprint.
        check_classes: Whether there must be as many classes as the network has.
        stop: Polled in every loop.
        report: Progress of downloads and scans.

    Raises:
        DataError: The dataset is missing, broken or too small.
        SpecError: The network is for other images or classes.
        Stopped: ``stop`` became true.
        UsageError: The spec has no data.
    """
    data, model = experiment.data, experiment.model
    if data is None:
        raise UsageError(f"{experiment.name}: the spec has no `data`")
    data = find_data(data, data_dir)
    context = LoadContext(
        data_dir=data_dir or default_data_dir(),
        preprocess=Preprocessing(data.preprocess or ()),
        stop=stop,
        report=report,
        crops_while_reading=_crops_while_reading(data),
        skip_bad=skip_bad,
        verify=left_out is None,
        left_out=left_out or (),
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
    train, validation, indices = set_validation_aside(loaded, data)
    hashes = train.hashes() if context.verify else []
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
        *unused_place(data, data_dir),
        *loaded.notices,
        *single_image_notice(loaded, data),
        *(describe_constant(channel, mean) for channel in constant),
        *(_duplicates(train, hashes, validation, loaded.test) if context.verify else ()),
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
    """Return what is known of a dataset before an image is decoded; nothing is downloaded.

    Args:
        data: Section of a resolved spec.
        data_dir: As for :func:`load_data`.
        stop: Polled in every loop.

    Raises:
        DataError: The data is missing and cannot be downloaded, or it is unusable.
        SpecError: The dataset has validation images, and the spec asks for others.
        Stopped: ``stop`` became true.
    """
    data = find_data(data, data_dir)
    dataset = DATASETS.get(data.dataset.type)(**data.dataset.options)
    inspect: Callable[..., DatasetInfo] | None = getattr(dataset, "inspect", None)
    info = dataset.info if inspect is None else inspect(data_dir or default_data_dir(), stop)
    if info.num_classes is not None:
        _check_more_than_one_class(data, info.num_classes, info.notices)
        if info.training_images is not None:
            own_validation = info.own_validation is True
            num_classes, counts = info.num_classes, info.class_counts
            if info.multi_label:
                num_classes, counts = 1, None
            check_validation(data, own_validation, info.training_images, num_classes, counts)
    return info


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
