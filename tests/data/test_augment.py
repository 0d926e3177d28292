"""Every augmentation equals torchvision's functional on the same parameters."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_builder.data import AUGMENTATIONS
from resnet_builder.data.augment.erasing import fill_batch, rectangle
from resnet_builder.data.augment.geometry import RandomResizedCrop, crop_batch, flip_batch, window
from resnet_builder.data.augment.mixing import beta, cutmix_batch, mixup_batch
from resnet_builder.data.augment.policies import BINS, TRIVIAL, change_image, rand_space
from resnet_builder.data.hashing import HashedDraws
from resnet_builder.data.interfaces import Batch
from resnet_builder.errors import PartError
from resnet_builder.testing import check_augmentation

OPTIONS: dict[str, dict[str, Any]] = {
    "random_crop": {"padding": 2, "mode": "reflect"},
    "cutout": {"size": 4},
    "random_resized_crop": {"size": 6},
    "random_erasing": {"p": 1.0},
}


def pictures(count: int = 16, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).byte()


def batch(images: Tensor, classes: int = 4) -> Batch:
    channels = images.shape[1]
    targets = torch.arange(len(images)) % classes
    return Batch(images, targets, classes, torch.full((channels,), 100.0), torch.zeros(channels))


def draws(count: int, operation: str = "op") -> HashedDraws:
    return HashedDraws(0, 0, 0, torch.arange(count), operation)


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = pictures(400)
    made = AUGMENTATIONS.get("alternating_flip")()
    shown = [
        made(batch(images), HashedDraws(0, epoch, epoch, torch.arange(400), "op")).images
        for epoch in range(4)
    ]
    mirrored = (shown[0] == images.flip(-1)).flatten(1).all(1)
    assert 160 < mirrored.sum() < 240
    assert torch.equal(shown[1], shown[0].flip(-1))
    assert torch.equal(shown[2], shown[0])
    assert torch.equal(shown[3], shown[1])


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_registered_augmentation_keeps_the_contract(name: str) -> None:
    check_augmentation(AUGMENTATIONS.get(name), **OPTIONS.get(name, {}))


def test_an_augmentation_that_works_in_place_breaks_the_contract() -> None:
    class InPlace:
        works_on = "any"

        def __call__(self, batch: Batch, draws: Any) -> Batch:
            batch.images.zero_()
            return batch

    with pytest.raises(AssertionError, match="changed in place"):
        check_augmentation(InPlace)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random_erasing", "random_resized_crop"])
@pytest.mark.parametrize("option", ["scale", "ratio"])
def test_a_range_that_is_upside_down_is_refused(name: str, option: str) -> None:
    options = {**OPTIONS[name], option: (0.9, 0.1)}
    with pytest.raises(PartError, match=r"is \[smallest, largest\], not \[0\.9, 0\.1\]") as caught:
        AUGMENTATIONS.get(name)(**options)
    assert (caught.value.code, caught.value.option) == ("out-of-range", option)


@pytest.mark.parametrize(("mode", "torchs"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [1, 4, 9])
def test_crop_is_torchvision_s(mode: Any, torchs: str, padding: int) -> None:
    images = pictures()
    top = torch.arange(16) % (2 * padding + 1)
    left = (3 * torch.arange(16)) % (2 * padding + 1)
    ours = crop_batch(images, top, left, padding, mode)
    for index, image in enumerate(images):
        padded = F.pad(image, [padding] * 4, padding_mode=torchs)
        wanted = F.crop(padded, int(top[index]), int(left[index]), 12, 10)
        assert torch.equal(ours[index], wanted)


def test_crop_offsets_are_even_over_100_000_draws() -> None:
    """Pixel (y, x) of the corner tells the offset of each crop."""
    images = torch.zeros(100_000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 255
    made = AUGMENTATIONS.get("random_crop")(padding=1)
    moved = made(batch(images), draws(100_000)).images.flatten(1)
    counts = (moved > 0).sum(0).double()
    expected = 100_000 / 9
    assert ((counts - expected).square() / expected).sum() < 37  # chi-square of 8, p = 1e-5


def test_flip_is_torchvision_s_and_happens_half_of_the_time() -> None:
    images = pictures()
    flipped = torch.arange(16) % 3 == 0
    ours = flip_batch(images, flipped)
    wanted = [F.horizontal_flip(im) if f else im for im, f in zip(images, flipped, strict=True)]
    assert torch.equal(ours, torch.stack(wanted))
    stripes = torch.tensor([0, 255], dtype=torch.uint8).expand(100_000, 1, 1, 2)
    made = AUGMENTATIONS.get("horizontal_flip")()
    share = (made(batch(stripes), draws(100_000)).images[:, 0, 0, 0] > 0).double().mean()
    assert share.item() == pytest.approx(0.5, abs=0.007)  # 4.4 deviations


def test_filling_is_torchvision_s_erase() -> None:
    images = pictures()
    fill = torch.tensor([10.0, 20.0, 30.0])
    top, left, rows, columns = torch.tensor([2, 3, 4, 5]).repeat(16, 1).unbind(1)
    ours = fill_batch(images, top, left, rows, columns, fill)
    value = fill.byte()[:, None, None]
    wanted = torch.stack([F.erase(image, 2, 3, 4, 5, value) for image in images])
    assert torch.equal(ours, wanted)


def test_cutout_is_clipped_at_the_border_and_centred_on_any_pixel() -> None:
    made = AUGMENTATIONS.get("cutout")(size=4, fill="zero")
    holes = (
        made(batch(torch.full((2_000, 1, 8, 8), 9, dtype=torch.uint8)), draws(2_000)).images == 0
    )
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes.sum((1, 2, 3)), rows * columns)
    assert set(rows.tolist()) == {2, 3, 4}  # centres on rows 0 and 7, 1, and between
    assert holes.any(0).all()


def test_random_erasing_s_rectangles_keep_area_and_proportions() -> None:
    scale, ratio = (0.05, 0.3), (0.5, 2.0)
    numbers = draws(500).per_sample(22).tolist()
    found = [rectangle(40, 30, scale, ratio, row) for row in numbers]
    for top, left, rows, columns in found:
        assert 0 <= top <= 40 - rows
        assert 0 <= left <= 30 - columns
        assert 0.04 <= rows * columns / 1200 <= 0.33
        assert 0.4 <= rows / columns <= 2.5
    assert len({box[:2] for box in found}) > 300


@pytest.mark.parametrize("name", ["erasing", "crop"])
def test_boxes_are_distributed_as_torchvision_s(name: str) -> None:
    scale, ratio = (0.05, 0.6), (0.4, 2.5)
    reference: Any
    if name == "crop":
        ours = [window(40, 30, scale, ratio, row) for row in draws(3_000).per_sample(22).tolist()]
        reference = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
        keys = ("top", "left", "height", "width")
    else:
        ours = [
            rectangle(40, 30, scale, ratio, row) for row in draws(3_000).per_sample(22).tolist()
        ]
        reference = v2.RandomErasing(1.0, scale=scale, ratio=ratio)
        keys = ("i", "j", "h", "w")
    image = torch.zeros(3, 40, 30)
    made = (reference.make_params([image]) for _ in range(3_000))
    theirs = [[params[key] for key in keys] for params in made]
    found, wanted = (torch.tensor(boxes, dtype=torch.float64) for boxes in (ours, theirs))
    error = (found.var(0) / 3_000 + wanted.var(0) / 3_000).sqrt()
    assert ((found.mean(0) - wanted.mean(0)).abs() < 4.5 * error).all()
    assert torch.allclose(found.std(0), wanted.std(0), rtol=0.08)


def test_resized_crop_is_torchvision_s() -> None:
    image = pictures(1, 3, 40, 30)[0]
    made = RandomResizedCrop(size=16)
    for row in draws(20).per_sample(22).tolist():
        box = window(40, 30, (0.08, 1.0), (3 / 4, 4 / 3), row)
        wanted = F.resized_crop(image, *box, [16, 16], antialias=True)
        assert torch.equal(made.cut(image, row), wanted)


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10)])
def test_a_crop_that_never_fits_is_torchvision_s_central_one(height: int, width: int) -> None:
    row = [0.999] * 22
    box = window(height, width, (0.9, 1.0), (3 / 4, 4 / 3), row)
    wanted = v2.RandomResizedCrop(8, scale=(5.0, 5.0)).make_params([torch.zeros(3, height, width)])
    assert box == tuple(wanted[key] for key in ("top", "left", "height", "width"))


def test_mixup_is_exact_for_a_given_weight() -> None:
    images = pictures(3).float()
    mixed = mixup_batch(batch(images), 0.75)
    for index in range(3):
        wanted = 0.75 * images[index] + 0.25 * images[(index + 1) % 3]
        assert torch.allclose(mixed.images[index], wanted)
    assert mixed.targets.tolist() == [[0.75, 0.25, 0, 0], [0, 0.75, 0.25, 0], [0.25, 0, 0.75, 0]]


def test_cutmix_is_exact_for_a_given_box() -> None:
    images = pictures(3, 3, 10, 10)
    mixed = cutmix_batch(batch(images), 2, 1, 7, 5)
    wanted = images.clone()
    wanted[:, :, 2:7, 1:5] = images[[1, 2, 0], :, 2:7, 1:5]
    assert torch.equal(mixed.images, wanted)
    assert torch.allclose(mixed.targets[0], torch.tensor([0.8, 0.2, 0.0, 0.0]))


def test_mixing_twice_keeps_probabilities() -> None:
    mixed = cutmix_batch(mixup_batch(batch(pictures(4).float()), 0.3), 0, 0, 5, 5)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_beta_has_its_mean_and_variance(alpha: float) -> None:
    numbers = draws(4_000).per_sample(1)[:, 0].tolist()
    values = np.array([beta(alpha, number) for number in numbers])
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


@pytest.mark.parametrize(
    ("space", "reference"),
    [(TRIVIAL, v2.TrivialAugmentWide()), (rand_space(12, 10), v2.RandAugment())],
    ids=["trivial", "rand"],
)
def test_tables_of_changes_are_torchvision_s(space: Any, reference: Any) -> None:
    image = pictures(1)[0]
    names = list(reference._AUGMENTATION_SPACE)
    assert len(space) == len(names)
    for index, name in enumerate(names):
        magnitudes, signed = reference._AUGMENTATION_SPACE[name]
        table = magnitudes(BINS, 12, 10)
        assert space[index].signed == signed, name
        for number in (0, 9, 17, 30):
            for sign in (0.75, 0.25) if signed else (0.75,):
                magnitude = 0.0 if table is None else float(table[number])
                wanted = reference._apply_image_or_video_transform(
                    image,
                    name,
                    -magnitude if sign < 0.5 else magnitude,
                    interpolation=v2.InterpolationMode.NEAREST,
                    fill={},
                )
                chosen = (index + 0.5) / len(space)
                ours = change_image(image, space, chosen, (number + 0.5) / BINS, sign)
                assert torch.equal(ours, wanted), (name, number, sign)


def test_rand_augment_applies_its_magnitude() -> None:
    images = pictures(8)
    made = AUGMENTATIONS.get("rand_augment")(num_ops=1, magnitude=30)
    numbers = draws(8).per_sample(2).tolist()
    space = rand_space(12, 10)
    wanted = [
        change_image(image, space, kind, 30.5 / BINS, sign)
        for image, (kind, sign) in zip(images, numbers, strict=True)
    ]
    assert torch.equal(made(batch(images), draws(8)).images, torch.stack(wanted))


def test_padding_before_a_crop_is_black_before_normalisation() -> None:
    """Zeros after normalisation would be the mean: the paper pads the pixels."""
    images = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8)
    padded = crop_batch(images, torch.tensor([0]), torch.tensor([0]), 2, "zero")
    assert torch.equal(padded, functional.pad(images, (2, 0, 2, 0))[:, :, :4, :4])
