"""Validation images: how many training images are set aside, and which."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from resnet_builder.data.interfaces import ImageSource, LoadedDataset
from resnet_builder.data.random import hash_seed
from resnet_builder.errors import DataError, Problem, SpecError
from resnet_builder.spec.schema import DataSpec

DEFAULT_SHARE = 0.1
"""Share of the training images that is set aside where nothing says how many."""

_LARGEST_SHARE = 0.25


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return the number of images of each class, ``(K,)`` int64.

    Args:
        labels: ``(N,)`` int64; or ``(N, K)`` uint8, where an image may have several labels.
        num_classes: Number of classes, K.
    """
    return labels.sum(0) if labels.dim() == 2 else torch.bincount(labels, minlength=num_classes)


def default_validation(class_counts: Sequence[int], total: int) -> int | float:
    """Return how many images to set aside where neither the spec nor the dataset has any.

    A tenth, but one of each class. More, up to a quarter, where the smallest class would have none
    in a tenth. No image at all, where a class has only one.

    Args:
        class_counts: Training images of each class.
        total: Training images.

    Returns:
        Number or share, as ``data.validation`` has it.
    """
    classes, smallest = len(class_counts), min(class_counts, default=0)
    if smallest < 2:
        return 0
    share = round(DEFAULT_SHARE * total)
    needed = math.ceil(total / smallest)  # with so many, each class has one
    if share < needed and (needed == classes or needed <= _LARGEST_SHARE * total):
        return needed
    return DEFAULT_SHARE if share >= classes else classes


def set_validation_aside(
    loaded: LoadedDataset, data: DataSpec
) -> tuple[ImageSource, ImageSource | None, tuple[int, ...]]:
    """Divide the training images.

    Returns:
        Training images, validation images if there are any, and indices of those set aside.

    Raises:
        DataError: There are too few images.
        SpecError: The dataset has validation images, and the spec asks for others.
    """
    count, classes = len(loaded.train), len(loaded.classes)
    if data.validation == "auto":  # of a spec that was resolved without its data
        counts = class_counts(loaded.train.labels, classes).tolist()
        amount = 0 if loaded.validation is not None else default_validation(counts, count)
        data = data.model_copy(update={"validation": amount})
    multi_label = loaded.train.labels.dim() == 2
    check_validation(data, loaded.validation is not None, count, 1 if multi_label else classes)
    if data.validation == 0:
        return loaded.train, loaded.validation, ()
    aside = stratified(loaded.train.labels, data.set_aside(count), data.split_seed)
    kept = torch.ones(count, dtype=torch.bool).index_fill(0, aside, value=False).nonzero()[:, 0]
    return loaded.train.subset(kept), loaded.train.subset(aside), tuple(aside.tolist())


def single_image_notice(loaded: LoadedDataset, data: DataSpec) -> Iterator[str]:
    """Yield a notice if no image is set aside because a class has only one."""
    if data.validation != 0 or loaded.validation is not None or loaded.train.labels.dim() == 2:
        return
    counts = class_counts(loaded.train.labels, len(loaded.classes)).tolist()
    if single := [name for name, count in zip(loaded.classes, counts, strict=True) if count == 1]:
        yield (
            f"there is 1 training image of {', '.join(single)}: by default no images are set aside "
            "for validation then, and the weights tested are the last ones"
        )


def check_validation(
    data: DataSpec,
    own_validation: bool,
    count: int,
    num_classes: int,
    class_counts: Sequence[int] | None = None,
) -> None:
    """Check that validation images can be set aside, if the spec asks for any.

    Args:
        data: Section ``data``.
        own_validation: Whether the dataset has validation images.
        count: Number of training images.
        num_classes: Number of classes that must be on both sides; 1, if an image may have several
            labels: then chance alone chooses.
        class_counts: Training images of each class, if known and each image has one label.

    Raises:
        DataError: There are too few images, in all or of a class.
        SpecError: The dataset has validation images, and the spec asks for others.
    """
    if data.validation in {0, "auto"}:
        return
    if own_validation:
        message = f"{data.dataset.type} has validation images of its own; set it to 0"
        raise SpecError([Problem("exclusive", "data.validation", message, file="<data>")])
    amount = data.set_aside(count)
    needed = "1" if num_classes == 1 else f"one for each of the {num_classes} classes"
    if not num_classes <= amount <= count - num_classes:
        raise DataError(
            f"data.validation: {amount:,} of {count:,} training images cannot be set aside; at "
            f"least {needed} must be, and as many must be left"
        )
    if class_counts is not None:  # how many are chosen of a class depends on the numbers alone
        labels = torch.arange(num_classes).repeat_interleave(torch.tensor(class_counts))
        stratified(labels, amount, data.split_seed)


def stratified(labels: Tensor, amount: int, seed: int) -> Tensor:
    """Choose images so that every class keeps its proportion.

    The choice is that of scikit-learn's ``train_test_split(stratify=labels)``, draw for draw.
    numpy promises that ``RandomState`` never changes, so neither do published splits.

    Args:
        labels: ``(N,)`` int64. Of ``(N, K)``, several labels an image, chance alone chooses.
        amount: Number of images to choose.
        seed: Seed of the choice.

    Returns:
        ``(amount,)`` int64 indices, ascending.

    Raises:
        DataError: A class has a single image, or would have none left.
    """
    draws = np.random.RandomState(hash_seed(seed, "split") & 0xFFFFFFFF)
    if labels.dim() == 2:
        return torch.from_numpy(np.sort(draws.permutation(len(labels))[:amount]))
    _, classes, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise DataError("data.validation: a class has 1 training image; at least 2 are needed")
    left = _proportional(counts, len(labels) - amount, draws)
    if left.min() == 0:
        raise DataError(
            f"data.validation: with {amount:,} of {len(labels):,} training images set aside, none "
            f"would be left of a class of {counts[left.argmin()]}; set fewer aside"
        )
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
