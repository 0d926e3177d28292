"""The parts that several processes compute make up the batch that one computes, bit for bit."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_builder.data import AUGMENTATIONS
from resnet_builder.data.batches import TrainBatches, evaluation_batches
from resnet_builder.data.interfaces import Batch, SampleCrop, StatelessGenerator
from resnet_builder.data.memory import InMemoryImages
from resnet_builder.data.pipeline import Pipeline
from resnet_builder.data.share import WHOLE, Shard
from resnet_builder.testing import check_augmentation

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

CHAINS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "none": [],
    "by itself": [
        ("random_crop", {"padding": 2}),
        ("horizontal_flip", {}),
        ("trivial_augment", {}),
        ("random_erasing", {"p": 1.0}),
    ],
    "by the next": [("horizontal_flip", {}), ("mixup", {"alpha": 1.0})],
    "by the next but one": [("mixup", {"alpha": 1.0}), ("cutmix", {})],
    "while it is read": [("random_resized_crop", {"size": 5}), ("mixup", {"alpha": 1.0})],
}


class Counting(InMemoryImages):
    """Counts the images that are read."""

    count = 0

    def read(self, batches: Any, crop: SampleCrop | None = None) -> Any:
        for images in super().read(batches, crop):
            self.count += len(images)
            yield images


class Centred:
    """Changes every image by all others, and does not say so."""

    works_on = "normalised"

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        return replace(batch, images=batch.images - batch.images.mean(0))


def source(count: int = 30, side: int = 7) -> Counting:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator).byte()
    return Counting(images, torch.arange(count) % 5)


def batches(images: InMemoryImages, chain: list[Any], share: Shard = WHOLE) -> list[Batch]:
    made = TrainBatches(
        images,
        batch_size=12,
        seed=3,
        pipeline=Pipeline(chain, MEAN, STD, 5, 3),
        device=CPU,
        share=share,
    )
    return list(islice(made.starting_at(1), 4))


@pytest.mark.parametrize("processes", [2, 3, 4, 6])
@pytest.mark.parametrize("chain", CHAINS)
def test_position_p_of_the_batch_goes_to_process_p_mod_w(chain: str, processes: int) -> None:
    made = [AUGMENTATIONS.get(name)(**options) for name, options in CHAINS[chain]]
    whole = batches(source(), made)
    for rank in range(processes):
        for one, part in zip(whole, batches(source(), made, Shard(rank, processes)), strict=True):
            assert torch.equal(part.images, one.images[rank::processes])
            assert torch.equal(part.targets, one.targets[rank::processes])


@pytest.mark.parametrize(("chain", "read"), [("by itself", 3), ("by the next", 6)])
def test_a_process_reads_only_the_images_it_needs(chain: str, read: int) -> None:
    made = [AUGMENTATIONS.get(name)(**options) for name, options in CHAINS[chain]]
    images = source()
    batches(images, made, Shard(1, of=4))
    assert images.count == 4 * read


def test_an_augmentation_that_says_nothing_is_given_the_whole_batch() -> None:
    [whole, *_] = batches(source(), [Centred()])
    [part, *_] = batches(source(), [Centred()], Shard(2, of=4))
    assert torch.equal(part.images, whole.images[2::4])


def test_an_augmentation_that_says_too_little_breaks_the_contract() -> None:
    class Claiming(Centred):
        reach = 0

    check_augmentation(Centred)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="reach is not 0"):
        check_augmentation(Claiming)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "processes"), [(30, 2), (30, 3), (8, 3), (5, 4)])
def test_shares_of_an_evaluation_make_up_the_whole_in_order(count: int, processes: int) -> None:
    def labels(share: Shard) -> Tensor:
        found = evaluation_batches(
            source(count), batch_size=8, mean=MEAN, std=STD, device=CPU, share=share
        )
        return torch.cat([torch.empty(0, dtype=torch.int64), *(labels for _, labels in found)])

    parts = [labels(Shard(rank, processes)) for rank in range(processes)]
    assert torch.equal(torch.cat(parts), labels(WHOLE))
