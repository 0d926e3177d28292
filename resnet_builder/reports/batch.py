"""First batch of a training, before and after augmentation."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resnet_builder.data.loader import train_loader
from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import UsageError
from resnet_builder.reports.html import escaped, gallery, note, percent
from resnet_builder.reports.thumbnails import as_rgb, side_by_side, thumbnail, to_pixels
from resnet_builder.runs.predictions import below_common_folder
from resnet_builder.spec.schema import Spec
from resnet_builder.training.schedule import Plan

CPU = torch.device("cpu")

_LEAST_SHARE = 0.005  # of a label of a mixed image, to be worth naming
_MAX_LABELS = 4


@dataclass(frozen=True, slots=True, eq=False)
class FirstBatch:
    """First images of a training, as they are and as the network sees them.

    Attributes:
        before: ``(n, H, W, 3)`` uint8 images after preprocessing.
        after: ``(n, H', W', 3)`` uint8 images after augmentation and progressive resizing.
        samples: Indices of the images among the training images.
        labels: Names of each image's classes, joined by commas.
        targets: Classes that the network is to predict, with their probabilities, the largest
            first: of mixed images there are several.
        files: Names of the images' files below their common folder; empty where there are none.
    """

    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    samples: tuple[int, ...]
    labels: tuple[str, ...]
    targets: tuple[dict[str, float], ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchImage:
    """Image of the first batch.

    Attributes:
        index: Index among the training images.
        file: Name of its file, if it has one.
        label: Name of its class.
        targets: Classes that the network is to predict, with their probabilities.
    """

    index: int
    file: str | None
    label: str
    targets: dict[str, float]


@dataclass(frozen=True, slots=True)
class BatchImages:
    """First images of the first batch.

    Attributes:
        batch_size: Number of images of the whole batch.
        images: The first of them.
    """

    batch_size: int
    images: tuple[BatchImage, ...]


def first_batch(spec: Spec, data: DataSplits, count: int = 16) -> FirstBatch:
    """Make the first images of a training, the same that it sees in its first step.

    Args:
        spec: Resolved spec.
        data: Its images.
        count: Number of images; all of the batch, if that is less.

    Raises:
        DataError: There are fewer training images than a batch has, or one cannot be decoded.
        UsageError: The spec has no data or no recipe.
    """
    if spec.data is None or spec.train is None:
        raise UsageError(f"{spec.name}: a batch needs `data` and `train`")
    loader = train_loader(spec.data, spec.train, data, device=CPU)
    samples, plain, batch = loader.preview(count)
    seen = Plan(spec.train, loader.steps_per_epoch).resize(batch.images, 0)
    numbers = (samples % len(data.train)).tolist()
    names = getattr(data.train, "names", None)
    return FirstBatch(
        before=as_rgb(plain),
        after=as_rgb(to_pixels(seen, data.mean, data.std)),
        samples=tuple(numbers),
        labels=tuple(", ".join(_named(data.train.labels[one], data.classes)) for one in numbers),
        targets=tuple(_named(target, data.classes) for target in batch.targets),
        files=() if names is None else below_common_folder([names[one] for one in numbers]),
    )


def _named(target: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """Classes of a label, of several labels, or of probabilities, the most probable first."""
    if target.ndim == 0:
        return {classes[int(target)]: 1.0}
    order = target.argsort(descending=True, stable=True).tolist()
    shares = ((classes[number], float(target[number])) for number in order)
    return {name: share for name, share in shares if share > 0}


def batch_images(spec: Spec, found: FirstBatch) -> BatchImages:
    """Describe the images of a first batch."""
    files = found.files or (None,) * len(found.samples)
    rows = zip(found.samples, files, found.labels, found.targets, strict=True)
    images = tuple(BatchImage(*row) for row in rows)
    return BatchImages(spec.train.batch_size if spec.train else len(images), images)


def draw_batch(found: FirstBatch) -> str:
    """Draw each image before and after augmentation, with its label above what is predicted."""
    figures = []
    for place, (label, targets) in enumerate(zip(found.labels, found.targets, strict=True)):
        index = found.files[place] if found.files else f"training image {found.samples[place]:,}"
        picture = side_by_side(
            thumbnail(found.before[place]), thumbnail(found.after[place]), f"{index}: {label}"
        )
        caption = escaped(_target_text(targets) or "no label")
        figures.append(f"{picture}<figcaption>{caption}</figcaption>")
    told = note(
        f"The first {len(figures):,} images of step 1. Left: after preprocessing; right: as the "
        "network sees them, with what it is to predict."
    )
    return f"{gallery(figures)}\n{told}"


def _target_text(targets: dict[str, float]) -> str:
    kept = [(name, share) for name, share in targets.items() if share > _LEAST_SHARE]
    if all(share == 1 for _, share in kept):
        names = [name for name, _ in kept[:_MAX_LABELS]]
    else:
        names = [f"{name} {percent(share, 0)}" for name, share in kept[:_MAX_LABELS]]
    more = ["..."] if len(kept) > _MAX_LABELS else []
    return ", ".join([*names, *more])
