"""Interfaces of datasets and augmentations, and the registries of both."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from resnet_builder.data.random import StatelessGenerator
from resnet_builder.registry import Registry, wrong_result
from resnet_builder.spec.section import Part

Stop = Callable[[], bool]
"""Polled in every loop; once it returns true, the loop raises :class:`errors.Stopped`."""

Report = Callable[[str, int, int], None]
"""Progress of slow work: its name, the amount done, and the total (0: not known)."""

Preprocess = Callable[[Tensor], Tensor]
"""``(N, C, H, W)`` uint8 to ``(N, C', H', W')`` uint8, without randomness."""


def never() -> bool:
    """Never stop."""
    return False


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Facts about a dataset that are known before an image is read; ``None``: not known.

    Attributes:
        num_classes: Number of classes.
        channels: Channels of an image.
        image_size: Height and width of an image, where they are fixed: one number if equal.
        own_validation: Whether the dataset brings a validation split of its own.
        training_images: Number of training images, before any are set aside for validation.
        classes: Class names; a label is an index into them.
        notices: Notices for the user, as in :class:`LoadedDataset`.
        class_counts: Number of training images of each class.
        validation: Number or share of training images that are set aside where the spec does not
            say how many; ``None`` if only ``inspect`` can tell.
        multi_label: Whether an image may have several labels, or none.
    """

    num_classes: int | None = None
    channels: int | None = None
    image_size: int | tuple[int, int] | None = None
    own_validation: bool | None = None
    training_images: int | None = None
    classes: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()
    class_counts: tuple[int, ...] | None = None
    validation: int | float | None = 0
    multi_label: bool = False


class SampleCrop(Protocol):
    """A random crop decided by the index of the sample alone, for images of differing sizes."""

    def __call__(self, image: Tensor, sample: int) -> Tensor:
        """Crop ``(C, H, W)`` uint8 to ``(C, H', W')`` uint8."""


class ImageSource(Protocol):
    """The images of one split, in memory or in files.

    Optional attribute:

    ``names``: the names of the files that the images come from, or ``None``.
    """

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64, or ``(N, K)`` uint8 of several labels an image; on the CPU."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def subset(self, indices: Tensor) -> "ImageSource":
        """Return a source of these images alone, in this order."""

    def hashes(self) -> list[int]:
        """Return a number for each image, equal for equal images, within this process."""

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the images of each batch of indices.

        Args:
            batches: ``(B,)`` int64 indices into this split; consumed lazily, in order. Index
                ``i + N`` is image ``i`` too, with another random crop, as is ``i + 2 * N``.
            crop: Random crop of each image. Where images are read from files, it takes the place
                of preprocessing and sees the full image.

        Yields:
            ``(B, C, H, W)`` uint8.
        """


@dataclass(frozen=True, slots=True)
class LoadContext:
    """Arguments of loading a dataset.

    Attributes:
        data_dir: Folder of datasets that were downloaded, and of caches.
        preprocess: Preprocessing of the spec, to be applied to every image.
        stop: Polled in every loop.
        report: Progress of downloads and scans.
        crops_while_reading: Whether training begins with a :class:`ReadTimeCrop`, which needs the
            full images, not the preprocessed ones.
        skip_bad: Whether images that cannot be decoded are left out, instead of refused.
        verify: Whether every image is decoded or verified, and a missing dataset downloaded.
            Otherwise a few images are read again, as they are asked for, and there may be no
            fingerprint.
        left_out: Names of images that were left out before, where they are not verified.
    """

    data_dir: Path
    preprocess: Preprocess
    stop: Stop = never
    report: Report = silent
    crops_while_reading: bool = False
    skip_bad: bool = False
    verify: bool = True
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """A dataset before its training images are divided.

    Attributes:
        train: Training images.
        validation: The dataset's own validation images, if it has any.
        test: Test images, if it has any.
        classes: Class names; a label is an index into them.
        fingerprint: Digest that changes when any image, label or class does.
        notices: Notices for the user, one line each (skipped files, ignored entries).
        parts: Digests of parts, by their names, to tell what has changed when the fingerprint has.
        skipped: Names of images that were left out because they cannot be decoded.
    """

    train: ImageSource
    validation: ImageSource | None
    test: ImageSource | None
    classes: tuple[str, ...]
    fingerprint: str
    notices: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedSplit:
    """One split of a dataset, loaded without the others.

    Attributes:
        images: Its images.
        classes: Names of its own classes; a label is an index into them.
        notices: Notices for the user, one line each.
    """

    images: ImageSource
    classes: tuple[str, ...]
    notices: tuple[str, ...] = ()


class Dataset(Protocol):
    """A registered dataset: a class whose keyword-only arguments are its options.

    An option called ``path`` names a file or a folder. In a spec it counts from the spec's file;
    the dataset is given an absolute path, at which something is.

    Optional methods:

    ``inspect(data_dir, stop)``: the :class:`DatasetInfo` of the data on disk, without decoding any
    of it. It raises the errors of ``load`` that can be found so.

    ``load_split(context, split, *, undivided)``: the :class:`LoadedSplit` of ``train``, ``val`` or
    ``test`` alone. Data that are not divided into splits are that split if ``undivided`` is true.
    It raises the errors of ``load``, and :class:`errors.UsageError` if there is no such split.
    """

    @property
    def info(self) -> DatasetInfo:
        """Facts that the options alone tell; reads nothing."""

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read, and download first if need be.

        Raises:
            DataError: It is missing, broken or unusable.
            Stopped: ``context.stop`` became true.
        """


@dataclass(frozen=True, slots=True)
class Batch:
    """Training images on their way to the network.

    Attributes:
        images: ``(B, C, H, W)``; uint8, or float32 and normalised.
        targets: ``(B,)`` int64 labels, or ``(B, K)`` float32 probabilities once images are mixed,
            or of zeros and ones where images have several labels.
        num_classes: Number of classes, K.
        fill: ``(C,)`` float32: mean of the training images, in the units of ``images``; the
            neutral colour of holes.
        black: ``(C,)`` float32: black, in the units of ``images``.
        multi_label: Whether an image may have several labels, or none.
    """

    images: Tensor
    targets: Tensor
    num_classes: int
    fill: Tensor
    black: Tensor
    multi_label: bool = False


class Augmentation(Protocol):
    """A registered augmentation: a class whose keyword-only arguments are its options.

    Optional attributes:

    ``mixes_with``: how many of the images that follow it in the batch change an image, 0 for
    none; after the last image follows the first. Where several processes share a batch, an
    augmentation without this attribute is given the whole batch in each of them.

    ``channels``: the numbers of channels that it works on, if not any.

    ``min_side``: the smallest height and width that it works on.
    """

    @property
    def works_on(self) -> Literal["pixels", "normalised", "any"]:
        """``"pixels"`` needs uint8, ``"normalised"`` needs float32, ``"any"`` takes both."""

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Return the batch, changed; never in place."""


class PerImageAugmentation:
    """Base of augmentations that change each image by draws of its own.

    A subclass has ``transform``, a function of ``(C, H, W)`` uint8 that draws from torch's global
    generator, as torchvision's transforms do. The generator is seeded for each sample and epoch.
    """

    works_on: Literal["pixels"] = "pixels"
    mixes_with = 0

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Transform of one image."""
        raise NotImplementedError(f"{type(self).__name__} has no `transform`")

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Transform every image."""
        return replace(batch, images=draws.map_seeded(self.transform, batch.images))


@runtime_checkable
class ReadTimeCrop(Protocol):
    """An augmentation that, where it stands first, crops images while they are read."""

    def for_epoch(self, seed: int, epoch: int, operation: str) -> SampleCrop:
        """Return the crop of single images in one epoch; worker processes receive it."""


_OWN = "images of your own are {type: image_folder, path: FOLDER}, or {type: image_table}"
DATASETS: Registry[Callable[..., Dataset]] = Registry(
    "dataset",
    hints=dict.fromkeys(("csv", "custom", "folder", "imagefolder", "images"), _OWN),
)
AUGMENTATIONS: Registry[Callable[..., Augmentation]] = Registry(
    "augmentation",
    hints={
        "auto_augment": "its policies are for three datasets; write `trivial_augment`",
        "gaussian_blur": "write `blur`",
    },
)


def load_dataset(dataset: Part, context: LoadContext) -> LoadedDataset:
    """Load the dataset that a spec names, which may be a plugin's.

    Raises:
        RegistryError: It is not registered, or loads something else.
        ResnetBuilderError: As the dataset raises it.
    """
    kind = DATASETS.get(dataset.type)
    loaded = kind(**dataset.options).load(context)
    if not isinstance(loaded, LoadedDataset):
        raise wrong_result(kind, f"loads {type(loaded).__name__}, not a LoadedDataset")
    return loaded
