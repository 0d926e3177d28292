"""Batches: the same however they are reached, and whatever number of processes shares them."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_builder.data import AUGMENTATIONS
from resnet_builder.data.interfaces import Batch, SampleCrop
from resnet_builder.data.loader import (
    WHOLE_BATCH,
    Pipeline,
    Shard,
    TrainLoader,
    evaluation_batches,
    normalise,
)
from resnet_builder.data.random import StatelessGenerator, balanced_draws
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.testing import check_augmentation
from tests.data.test_augment import OPTIONS

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Centred:
    """Changes every image by all others, and does not say so."""

    works_on = "normalised"

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        return replace(batch, images=batch.images - batch.images.mean(0))


CHAINS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "none": [],
    "alone": [
        ("random_crop", {"padding": 2}),
        ("horizontal_flip", {}),
        ("trivial_augment", {}),
        ("rand_augment", {}),
        ("random_erasing", {"p": 1.0}),
    ],
    "with the next": [("horizontal_flip", {}), ("mixup", {"alpha": 1.0})],
    "with the next two": [("mixup", {"alpha": 1.0}), ("cutmix", {})],
    "with all": [("horizontal_flip", {}), ("centred", {})],
    "while reading": [("random_resized_crop", {"size": 5}), ("mixup", {"alpha": 1.0})],
}


class Counting(InMemoryImages):
    """Counts the images that are read."""

    count = 0

    def read(self, batches: Any, crop: SampleCrop | None = None) -> Any:
        for images in super().read(batches, crop):
            self.count += len(images)
            yield images


def source(count: int = 30, side: int = 7) -> Counting:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator).byte()
    return Counting(images, torch.arange(count) % 5)


def made(chain: str) -> list[Any]:
    with AUGMENTATIONS.temporary("centred", Centred):  # type: ignore[arg-type]
        return [AUGMENTATIONS.get(name)(**options) for name, options in CHAINS[chain]]


def loader(
    chain: list[Any],
    images: Any = None,
    size: int = 12,
    seed: int = 3,
    shard: Shard = WHOLE_BATCH,
    sampler: Any = "uniform",
) -> TrainLoader:
    return TrainLoader(
        source() if images is None else images,
        batch_size=size,
        seed=seed,
        sampler=sampler,
        pipeline=Pipeline(chain, MEAN, STD, 5, seed),
        device=CPU,
        shard=shard,
    )


def first(count: int, chain: list[Any], start: int = 0, **how: Any) -> list[Batch]:
    return list(islice(loader(chain, **how).batches(start), count))


@pytest.mark.parametrize("chain", CHAINS)
def test_batch_is_the_same_however_it_is_reached(chain: str) -> None:
    images = source()
    everything = first(6, made(chain), images=images)
    assert torch.equal(images.images, source().images)  # those of the source are not changed
    for start in (1, 2, 3, 5):
        later = first(6 - start, made(chain), start)
        for one, other in zip(later, everything[start:], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("count", [3, 50])
@pytest.mark.parametrize("sampler", ["uniform", "balanced"])
@pytest.mark.parametrize("chain", CHAINS)
def test_preview_has_the_first_images_of_the_training(chain: str, sampler: str, count: int) -> None:
    images = source()
    [expected] = first(1, made(chain), sampler=sampler)
    samples, plain, batch = loader(made(chain), images=images, sampler=sampler).preview(count)
    count = min(count, 12)
    assert torch.equal(batch.images, expected.images[:count])
    assert torch.equal(batch.targets, expected.targets[:count])
    assert torch.equal(plain, images.images[samples % len(images)])


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_any_augmentation_resumes_to_the_same_bits_in_any_number_of_processes(name: str) -> None:
    chain = [AUGMENTATIONS.get(name)(**OPTIONS.get(name, {}))]
    one, two, three = first(3, chain)
    [later] = first(1, chain, 2)
    assert torch.equal(later.images, three.images)
    assert torch.equal(later.targets, three.targets)
    assert not torch.equal(one.images, two.images)
    for rank in range(2):
        [part] = first(1, chain, 2, shard=Shard(rank, 2))
        assert torch.equal(part.images, three.images[rank::2])
        assert torch.equal(part.targets, three.targets[rank::2])


@pytest.mark.parametrize("chain", ["alone", "while reading"])
def test_augmentation_does_not_depend_on_the_batch_size(chain: str) -> None:
    """But for mixing, which is of the batch."""
    chain_made = [op for op in made(chain) if getattr(op, "mixes_with", 1) == 0]
    whole = torch.cat([batch.images for batch in first(2, chain_made, size=12)])
    parts = torch.cat([batch.images for batch in first(6, chain_made, size=4)])
    assert torch.equal(whole, parts)


def test_epochs_hold_full_batches_of_different_images_in_other_orders() -> None:
    """KellerJordan's sampler gave the same order in every epoch."""
    images = InMemoryImages(source(34).images, torch.arange(34))
    plain = loader([], images, size=8)
    assert plain.steps_per_epoch == 4
    batches = list(islice(plain.batches(), 8))
    epochs = [torch.cat([batch.targets for batch in batches[at : at + 4]]) for at in (0, 4)]
    assert [len(order.unique()) for order in epochs] == [32, 32]
    assert not torch.equal(*epochs)
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    [other, *_] = first(1, [], images=images, size=8, seed=4)
    assert not torch.equal(other.targets, batches[0].targets)


@pytest.mark.parametrize("processes", [2, 3, 4, 6])
@pytest.mark.parametrize("chain", CHAINS)
def test_position_p_of_the_batch_goes_to_process_p_mod_w(chain: str, processes: int) -> None:
    whole = first(4, made(chain), 1)
    for rank in range(processes):
        parts = first(4, made(chain), 1, shard=Shard(rank, processes))
        for one, part in zip(whole, parts, strict=True):
            assert torch.equal(part.images, one.images[rank::processes])
            assert torch.equal(part.targets, one.targets[rank::processes])


# Balanced sampling.


def rare(counts: tuple[int, ...], side: int = 1) -> InMemoryImages:
    """Make different images of classes, not equally many."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels) * 3 * side * side) % 251
    return InMemoryImages(images.view(-1, 3, side, side).byte(), labels)


def test_balanced_draws_have_each_class_equally_often_within_chance() -> None:
    counts = (6_000, 3_000, 900, 95, 5)
    labels = torch.arange(5).repeat_interleave(torch.tensor(counts))
    for epoch in range(3):
        draws = balanced_draws(1, epoch, labels)
        assert len(draws) == 10_000
        found = labels[draws % 10_000].bincount()
        # Pearson's statistic of four degrees of freedom, between its 0.1 and 99.9 percentiles.
        assert 0.091 < ((found - 2_000) ** 2 / 2_000).sum() < 18.47
        # Each class is dealt in decks: no image comes again before all others of its class.
        for label, count in enumerate(counts):
            own = draws[labels[draws % 10_000] == label]
            assert len(own.unique()) == len(own)
            assert torch.equal(own // 10_000, torch.arange(len(own)) // count)
    assert not torch.equal(draws, balanced_draws(1, 1, labels))
    assert not torch.equal(draws, balanced_draws(2, 2, labels))
    assert torch.equal(draws, balanced_draws(1, 2, labels))


@pytest.mark.parametrize("chain", ["alone", "with the next", "while reading"])
def test_balanced_batches_are_the_same_from_any_step_and_in_any_number_of_processes(
    chain: str,
) -> None:
    how: dict[str, Any] = {"images": rare((24, 5, 1), side=7), "sampler": "balanced"}
    everything = first(5, made(chain), **how)
    assert loader([], **how).steps_per_epoch == 2
    for start, processes in ((0, 3), (1, 2), (3, 2), (4, 1)):
        for rank in range(processes):
            later = first(5 - start, made(chain), start, shard=Shard(rank, processes), **how)
            for one, other in zip(later, everything[start:], strict=True):
                assert torch.equal(one.images, other.images[rank::processes])
                assert torch.equal(one.targets, other.targets[rank::processes])


@pytest.mark.parametrize("chain", ["alone", "while reading"])
def test_image_that_repeats_in_an_epoch_is_augmented_otherwise(chain: str) -> None:
    images = rare((29, 1), side=7)
    alone = made(chain)[: 1 if chain == "while reading" else None]
    one, two = first(2, alone, images=images, sampler="balanced")
    same = torch.cat([batch.images[batch.targets == 1] for batch in (one, two)])
    assert len(same) > 8
    assert len(same.unique(dim=0)) > len(same) // 2


@pytest.mark.parametrize(("chain", "read"), [("alone", 3), ("with the next", 6)])
def test_process_reads_only_the_images_it_needs(chain: str, read: int) -> None:
    images = source()
    first(4, made(chain), images=images, shard=Shard(1, world_size=4))
    assert images.count == 4 * read


def test_augmentation_that_mixes_more_than_it_says_breaks_the_contract() -> None:
    class Claiming(Centred):
        mixes_with = 0

    check_augmentation(Centred)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="mixes_with is not 0"):
        check_augmentation(Claiming)  # type: ignore[arg-type]


def test_pixel_operations_work_before_normalisation_and_mixing_after() -> None:
    types: list[torch.dtype] = []

    class Spy:
        works_on = "any"

        def __call__(self, batch: Batch, draws: Any) -> Batch:
            types.append(batch.images.dtype)
            return batch

    [batch] = first(1, [Spy(), AUGMENTATIONS.get("mixup")(), Spy()])
    assert types == [torch.uint8, torch.float32]
    assert batch.images.dtype == torch.float32


@pytest.mark.parametrize("after_mixing", [False, True], ids=["pixels", "normalised"])
@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_holes_have_the_same_colour_before_and_after_normalisation(
    fill: str, after_mixing: bool
) -> None:
    hole = AUGMENTATIONS.get("cutout")(size=4_096, fill=fill)
    mixup = [AUGMENTATIONS.get("mixup")()] if after_mixing else []
    [batch] = first(1, [*mixup, hole])
    black = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]
    wanted = torch.tensor([0.0] * 3 if fill == "mean" else black)[:, None, None]
    half_a_level = 0.5 / 255 / min(STD)
    assert (batch.images - wanted).abs().max() <= half_a_level


def test_normalised_images_have_mean_0_and_deviation_1() -> None:
    images = source(512).images
    flat = images.double().transpose(0, 1).flatten(1) / 255
    mean, std = flat.mean(1).float(), flat.std(1, correction=0).float()
    result = normalise(images, mean, std).double().transpose(0, 1).flatten(1)
    assert result.mean(1).abs().max() < 1e-5
    assert (result.std(1, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("size", [8, 30, 100])
def test_evaluation_sees_every_image_once_in_order_and_unchanged(size: int) -> None:
    """In batches of the size that is asked for: kuangliu's took 100 images at a time."""
    data = source()
    found = list(evaluation_batches(data, batch_size=size, mean=MEAN, std=STD, device=CPU))
    assert [len(images) for images, _ in found] == [len(part) for part in data.images.split(size)]
    images = torch.cat([images for images, _ in found])
    assert torch.equal(images, normalise(data.images, torch.tensor(MEAN), torch.tensor(STD)))
    assert torch.equal(torch.cat([labels for _, labels in found]), data.labels)


@pytest.mark.parametrize(("count", "processes"), [(30, 2), (30, 3), (8, 3), (5, 4)])
def test_shards_of_an_evaluation_make_up_the_whole_in_order(count: int, processes: int) -> None:
    def labels(shard: Shard) -> Tensor:
        found = evaluation_batches(
            source(count), batch_size=8, mean=MEAN, std=STD, device=CPU, shard=shard
        )
        return torch.cat([torch.empty(0, dtype=torch.int64), *(labels for _, labels in found)])

    parts = [labels(Shard(rank, processes)) for rank in range(processes)]
    assert torch.equal(torch.cat(parts), labels(WHOLE_BATCH))
