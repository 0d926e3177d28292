"""Checks of the contracts of blocks, datasets, augmentations and losses, for authors of parts."""

import copy
import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resnet_builder.blocks import SHORTCUTS
from resnet_builder.blocks.interfaces import SHORTCUT_ATTRIBUTE, missing_attribute
from resnet_builder.data.interfaces import Augmentation, Batch, Dataset, LoadContext
from resnet_builder.data.loader import Shard, normalise
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.random import StatelessGenerator
from resnet_builder.losses import LOSSES, Loss
from resnet_builder.model import on_residual_path

__all__ = ["check_augmentation", "check_block", "check_dataset", "check_loss"]

_NUM_CLASSES = 4


def check_block(block: Callable[..., Any], **options: object) -> None:
    """Check that a block keeps the contract of :class:`resnet_builder.blocks.Block`.

    Args:
        block: Class of the block.
        options: Options of the block.

    Raises:
        AssertionError: The block breaks the contract; the message says how.
    """
    for in_channels, stride in ((8, 1), (8, 2), (4, 1), (4, 2)):
        for name, shortcut in _shortcuts(block):
            made = partial(block, in_channels, 8, stride=stride, shortcut=shortcut, **options)
            what = f"{in_channels} to 8 channels, stride {stride}, shortcut {name}"
            missing = missing_attribute(made(), block.__name__, "out_channels", "zero_residual")
            assert missing is None, missing
            _check_shapes(made(), in_channels, stride, what)
            _check_meta(made, in_channels, what)
            _check_gradients(made(), in_channels, what)
            _check_copies_and_layouts(made(), in_channels, what)
            skip = getattr(made(), SHORTCUT_ATTRIBUTE, None)
            if name == "none":
                assert skip is None, f"{what}: `{SHORTCUT_ATTRIBUTE}` must be None"
                continue
            is_module = isinstance(skip, nn.Module)
            assert is_module, f"{what}: `{SHORTCUT_ATTRIBUTE}` must be the skip path"
            _check_zero_residual(made(), in_channels, what)


def _shortcuts(
    block: Callable[..., Any],
) -> Iterator[tuple[str, Callable[..., nn.Module | None]]]:
    norm = nn.Identity if getattr(block, "preactivated", False) else nn.BatchNorm2d
    for name in SHORTCUTS.names():
        given = {"norm": norm} if "norm" in SHORTCUTS.accepts(name) else {}
        yield name, partial(SHORTCUTS.get(name), **given)


def _images(channels: int, height: int = 7, width: int = 5) -> Tensor:
    """Draw two images with odd, unequal sides from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator)


def _check_shapes(block: Any, in_channels: int, stride: int, what: str) -> None:
    for height, width in ((7, 5), (8, 8), (1, 2)):
        output = block(_images(in_channels, height, width))
        wanted = (2, block.out_channels, math.ceil(height / stride), math.ceil(width / stride))
        shape = tuple(output.shape)
        assert shape == wanted, f"{what}: {height}x{width} images give {shape}, not {wanted}"


def _check_meta(made: Callable[[], Any], in_channels: int, what: str) -> None:
    """Check that a block computes without values: networks are checked so before they are built."""
    with torch.device("meta"):
        block, images = made(), torch.empty(2, in_channels, 7, 5)
    try:
        block(images)
    except RuntimeError as error:
        raise AssertionError(f"{what}: cannot compute on the meta device: {error}") from error


def _check_gradients(block: Any, in_channels: int, what: str) -> None:
    images = _images(in_channels).requires_grad_()
    block.eval()(images).square().sum().backward()
    unused = [name for name, parameter in block.named_parameters() if parameter.grad is None]
    assert not unused, f"{what}: no gradient reaches {unused}"
    assert images.grad is not None, f"{what}: no gradient reaches the images"


def _check_copies_and_layouts(block: Any, in_channels: int, what: str) -> None:
    images = _images(in_channels)
    wanted = block.eval()(images)
    for how, twin in (
        ("a deep copy", copy.deepcopy(block)),
        ("an unpickled copy", pickle.loads(pickle.dumps(block))),
    ):
        assert torch.equal(twin(images), wanted), f"{what}: {how} gives another output"
    last = block.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert torch.allclose(last, wanted, atol=1e-5), f"{what}: channels-last differs"
    with torch.autocast("cpu", torch.bfloat16):
        low = block(images)
    assert low.shape == wanted.shape, f"{what}: bf16 autocast changes the shape"


def _check_zero_residual(block: Any, in_channels: int, what: str) -> None:
    """Check that after ``zero_residual()`` no convolution of the residual path matters."""
    images = _images(in_channels)
    block.eval().zero_residual()
    before = block(images)
    with torch.no_grad():
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d) and on_residual_path(name):
                module.weight.mul_(-3.0)
    assert torch.equal(block(images), before), f"{what}: zero_residual() leaves a residual"


def check_dataset(dataset: Callable[..., Dataset], data_dir: Path, **options: object) -> None:
    """Check that a dataset keeps the contract of :class:`resnet_builder.data.interfaces.Dataset`.

    Args:
        dataset: Class of the dataset.
        data_dir: Folder to load it from.
        options: Options of the dataset.

    Raises:
        AssertionError: The dataset breaks the contract; the message says how.
    """
    made = dataset(**options)
    first, second = (made.load(LoadContext(data_dir, Preprocessing())) for _ in range(2))
    assert first.fingerprint == second.fingerprint, "loading twice gives other fingerprints"
    info = made.info
    assert info.num_classes in {None, len(first.classes)}, "info.num_classes is not the truth"
    counted = info.training_images
    assert counted in {None, len(first.train)}, "info.training_images is not the truth"
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
        assert info.channels in {None, images.shape[1]}, "info.channels is not the truth"
        again = next(iter(source.subset(few).read([torch.arange(len(few))])))
        assert torch.equal(images, again), f"{name}: subset() gives other images"


def check_augmentation(augmentation: Callable[..., Augmentation], **options: object) -> None:
    """Check that an augmentation keeps its contract, :class:`data.interfaces.Augmentation`.

    Args:
        augmentation: Class of the augmentation.
        options: Options of the augmentation.

    Raises:
        AssertionError: The augmentation breaks the contract; the message says how.
    """
    made = augmentation(**options)
    assert made.works_on in {"pixels", "normalised", "any"}, f"works_on is {made.works_on!r}"
    for is_float in (False, True):
        if made.works_on == ("pixels" if is_float else "normalised"):
            continue
        for channels in getattr(made, "channels", (1, 3, 4)):
            batch = _augmentation_batch(channels, is_float=is_float)
            images, targets = batch.images.clone(), batch.targets.clone()
            draws = StatelessGenerator(0, 0, 0, torch.arange(6), "check")
            results = [made(batch, draws) for _ in range(2)]
            what = f"{channels} channels of {images.dtype}"
            assert torch.equal(batch.images, images), f"{what}: the batch was changed in place"
            assert torch.equal(batch.targets, targets), f"{what}: targets were changed in place"
            assert torch.equal(results[0].images, results[1].images), f"{what}: not repeatable"
            assert results[0].images.dtype == images.dtype, f"{what}: the type changed"
            assert results[0].images.shape[:2] == (6, channels), f"{what}: the shape changed"
            total = results[0].targets
            if total.is_floating_point():
                assert torch.allclose(total.sum(1), torch.ones(6)), f"{what}: targets do not sum"
            _check_mixes_with(made, batch, results[0], what)


def _check_mixes_with(made: Augmentation, batch: Batch, whole: Batch, what: str) -> None:
    """Check that an image mixes with no more of the following images than it says."""
    mixes_with = getattr(made, "mixes_with", None)
    positions, own = Shard(1, world_size=3).positions(6, mixes_with)
    given = replace(batch, images=batch.images[positions], targets=batch.targets[positions])
    part = made(given, StatelessGenerator(0, 0, 0, positions, "check"))
    message = f"{what}: mixes_with is not {mixes_with}"
    assert torch.equal(part.images[own], whole.images[1::3]), message
    assert torch.equal(part.targets[own], whole.targets[1::3]), message


def _augmentation_batch(channels: int, *, is_float: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, channels, 9, 8), generator=generator).to(torch.uint8)
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    targets = torch.arange(6) % _NUM_CLASSES
    if is_float:
        fill, black = torch.zeros(channels), -mean / std
        return Batch(normalise(images, mean, std), targets, _NUM_CLASSES, fill, black)
    return Batch(images, targets, _NUM_CLASSES, mean * 255, torch.zeros(channels))


def check_loss(loss: Callable[..., Loss], **options: object) -> None:
    """Check that a loss keeps its contract, :class:`resnet_builder.losses.Loss`.

    Args:
        loss: Class of the loss.
        options: Options of the loss.

    Raises:
        AssertionError: The loss breaks the contract; the message says how.
    """
    counts = {f"class {number}": number + 1 for number in range(_NUM_CLASSES)}
    known = {"class_counts": counts, "num_images": sum(counts.values())}
    wanted = LOSSES.contract & inspect.signature(loss).parameters.keys()
    made = loss(**{name: known[name] for name in wanted}, **options)
    labels = torch.tensor([0, 1, 2, 3, 3, 1])
    one_hot = functional.one_hot(labels, _NUM_CLASSES).float()
    targets = {"labels": labels, "mixed labels": 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)}
    if made.takes_several_labels:
        targets["several labels"] = (one_hot + one_hot.roll(1, 0)).clamp_max(1)
    for what, given in targets.items():
        logits = torch.randn(6, _NUM_CLASSES, generator=torch.Generator().manual_seed(0))
        logits.requires_grad_()
        mean = made(logits, given)
        assert mean.shape == (), f"{what}: the loss has the shape {tuple(mean.shape)}, not ()"
        assert mean.isfinite(), f"{what}: the loss is {mean.item()}"
        torch.autograd.backward(mean)
        assert logits.grad is not None, f"{what}: no gradient reaches the logits"
        assert logits.grad.isfinite().all(), f"{what}: the gradient is not finite"
        parts = list(zip(logits.detach().split(2), given.split(2), strict=True))
        sums = [made.total_weight(part) for _, part in parts]
        weights = torch.stack([torch.ones(()) if one is None else one for one in sums])
        means = torch.stack([made(*part) for part in parts])
        whole = (weights * means).sum() / weights.sum()
        assert torch.allclose(whole, mean), f"{what}: parts of a batch have another mean"
