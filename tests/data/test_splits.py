"""Splits of an experiment: validation images, statistics, and checks against the network."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resnet_builder.data import DATASETS
from resnet_builder.data import statistics as statistics_module
from resnet_builder.data.interfaces import DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.location import default_data_dir
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.data.statistics import channel_statistics
from resnet_builder.data.validation import stratified
from resnet_builder.errors import DataError, SpecError
from resnet_builder.parts import resolve
from resnet_builder.spec.schema import Spec
from tests.networks import cifar_spec


def load(dataset: str = "digits", **data: Any) -> DataSplits:
    """Load the data of a network for ten classes of RGB images of 32 pixels, or for the digits."""
    network = cifar_spec(1).model_dump(exclude_none=True)
    return load_data(
        resolve(Spec.model_validate({**network, "data": {"dataset": dataset, **data}}))
    )


def load_made(
    train: InMemoryImages, *, classes: int = 10, contexts: Any = None, **how: Any
) -> DataSplits:
    """Load a dataset of these images; other splits are given by name, and keys of the data."""
    own = {name: how.pop(name, None) for name in ("own", "test")}

    class Made:
        info = DatasetInfo()

        def load(self, context: LoadContext) -> LoadedDataset:
            if contexts is not None:
                contexts.append(context)
            names = tuple(map(str, range(classes)))
            return LoadedDataset(train, own["own"], own["test"], names, "x")

    with DATASETS.temporary("made", Made):
        return load("made", **how)


def source(
    count: int = 40, channels: int = 3, size: int = 32, labels: Any = None
) -> InMemoryImages:
    images = torch.randint(0, 256, (count, channels, size, size)).byte()
    return InMemoryImages(images, torch.arange(count) % 10 if labels is None else labels)


def all_images(made: Any) -> Tensor:
    return next(iter(made.read([torch.arange(len(made))])))


def test_validation_is_stratified_disjoint_and_chosen_by_its_own_seed() -> None:
    """And never augmented: KellerJordan's validation loader wrapped the augmented training set;
    akamaster chose the best weights on the test set.
    """
    splits = load(validation=300, augment=["horizontal_flip"])
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (1137, 300)
    shares = splits.validation.labels.bincount() / splits.train.labels.bincount()
    assert (shares - 300 / 1137).abs().max() < 0.02
    everything, aside = load().train, torch.tensor(splits.validation_indices)
    kept = torch.tensor(sorted(set(range(1437)) - set(splits.validation_indices)))
    for part, indices in ((splits.validation, aside), (splits.train, kept)):
        assert torch.equal(everything.labels[indices], part.labels)
        assert torch.equal(all_images(everything)[indices], all_images(part))
    assert load(validation=300 / 1437).validation_indices == splits.validation_indices
    assert load(validation=300, split_seed=1).validation_indices != splits.validation_indices


@pytest.mark.parametrize(
    ("labels", "amount", "seed", "chosen"),
    [
        (torch.arange(40) % 4, 8, 0, [11, 16, 17, 18, 31, 32, 33, 38]),
        (torch.arange(45) % 6, 11, 7, [2, 4, 6, 9, 13, 16, 18, 31, 35, 38, 41]),
        (
            torch.arange(5).repeat_interleave(torch.tensor([3, 17, 9, 2, 11])),
            10,
            3,
            [2, 7, 10, 16, 17, 24, 25, 35, 37, 40],
        ),
    ],
    ids=["even", "ties", "uneven"],
)
def test_choice_of_validation_images_is_fixed_for_ever(
    labels: Tensor, amount: int, seed: int, chosen: list[int]
) -> None:
    """The choices are those of scikit-learn 1.9."""
    assert stratified(labels, amount, seed).tolist() == chosen


@pytest.mark.parametrize("amount", [0.003, 5, 1428, 2000])
def test_split_that_cannot_be_made_is_refused(amount: float) -> None:
    with pytest.raises(DataError, match="cannot be set aside"):
        load(validation=amount)
    with pytest.raises(DataError, match="a class has 1 training image"):
        stratified(torch.tensor([0, 0, 0, 1, 1, 2]), 3, 0)


def test_statistics_are_numpy_s_and_not_the_mean_of_images_deviations() -> None:
    """kuangliu averages the deviation of each image; others take 0.5, or ImageNet's colours."""
    images = source(50)
    images.images[:, 1] //= 2
    images.images[25:] //= 3
    mean, std = channel_statistics(images)
    pixels = images.images.double().numpy() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert std == pytest.approx(pixels.std((0, 2, 3)))
    assert np.abs(pixels.std((2, 3)).mean(0) - std).min() > 0.01


class Elsewhere:
    """Images that are not held in memory, and remember which of them were read."""

    def __init__(self, held: InMemoryImages) -> None:
        self._held, self.labels, self.seen = held, held.labels, list[int]()

    def __len__(self) -> int:
        return len(self._held)

    def subset(self, indices: Tensor) -> "Elsewhere":
        return Elsewhere(self._held.subset(indices))

    def hashes(self) -> list[int]:
        return self._held.hashes()

    def read(self, batches: Iterable[Tensor], crop: Any = None) -> Iterator[Tensor]:
        for indices in batches:
            self.seen += indices.tolist()
            yield from self._held.read([indices])


def test_statistics_of_image_files_are_of_evenly_spaced_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics_module, "STATISTICS_IMAGES", 5)
    held = source(41)
    streamed = Elsewhere(held)
    assert channel_statistics(streamed) == channel_statistics(
        held.subset(torch.tensor([0, 10, 20, 30, 40]))
    )
    assert streamed.seen == [0, 10, 20, 30, 40]


def test_images_that_say_nothing_are_refused() -> None:
    black = InMemoryImages(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4))
    with pytest.raises(DataError, match="the same everywhere"):
        channel_statistics(black)
    with pytest.raises(DataError, match="made has one class; nothing can be learnt from it"):
        load_made(source(labels=torch.zeros(40)), classes=1)


@pytest.mark.parametrize("normalize", ["auto", {"mean": [0.5] * 3, "std": [0.5] * 3}])
def test_training_images_that_tell_no_class_from_another_are_refused(normalize: Any) -> None:
    with pytest.raises(DataError, match="all training images are of one class; nothing can be"):
        load_made(source(labels=torch.full((40,), 3)), normalize=normalize)
    alike = source()
    alike.images[:] = alike.images[0].clone()
    with pytest.raises(DataError, match="all training images are the same; there is nothing to"):
        load_made(alike, normalize=normalize)


def test_equal_images_with_different_labels_are_counted() -> None:
    images = source()
    images.images[7] = images.images[0]
    images.images[20] = images.images[10]  # of the same class
    assert load_made(images).notices == ("2 of 40 training images equal one with another label",)


@pytest.mark.parametrize("constant", [[1], [0, 2]])
def test_constant_channels_are_divided_by_one(constant: list[int]) -> None:
    images = source()
    images.images[:, constant] = 51
    splits = load_made(images)
    for channel in range(3):
        assert (splits.std[channel] == 1) is (channel in constant)
        assert (splits.mean[channel] == pytest.approx(0.2)) is (channel in constant)
    assert len(splits.notices) == len(constant)
    assert load_made(images, normalize={"mean": [0.5] * 3, "std": [0.5] * 3}).notices == ()


@pytest.mark.parametrize(
    ("train", "other", "message"),
    [
        (source(), {"classes": 7}, "must be 7, the classes of made, not 10"),
        (source(channels=1), {}, "takes 3 channels, training images have 1"),
        (source(size=28), {}, "images of 32x32 .height x width., training images are 28x28"),
        (source(), {"own": source(size=28)}, "validation images are 28x28"),
        (source(), {"test": source(size=28)}, "test images are 28x28"),
    ],
    ids=["classes", "channels", "size", "validation", "test"],
)
def test_images_the_network_is_not_for_are_refused(
    train: InMemoryImages, other: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load_made(train, **other)
    assert caught.value.errors[0].code == "mismatch"


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_beyond_the_classes_are_named(label: int) -> None:
    labels = torch.arange(40) % 10
    labels[17] = label
    with pytest.raises(DataError, match=f"training image 17 has label {label}"):
        load_made(source(labels=labels))


@pytest.mark.parametrize(
    ("augment", "wanted"),
    [
        ([], False),
        (["horizontal_flip"], False),
        ([{"type": "random_resized_crop", "size": 8}], True),
        (["horizontal_flip", {"type": "random_resized_crop", "size": 8}], False),
    ],
    ids=["none", "flip", "crop", "crop-second"],
)
def test_dataset_is_told_whether_training_crops_while_reading(augment: Any, wanted: bool) -> None:
    contexts: list[LoadContext] = []
    load_made(source(), contexts=contexts, augment=augment)
    assert [context.crops_while_reading for context in contexts] == [wanted]


def test_own_validation_images_of_a_dataset_are_used() -> None:
    own = source(20)
    assert load_made(source(), own=own).validation is own
    with pytest.raises(SpecError, match="has validation images of its own"):
        load_made(source(), own=own, validation=10)


def test_data_live_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESNET_BUILDER_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("RESNET_BUILDER_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_dir().name == "resnet-builder"
