"""What a data set and an augmentation must be, and the registries of both."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from resnet_builder.registry import Registry

Stop = Callable[[], bool]
"""Polled in every loop; once it returns true, the loop raises :class:`errors.Stopped`."""

Report = Callable[[str, int, int], None]
"""Told of slow work: what is done, how much so far, of how much (0: not known)."""

Preprocess = Callable[[Tensor], Tensor]
"""``(N, C, H, W)`` uint8 to ``(N, C', H', W')`` uint8, without randomness."""


def never() -> bool:
    """Never stop."""
    return False


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a data set's options tell before any of it is read; ``None`` where they do not.

    Attributes:
        num_classes: Number of classes.
        channels: Channels of an image.
        image_size: Height and width of an image, where they are equal and fixed.
        own_validation: Whether the data set brings a validation split of its own.
        training_images: How many there are, before any are set aside for validation.
    """

    num_classes: int | None = None
    channels: int | None = None
    image_size: int | None = None
    own_validation: bool | None = None
    training_images: int | None = None


class ImageSource(Protocol):
    """The images of one split, in memory or streamed from files."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64, on the CPU."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def take(self, indices: Tensor) -> "ImageSource":
        """Return a source of these images alone, in this order."""

    def read(self, batches: Iterable[Tensor], crop: "SampleCrop | None" = None) -> Iterator[Tensor]:
        """Yield the images of each batch of indices.

        Args:
            batches: ``(B,)`` int64 indices into this split; consumed lazily, in order.
            crop: A random crop to take of each picture. Where pictures are streamed, it is taken
                of the whole picture, instead of what preprocessing would cut.

        Yields:
            ``(B, C, H, W)`` uint8.
        """


@runtime_checkable
class Recognises(Protocol):
    """A source of images that tells which of them are the same."""

    def hashes(self) -> list[int]:
        """Return a number for each image, the same where images are, within this process."""


class SampleCrop(Protocol):
    """A random crop decided by the index of the sample alone, for pictures of differing sizes."""

    def __call__(self, picture: Tensor, sample: int) -> Tensor:
        """Crop ``(C, H, W)`` uint8 to ``(C, size, size)`` uint8."""


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a data set is given to load itself with.

    Attributes:
        data_dir: Where data sets live; relative paths in specs are relative to it.
        preprocess: The spec's preprocessing, to be applied to every image.
        stop: Polled in every loop.
        report: Told of downloads and scans.
        whole_pictures: Whether training cuts its images from whole pictures (see
            :class:`CropsPictures`), so that holding the preprocessed ones will not do.
        skip_bad: Whether pictures that cannot be decoded are left out, instead of refused.
    """

    data_dir: Path
    preprocess: Preprocess
    stop: Stop = never
    report: Report = silent
    whole_pictures: bool = False
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """A data set as it came, before its training images are divided.

    Attributes:
        train: Training images.
        validation: The data set's own validation images, if it has any.
        test: Test images, if it has any.
        classes: Class names; a label is an index into them.
        fingerprint: A digest that changes when any image, label or class does.
        notices: What a user should know, one line each (skipped files, ignored entries).
        parts: Digests of parts of it, by their names, to tell what has changed when the
            fingerprint has.
        skipped: Names of pictures that were left out because they cannot be decoded.
    """

    train: ImageSource
    validation: ImageSource | None
    test: ImageSource | None
    classes: tuple[str, ...]
    fingerprint: str
    notices: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


class Dataset(Protocol):
    """A registered data set: a class whose keyword-only arguments are its options."""

    @property
    def facts(self) -> DatasetInfo:
        """What the options alone tell; reads nothing."""

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
        targets: ``(B,)`` int64 labels, or ``(B, K)`` float32 probabilities once images are mixed.
        num_classes: K.
        fill: ``(C,)`` float32: the images' mean, in the units of ``images``: what is neither
            dark nor bright, to fill holes with.
        black: ``(C,)`` float32: black, in the units of ``images``.
    """

    images: Tensor
    targets: Tensor
    num_classes: int
    fill: Tensor
    black: Tensor


class StatelessGenerator(Protocol):
    """The random numbers of one operation: the same for the same seed, epoch, step and sample."""

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0."""

    def once_per_sample(self, count: int) -> Tensor:
        """``(B, count)`` float64 in [0, 1), the same in every epoch: by (seed, sample, op)."""

    def per_sample(self, count: int) -> Tensor:
        """``(B, count)`` float64 in [0, 1), each row decided by (seed, epoch, sample, op)."""

    def per_batch(self, count: int) -> Tensor:
        """``(count,)`` float64 in [0, 1), decided by (seed, step, op)."""


class Augmentation(Protocol):
    """A registered augmentation: a class whose keyword-only arguments are its options.

    One that changes each image by itself, or by some of those that follow it in the batch, may
    say so in an attribute ``reach``: their number, 0 for none; after the last image follows the
    first. Where several processes share a batch, one without it is given the whole batch in each.
    One that cannot change images of any number of channels says which it can in ``channels``.
    """

    @property
    def works_on(self) -> Literal["pixels", "normalised", "any"]:
        """``"pixels"`` needs uint8, ``"normalised"`` needs float32, ``"any"`` takes both."""

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Return the batch, changed; never in place."""


@runtime_checkable
class CropsPictures(Protocol):
    """An augmentation that, where it stands first, crops pictures while they are read."""

    def for_epoch(self, seed: int, epoch: int, operation: str) -> SampleCrop:
        """Return the crop of single pictures in one epoch; it can be sent to other processes."""


DATASETS: Registry[Callable[..., Dataset]] = Registry("dataset")
AUGMENTATIONS: Registry[Callable[..., Augmentation]] = Registry("augmentation")
