"""Bugs in data: order, splits, statistics and labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from resnet_builder.builder import read_spec
from resnet_builder.data.augment.geometry import HorizontalFlip, RandomCrop
from resnet_builder.data.batches import TrainBatches, evaluation_batches
from resnet_builder.data.interfaces import Augmentation, Batch
from resnet_builder.data.memory import InMemoryImages, whole
from resnet_builder.data.pipeline import WHITE, Pipeline, normalise
from resnet_builder.data.splits import DataSplits, channel_statistics, load_data
from resnet_builder.spec.schema import Spec
from tests.known_bugs.bugs import bug

CPU = torch.device("cpu")
DARK, EVEN = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

Statistics = Callable[[InMemoryImages], tuple[Sequence[float], Sequence[float]]]


def experiment(validation: int) -> Spec:
    """Describe an experiment with this many validation images of 60."""
    return read_spec(
        {
            "model": {
                "num_classes": 4,
                "stem": {"type": "conv3x3", "channels": 4},
                "block": "basic",
                "shortcut": "pad",
                "stages": [{"channels": 4, "blocks": 1}],
            },
            "data": {
                "dataset": {"type": "synthetic", "num_classes": 4, "train": 60, "test": 20},
                "validation": validation,
            },
        }
    )


def source(count: int) -> InMemoryImages:
    """Draw images, each of a brightness of its own."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.randint(0, 200, (count, 3, 1, 1), generator=generator)
    noise = torch.randint(0, 56, (count, 3, 8, 8), generator=generator)
    return InMemoryImages((brightness + noise).to(torch.uint8), torch.arange(count))


def images_of(given: Any) -> Tensor:
    """Return the images of a source in memory."""
    assert isinstance(given, InMemoryImages)
    return given.images


def as_evaluated(splits: DataSplits) -> Tensor:
    """Return the validation images as the network is fed them."""
    assert splits.validation is not None
    batches = evaluation_batches(
        splits.validation, batch_size=8, mean=splits.mean, std=splits.std, device=CPU
    )
    return torch.cat([images for images, _ in batches])


def as_trained(splits: DataSplits) -> Tensor:
    """Return the validation images as if they were training images."""
    assert splits.validation is not None
    augmentations: list[Augmentation] = [HorizontalFlip(), RandomCrop()]
    pipeline = Pipeline(augmentations, splits.mean, splits.std, len(splits.classes), 0)
    images, labels = images_of(splits.validation), splits.validation.labels
    return pipeline(images, labels, torch.arange(len(labels)), epoch=0, step=0).images


@bug(
    "kellerjordan-12",
    "validation images are cropped and flipped",
    ours=as_evaluated,
    planted=as_trained,
)
def check_validation_images_are_as_they_are(fed: Callable[[DataSplits], Tensor]) -> None:
    splits = load_data(experiment(validation=20))
    everything = images_of(load_data(experiment(validation=0)).train)
    images = everything[torch.tensor(splits.validation_indices)]
    expected = normalise(images, torch.tensor(splits.mean), torch.tensor(splits.std))
    assert torch.equal(fed(splits), expected)


class UnshuffledBatches(TrainBatches):
    """Take the images of every epoch in the same order."""

    def _epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        return super()._epoch(0, first)


@bug(
    "kellerjordan-13",
    "every epoch has the same order",
    ours=TrainBatches,
    planted=UnshuffledBatches,
)
def check_epochs_are_shuffled(make: type[TrainBatches]) -> None:
    pipeline = Pipeline([], DARK, EVEN, 32, 0)
    batches = make(source(32), batch_size=8, seed=0, pipeline=pipeline, device=CPU)
    targets = [batch.targets for batch in islice(batches.starting_at(0), 8)]
    first, second = torch.cat(targets[:4]), torch.cat(targets[4:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def labels_as_floats(labels: Tensor) -> Tensor:
    """Take labels for real numbers on their way."""
    return labels.float().long()


@bug("kellerjordan-21a", "labels go through floats", ours=whole, planted=labels_as_floats)
def check_labels_stay_whole_numbers(read: Callable[[Tensor], Tensor]) -> None:
    labels = torch.tensor([0, 2**24 + 1, 2**31 - 1])
    assert read(labels).tolist() == labels.tolist()


def halves(given: InMemoryImages) -> tuple[Sequence[float], Sequence[float]]:
    """Take every channel for grey."""
    return (0.5,) * 3, (0.5,) * 3


def imagenet_s(given: InMemoryImages) -> tuple[Sequence[float], Sequence[float]]:
    """Take every data set for ImageNet."""
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def averages_of_images(given: InMemoryImages) -> tuple[Sequence[float], Sequence[float]]:
    """Average each image's own mean and deviation."""
    pixels = given.images.double().flatten(2) / WHITE
    return pixels.mean(2).mean(0).tolist(), pixels.std(2).mean(0).tolist()


@bug("kellerjordan-21b", "normalises by 0.5", ours=channel_statistics, planted=halves)
@bug("akamaster-8", "normalises by ImageNet's colours", ours=channel_statistics, planted=imagenet_s)
@bug(
    "kuangliu-13",
    "takes the average of images' deviations for the deviation",
    ours=channel_statistics,
    planted=averages_of_images,
)
def check_normalised_images_have_mean_0_and_deviation_1(statistics: Statistics) -> None:
    images = source(500)
    mean, std = (torch.tensor(values) for values in statistics(images))
    channels = normalise(images.images, mean, std).double().transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-4
    assert (channels.std(1, correction=0) - 1).abs().max() < 1e-4


def tested_for_validation(spec: Spec) -> DataSplits:
    """Choose the best weights on the test images."""
    splits = load_data(spec)
    return replace(splits, validation=splits.test)


@bug(
    "akamaster-7",
    "the test images are the validation images",
    ours=load_data,
    planted=tested_for_validation,
)
def check_validation_images_are_training_images_set_aside(
    load: Callable[[Spec], DataSplits],
) -> None:
    splits = load(experiment(validation=20))
    everything = images_of(load(experiment(validation=0)).train)
    aside = torch.tensor(splits.validation_indices)
    left = torch.tensor([i for i in range(60) if i not in splits.validation_indices])
    assert torch.equal(images_of(splits.validation), everything[aside])
    assert torch.equal(images_of(splits.train), everything[left])
    assert len(images_of(splits.test)) == 20


def batches_of_100(
    given: InMemoryImages, *, batch_size: int, **how: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Take 100 images at a time, whatever is asked for."""
    return evaluation_batches(given, batch_size=100, **how)


@bug(
    "kuangliu-15a",
    "evaluation takes 100 images at a time, whatever memory there is",
    ours=evaluation_batches,
    planted=batches_of_100,
)
def check_evaluation_takes_as_many_images_as_it_is_told(batches: Callable[..., Any]) -> None:
    found = batches(source(34), batch_size=8, mean=DARK, std=EVEN, device=CPU)
    assert [len(labels) for _, labels in found] == [8, 8, 8, 8, 2]
