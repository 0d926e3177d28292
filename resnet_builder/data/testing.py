"""The contracts of data sets and augmentations, as checks to call."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from resnet_builder.data.hashing import HashedDraws
from resnet_builder.data.interfaces import Augmentation, Batch, Dataset, LoadContext
from resnet_builder.data.pipeline import normalise
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.share import Shard

_CLASSES = 4


def check_dataset(dataset: Callable[..., Dataset], data_dir: Path, **options: object) -> None:
    """Check that a data set keeps the contract of :class:`resnet_builder.data.Dataset`.

    Args:
        dataset: Its class.
        data_dir: The folder to load it from.
        options: Options to make it with.

    Raises:
        AssertionError: It does not; the message says in what.
    """
    made = dataset(**options)
    first, second = (made.load(LoadContext(data_dir, Preprocessing())) for _ in range(2))
    assert first.fingerprint == second.fingerprint, "loading twice gives other fingerprints"
    facts = made.facts
    assert facts.num_classes in {None, len(first.classes)}, "facts.num_classes is not the truth"
    counted = facts.training_images
    assert counted in {None, len(first.train)}, "facts.training_images is not the truth"
    for name in ("train", "validation", "test"):
        source = getattr(first, name)
        if source is None:
            continue
        assert source.labels.dtype == torch.int64, f"{name}: labels are not int64"
        assert source.labels.shape == (len(source),), f"{name}: not one label for each image"
        assert source.labels.min() >= 0, f"{name}: a label is negative"
        assert source.labels.max() < len(first.classes), f"{name}: a label is beyond the classes"
        few = torch.arange(min(3, len(source))).flip(0)
        images = next(iter(source.read([few])))
        assert images.dtype == torch.uint8, f"{name}: images are not uint8"
        assert images.dim() == 4, f"{name}: images are not (B, C, H, W)"
        assert facts.channels in {None, images.shape[1]}, "facts.channels is not the truth"
        again = next(iter(source.take(few).read([torch.arange(len(few))])))
        assert torch.equal(images, again), f"{name}: take() gives other images"


def check_augmentation(augmentation: Callable[..., Augmentation], **options: object) -> None:
    """Check that an augmentation keeps the contract of its protocol.

    Args:
        augmentation: Its class.
        options: Options to make it with.

    Raises:
        AssertionError: It does not; the message says in what.
    """
    made = augmentation(**options)
    assert made.works_on in {"pixels", "normalised", "any"}, f"works_on is {made.works_on!r}"
    for is_float in (False, True):
        if made.works_on == ("pixels" if is_float else "normalised"):
            continue
        for channels in (1, 3):
            batch = _batch(channels, is_float=is_float)
            images, targets = batch.images.clone(), batch.targets.clone()
            results = [made(batch, _draws(6)) for _ in range(2)]
            what = f"{channels} channels of {images.dtype}"
            assert torch.equal(batch.images, images), f"{what}: the batch was changed in place"
            assert torch.equal(batch.targets, targets), f"{what}: targets were changed in place"
            assert torch.equal(results[0].images, results[1].images), f"{what}: not repeatable"
            assert results[0].images.dtype == images.dtype, f"{what}: the type changed"
            assert results[0].images.shape[:2] == (6, channels), f"{what}: the shape changed"
            total = results[0].targets
            if total.is_floating_point():
                assert torch.allclose(total.sum(1), torch.ones(6)), f"{what}: targets do not sum"
            _check_reach(made, batch, results[0], what)


def _check_reach(made: Augmentation, batch: Batch, whole: Batch, what: str) -> None:
    """Check that an image needs no more of those after it than is said."""
    reach = getattr(made, "reach", None)
    positions, own = Shard(1, of=3).window(6, reach)
    given = replace(batch, images=batch.images[positions], targets=batch.targets[positions])
    part = made(given, HashedDraws(0, 0, 0, positions, "check"))
    assert torch.equal(part.images[own], whole.images[1::3]), f"{what}: reach is not {reach}"
    assert torch.equal(part.targets[own], whole.targets[1::3]), f"{what}: reach is not {reach}"


def _batch(channels: int, *, is_float: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, channels, 9, 8), generator=generator).to(torch.uint8)
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    targets = torch.arange(6) % _CLASSES
    if is_float:
        fill, black = torch.zeros(channels), -mean / std
        return Batch(normalise(images, mean, std), targets, _CLASSES, fill, black)
    return Batch(images, targets, _CLASSES, mean * 255, torch.zeros(channels))


def _draws(count: int) -> HashedDraws:
    return HashedDraws(0, 0, 0, torch.arange(count), "check")
