from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resnet_builder.data import DATASETS
from resnet_builder.data import splits as splits_module
from resnet_builder.data.interfaces import DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import (
    channel_statistics,
    default_data_dir,
    load_data,
    stratified,
)
from resnet_builder.errors import DataError, SpecError, Stopped
from resnet_builder.parts import resolve
from resnet_builder.spec.schema import Spec
from tests.networks import cifar_spec


def experiment(data: Any, **model: Any) -> Spec:
    described = cifar_spec(1, **model).model_dump(exclude_none=True)
    return resolve(Spec.model_validate({**described, "data": data}))


def test_validation_is_stratified_disjoint_and_chosen_by_its_own_seed() -> None:
    spec = experiment({"dataset": "digits", "validation": 300})
    splits = load_data(spec)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (1137, 300)
    shares = splits.validation.labels.bincount() / splits.train.labels.bincount()
    assert (shares - 300 / 1137).abs().max() < 0.02
    everything = load_data(experiment({"dataset": "digits"})).train
    aside = torch.tensor(splits.validation_indices)
    assert torch.equal(everything.labels[aside], splits.validation.labels)
    kept = set(range(1437)) - set(splits.validation_indices)
    assert torch.equal(everything.labels[sorted(kept)], splits.train.labels)
    fraction = load_data(experiment({"dataset": "digits", "validation": 300 / 1437}))
    assert fraction.validation_indices == splits.validation_indices
    again = load_data(experiment({"dataset": "digits", "validation": 300, "split_seed": 1}))
    assert again.validation_indices != splits.validation_indices


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


def test_class_of_one_image_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="a class has 1 training image"):
        stratified(torch.tensor([0, 0, 0, 1, 1, 2]), 3, 0)


@pytest.mark.parametrize("amount", [0.003, 5, 1428, 2000])
def test_split_that_cannot_be_made_is_refused(amount: float) -> None:
    with pytest.raises(DataError, match="cannot be set aside"):
        load_data(experiment({"dataset": "digits", "validation": amount}))


def test_statistics_are_numpy_s_and_not_the_mean_of_images_deviations() -> None:
    """kuangliu averages the deviation of each image; others take 0.5, or ImageNet's colours."""
    splits = load_data(experiment({"dataset": "digits", "validation": 300}))
    pixels = splits.train.images.numpy() / 255  # type: ignore[attr-defined]
    assert splits.mean == pytest.approx([pixels.mean()], rel=1e-6)
    assert splits.std == pytest.approx([pixels.std()], rel=1e-6)
    wrong = np.mean([image.std() for image in pixels])
    assert abs(splits.std[0] - wrong) > 0.001


def test_statistics_are_of_each_channel() -> None:
    images = torch.randint(0, 256, (50, 3, 4, 4)).byte()
    images[:, 1] //= 2
    mean, std = channel_statistics(InMemoryImages(images, torch.zeros(50)))
    flat = images.transpose(0, 1).flatten(1).double() / 255
    assert mean == pytest.approx(flat.mean(1).tolist())
    assert std == pytest.approx(flat.std(1, correction=0).tolist())


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
    monkeypatch.setattr(splits_module, "STATISTICS_IMAGES", 5)
    held = source(41)
    streamed = Elsewhere(held)
    assert channel_statistics(streamed) == channel_statistics(
        held.subset(torch.tensor([0, 10, 20, 30, 40]))
    )
    assert streamed.seen == [0, 10, 20, 30, 40]


def test_statistics_can_be_stopped() -> None:
    with pytest.raises(Stopped):
        channel_statistics(source(), lambda: True)


def test_given_statistics_are_used() -> None:
    given = {"mean": [0.5], "std": [0.25]}
    splits = load_data(experiment({"dataset": "digits", "normalize": given}))
    assert (splits.mean, splits.std) == ((0.5,), (0.25,))


def test_images_that_say_nothing_are_refused() -> None:
    black = InMemoryImages(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4))
    with pytest.raises(DataError, match="the same everywhere"):
        channel_statistics(black)


class Told:
    """A data set made of what a test says."""

    info = DatasetInfo()

    def __init__(self, loaded: LoadedDataset) -> None:
        self._loaded = loaded

    def load(self, context: LoadContext) -> LoadedDataset:
        return self._loaded


def source(
    count: int = 40, channels: int = 3, size: int = 32, labels: Any = None
) -> InMemoryImages:
    images = torch.randint(0, 256, (count, channels, size, size)).byte()
    return InMemoryImages(images, torch.arange(count) % 10 if labels is None else labels)


def told(train: InMemoryImages, own: Any = None, classes: int = 10, **data: Any) -> Any:
    names = tuple(str(number) for number in range(classes))
    loaded = LoadedDataset(train, own, None, names, "x")
    with DATASETS.temporary("told", lambda: Told(loaded)):
        return load_data(experiment({"dataset": "told", **data}))


@pytest.mark.parametrize(
    ("train", "classes", "message"),
    [
        (source(), 7, "the network is for 10 classes, the data has 7"),
        (source(channels=1), 10, "takes 3 channels, training images have 1"),
        (source(size=28), 10, "images of 32 pixels a side, training images are 28x28"),
    ],
    ids=["classes", "channels", "size"],
)
def test_images_the_network_is_not_for_are_refused(
    train: InMemoryImages, classes: int, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        told(train, classes=classes)
    assert caught.value.errors[0].code == "mismatch"


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_beyond_the_classes_are_named(label: int) -> None:
    labels = torch.arange(40) % 10
    labels[17] = label
    with pytest.raises(DataError, match=f"training image 17 has label {label}"):
        told(source(labels=labels))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_images_of_every_split_are_compared_with_the_network(split: str) -> None:
    others = {split: source(20, size=28)}
    names = tuple("0123456789")
    loaded = LoadedDataset(source(), others.get("validation"), others.get("test"), names, "x")
    with (
        DATASETS.temporary("told", lambda: Told(loaded)),
        pytest.raises(SpecError, match=f"{split} images are 28x28"),
    ):
        load_data(experiment({"dataset": "told"}))


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
    told_of: list[bool] = []

    class Listening(Told):
        def load(self, context: LoadContext) -> LoadedDataset:
            told_of.append(context.crops_while_reading)
            return super().load(context)

    loaded = LoadedDataset(source(), None, None, tuple("0123456789"), "x")
    with DATASETS.temporary("told", lambda: Listening(loaded)):
        load_data(experiment({"dataset": "told", "augment": augment}))
    assert told_of == [wanted]


def test_own_validation_images_of_a_dataset_are_used() -> None:
    own = source(20)
    assert told(source(), own).validation is own
    with pytest.raises(SpecError, match="has validation images of its own"):
        told(source(), own, validation=10)


def test_validation_images_are_training_images_that_are_never_augmented() -> None:
    """KellerJordan's validation loader wrapped the augmented training set; akamaster chose the
    best weights on the test set.
    """
    splits = load_data(
        experiment({"dataset": "digits", "validation": 300, "augment": ["horizontal_flip"]})
    )
    assert splits.validation is not None
    everything = load_data(experiment({"dataset": "digits"})).train
    wanted = next(iter(everything.read([torch.tensor(splits.validation_indices)])))
    assert torch.equal(_all(splits.validation), wanted)


def _all(made: Any) -> Tensor:
    batches: Iterator[Tensor] = made.read([torch.arange(len(made))])
    return next(iter(batches))


def test_data_live_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESNET_BUILDER_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("RESNET_BUILDER_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_dir().name == "resnet-builder"
