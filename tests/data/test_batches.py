from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_builder.data import AUGMENTATIONS
from resnet_builder.data.batches import TrainBatches, evaluation_batches
from resnet_builder.data.interfaces import Batch
from resnet_builder.data.memory import InMemoryImages
from resnet_builder.data.pipeline import Pipeline, normalise
from resnet_builder.errors import DataError

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def source(count: int = 34) -> InMemoryImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).byte()
    return InMemoryImages(images, torch.arange(count) % 5)


def batches(seed: int = 0, size: int = 8, augment: Any = None, count: int = 34) -> TrainBatches:
    given: list[Any] = [("random_crop", {}), ("horizontal_flip", {}), ("mixup", {})]
    chosen = given if augment is None else augment
    made = [AUGMENTATIONS.get(name)(**options) for name, options in chosen]
    pipeline = Pipeline(made, MEAN, STD, 5, seed)
    return TrainBatches(source(count), batch_size=size, seed=seed, pipeline=pipeline, device=CPU)


def first(count: int, iterator: Iterator[Batch]) -> list[Batch]:
    return list(islice(iterator, count))


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 9])
def test_a_batch_is_the_same_however_it_is_reached(start: int) -> None:
    everything = first(12, batches().starting_at(0))
    later = first(12 - start, batches().starting_at(start))
    assert all(same(one, other) for one, other in zip(later, everything[start:], strict=True))


def test_an_epoch_holds_full_batches_of_different_images() -> None:
    plain = batches(augment=[])
    assert plain.steps_per_epoch == 4
    seen = torch.cat([batch.images for batch in first(4, plain.starting_at(0))])
    assert len(seen) == 32
    assert len(seen.unique(dim=0)) == 32


def test_the_images_left_over_are_others_in_each_epoch() -> None:
    """KellerJordan's sampler gave the same order in every epoch."""
    epochs = first(8, batches(augment=[]).starting_at(0))
    labels = [torch.cat([batch.targets for batch in epochs[i : i + 4]]) for i in (0, 4)]
    assert not torch.equal(*labels)


def test_seeds_give_other_orders() -> None:
    one, other = (first(1, batches(seed=seed, augment=[]).starting_at(0))[0] for seed in (0, 1))
    assert not same(one, other)


def test_augmentation_changes_with_the_epoch() -> None:
    whole = batches(size=34, augment=[("horizontal_flip", {})])
    epochs = first(2, whole.starting_at(0))
    one, other = (batch.images.sum((1, 2)).sort(0).values for batch in epochs)  # by column
    assert not torch.allclose(one, other)


def test_row48_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="34 training images are fewer than one batch of 35"):
        batches(size=35)


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    images = source(512).images
    mean = images.double().mean((0, 2, 3)) / 255
    std = images.double().flatten(2).transpose(0, 1).flatten(1).std(1, correction=0) / 255
    result = normalise(images, mean.float(), std.float()).double()
    assert torch.allclose(result.mean((0, 2, 3)), torch.zeros(3, dtype=torch.double), atol=1e-5)
    assert result.flatten(2).transpose(0, 1).flatten(1).std(1).sub(1).abs().max() < 1e-3


def test_row48_evaluation_sees_every_image_once_in_order_and_unchanged() -> None:
    data = source()
    found = list(evaluation_batches(data, batch_size=8, mean=MEAN, std=STD, device=CPU))
    assert [len(images) for images, _ in found] == [8, 8, 8, 8, 2]
    images = torch.cat([images for images, _ in found])
    assert torch.equal(images, normalise(data.images, torch.tensor(MEAN), torch.tensor(STD)))
    assert torch.equal(torch.cat([labels for _, labels in found]), data.labels)


def test_training_leaves_the_source_s_images_as_they_were() -> None:
    made = batches()
    before = source().images
    first(10, made.starting_at(0))
    assert torch.equal(made._source.images, before)  # type: ignore[attr-defined]


def test_a_pixel_operation_works_before_normalisation_and_a_mix_after() -> None:
    types: list[torch.dtype] = []

    class Spy:
        works_on = "any"

        def __call__(self, batch: Batch, draws: Any) -> Batch:
            types.append(batch.images.dtype)
            return batch

    made = [Spy(), AUGMENTATIONS.get("mixup")(), Spy()]
    pipeline = Pipeline(made, MEAN, STD, 5, 0)  # type: ignore[arg-type]
    images, labels = source(4).images, source(4).labels
    result = pipeline(images, labels, torch.arange(4), epoch=0, step=0)
    assert types == [torch.uint8, torch.float32]
    assert result.images.dtype == torch.float32


@pytest.mark.parametrize("after_mixing", [False, True], ids=["pixels", "normalised"])
@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_holes_have_the_same_colour_before_and_after_normalisation(
    fill: str, after_mixing: bool
) -> None:
    hole = AUGMENTATIONS.get("cutout")(size=4_096, fill=fill)
    mixup = [AUGMENTATIONS.get("mixup")()] if after_mixing else []
    pipeline = Pipeline([*mixup, hole], MEAN, STD, 5, 0)
    images, labels = source(4).images, source(4).labels
    result = pipeline(images, labels, torch.arange(4), epoch=0, step=0).images
    black = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]
    wanted = torch.tensor([0.0] * 3 if fill == "mean" else black)[:, None, None]
    half_a_level = 0.5 / 255 / min(STD)
    assert (result - wanted).abs().max() <= half_a_level


def test_resized_crops_do_not_depend_on_where_they_are_cut() -> None:
    """A crop cut while reading and one cut from a batch draw the same numbers."""
    made = batches(augment=[("random_resized_crop", {"size": 6})])
    one, other = (first(2, made.starting_at(step)) for step in (0, 1))
    assert one[0].images.shape == (8, 3, 6, 6)
    assert same(one[1], other[0])
    assert not torch.equal(_row(one[0].images), _row(one[1].images))


def _row(images: Tensor) -> Tensor:
    return images[0, 0, 0]


def test_a_source_on_a_device_gives_the_same_images() -> None:
    indices = torch.tensor([3, 0, 3])
    (held,) = source().on(CPU).read([indices])
    (read,) = source().read([indices])
    assert torch.equal(held, read)
    assert torch.equal(source().on(CPU).labels, source().labels)
