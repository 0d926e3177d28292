"""Every augmentation equals torchvision's functional on the same parameters."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_builder.data import AUGMENTATIONS
from resnet_builder.data.augment.erasing import fill_batch
from resnet_builder.data.augment.geometry import crop_batch, flip_batch
from resnet_builder.data.augment.mixing import cutmix_batch, mixup_batch
from resnet_builder.data.interfaces import Batch
from resnet_builder.data.random import StatelessGenerator
from resnet_builder.errors import PartError
from resnet_builder.testing import check_augmentation

OPTIONS: dict[str, dict[str, Any]] = {
    "random_crop": {"padding": 2, "mode": "reflect"},
    "cutout": {"size": 4},
    "random_resized_crop": {"size": 6},
    "random_erasing": {"p": 1.0},
    "rotation": {"degrees": 30.0},
    "affine": {"shear": 20.0},
    "color_jitter": {"contrast": 0.5},
}


WILD: dict[str, dict[str, Any]] = {
    "perspective": {"distortion_scale": 1.0, "p": 1.0},
    "affine": {"scale": (0.01, 100.0), "shear": 180.0},
    "color_jitter": {"brightness": 10.0, "hue": 0.5},
    "rand_augment": {"num_ops": 14, "magnitude": 30},
}


def noise(count: int = 16, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).byte()


def batch(images: Tensor, classes: int = 4) -> Batch:
    channels = images.shape[1]
    targets = torch.arange(len(images)) % classes
    return Batch(images, targets, classes, torch.full((channels,), 100.0), torch.zeros(channels))


def draws(count: int, epoch: int = 0) -> StatelessGenerator:
    return StatelessGenerator(0, epoch, epoch, torch.arange(count), "op")


def augmented(name: str, images: Tensor, epoch: int = 0, **options: Any) -> Tensor:
    made = AUGMENTATIONS.get(name)(**options)
    return made(batch(images), draws(len(images), epoch)).images


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_registered_augmentation_keeps_the_contract(name: str) -> None:
    check_augmentation(AUGMENTATIONS.get(name), **OPTIONS.get(name, {}))


def test_augmentation_that_works_in_place_breaks_the_contract() -> None:
    class InPlace:
        works_on = "any"

        def __call__(self, batch: Batch, draws: Any) -> Batch:
            batch.images.zero_()
            return batch

    with pytest.raises(AssertionError, match="changed in place"):
        check_augmentation(InPlace)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random_erasing", "random_resized_crop"])
@pytest.mark.parametrize("option", ["scale", "ratio"])
def test_range_that_is_upside_down_is_refused(name: str, option: str) -> None:
    options = {**OPTIONS[name], option: (0.9, 0.1)}
    with pytest.raises(PartError, match=r"is \[smallest, largest\], not \[0\.9, 0\.1\]") as caught:
        AUGMENTATIONS.get(name)(**options)
    assert (caught.value.code, caught.value.option) == ("out-of-range", option)


# Geometry


@pytest.mark.parametrize(("mode", "torchs"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [1, 4, 9])
def test_crop_is_that_of_torchvision(mode: Any, torchs: str, padding: int) -> None:
    images = noise()
    top = torch.arange(16) % (2 * padding + 1)
    left = (3 * torch.arange(16)) % (2 * padding + 1)
    ours = crop_batch(images, top, left, padding, mode)
    for index, image in enumerate(images):
        padded = F.pad(image, [padding] * 4, padding_mode=torchs)
        wanted = F.crop(padded, int(top[index]), int(left[index]), 12, 10)
        assert torch.equal(ours[index], wanted)


def test_crop_offsets_are_even_over_100_000_draws() -> None:
    """The place of the one white pixel tells the offset of each crop."""
    images = torch.zeros(100_000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 255
    counts = (augmented("random_crop", images, padding=1).flatten(1) > 0).sum(0).double()
    expected = 100_000 / 9
    assert ((counts - expected).square() / expected).sum() < 37  # chi-square of 8, p = 1e-5


def test_flip_is_that_of_torchvision_and_happens_half_of_the_time() -> None:
    images = noise()
    flipped = torch.arange(16) % 3 == 0
    wanted = [F.horizontal_flip(im) if f else im for im, f in zip(images, flipped, strict=True)]
    assert torch.equal(flip_batch(images, flipped), torch.stack(wanted))
    stripes = torch.tensor([0, 255], dtype=torch.uint8).expand(100_000, 1, 1, 2)
    share = (augmented("horizontal_flip", stripes)[:, 0, 0, 0] > 0).double().mean()
    assert share.item() == pytest.approx(0.5, abs=0.007)  # 4.4 deviations


def test_vertical_flip_is_that_of_torchvision_and_happens_half_of_the_time() -> None:
    images = noise()
    flipped = draws(16).per_sample(1)[:, 0] < 0.5
    wanted = [F.vertical_flip(im) if f else im for im, f in zip(images, flipped, strict=True)]
    assert torch.equal(augmented("vertical_flip", images), torch.stack(wanted))
    assert torch.equal(augmented("vertical_flip", images, p=1.0), F.vertical_flip(images))
    stripes = torch.tensor([0, 255], dtype=torch.uint8)[:, None].expand(100_000, 1, 2, 1)
    share = (augmented("vertical_flip", stripes)[:, 0, 0, 0] > 0).double().mean()
    assert share.item() == pytest.approx(0.5, abs=0.007)  # 4.4 deviations


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = noise(400)
    shown = [augmented("alternating_flip", images, epoch) for epoch in range(4)]
    mirrored = (shown[0] == images.flip(-1)).flatten(1).all(1)
    assert 160 < mirrored.sum() < 240
    assert torch.equal(shown[1], shown[0].flip(-1))
    assert torch.equal(shown[2], shown[0])
    assert torch.equal(shown[3], shown[1])


# Erasing


def test_filling_is_the_erase_of_torchvision() -> None:
    images = noise()
    fill = torch.tensor([10.0, 20.0, 30.0])
    top, left, rows, columns = torch.tensor([2, 3, 4, 5]).repeat(16, 1).unbind(1)
    ours = fill_batch(images, top, left, rows, columns, fill)
    value = fill.byte()[:, None, None]
    assert torch.equal(ours, torch.stack([F.erase(image, 2, 3, 4, 5, value) for image in images]))


def test_cutout_is_clipped_at_the_border_and_centred_on_any_pixel() -> None:
    white = torch.full((2_000, 1, 8, 8), 9, dtype=torch.uint8)
    holes = augmented("cutout", white, size=4, fill="zero") == 0
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes.sum((1, 2, 3)), rows * columns)
    assert set(rows.tolist()) == {2, 3, 4}  # centres on rows 0 and 7, 1, and between
    assert holes.any(0).all()


def test_random_erasing_fills_a_rectangle_of_the_images_that_chance_picks() -> None:
    images = torch.full((400, 3, 40, 30), 9, dtype=torch.uint8)
    holes = augmented("random_erasing", images, p=0.25, scale=(0.05, 0.3), ratio=(0.5, 2.0)) == 100
    assert torch.equal(holes[:, 0], holes[:, 2])
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), rows * columns)
    erased = rows > 0
    assert 60 < erased.sum() < 140
    shares, ratios = (rows * columns)[erased] / 1200, rows[erased] / columns[erased]
    assert 0.04 <= shares.min() < shares.max() <= 0.33
    assert 0.4 <= ratios.min() < ratios.max() <= 2.5


# Mixing


def test_mixup_is_exact_for_a_given_weight() -> None:
    images = noise(3).float()
    mixed = mixup_batch(batch(images), 0.75)
    assert torch.allclose(mixed.images, 0.75 * images + 0.25 * images[[1, 2, 0]])
    assert mixed.targets.tolist() == [[0.75, 0.25, 0, 0], [0, 0.75, 0.25, 0], [0.25, 0, 0.75, 0]]


def test_cutmix_is_exact_for_a_given_box() -> None:
    images = noise(3, 3, 10, 10)
    mixed = cutmix_batch(batch(images), 2, 1, 7, 5)
    wanted = images.clone()
    wanted[:, :, 2:7, 1:5] = images[[1, 2, 0], :, 2:7, 1:5]
    assert torch.equal(mixed.images, wanted)
    assert torch.allclose(mixed.targets[0], torch.tensor([0.8, 0.2, 0.0, 0.0]))


def test_mixing_twice_keeps_probabilities() -> None:
    mixed = cutmix_batch(mixup_batch(batch(noise(4).float()), 0.3), 0, 0, 5, 5)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(4))


# Transforms of torchvision, seeded for the sample


def color_jitter(image: Tensor, drawn: Any) -> Tensor:
    changes: list[Any] = [
        (F.adjust_brightness, drawn["brightness_factor"]),
        (F.adjust_contrast, drawn["contrast_factor"]),
        (F.adjust_saturation, drawn["saturation_factor"]),
        (F.adjust_hue, drawn["hue_factor"]),
    ]
    for number in drawn["fn_idx"].tolist():
        change, amount = changes[number]
        image = image if amount is None else change(image, amount)
    return image


BILINEAR = v2.InterpolationMode.BILINEAR
BY_FUNCTIONAL: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("rotation", {"degrees": 40.0}, v2.RandomRotation(40), lambda x, d: F.rotate(x, **d, fill=0)),
    (
        "rotation",
        {"degrees": (80, 90), "p": 0.5, "interpolation": "bilinear", "fill": "mean"},
        v2.RandomRotation((80, 90)),
        lambda x, d: F.rotate(x, **d, interpolation=BILINEAR, fill=[100.0] * len(x)),
    ),
    (
        "affine",
        {"degrees": 9.0, "translate": (0.2, 0.4), "scale": (0.7, 1.2), "shear": 15.0},
        v2.RandomAffine(9, translate=(0.2, 0.4), scale=(0.7, 1.2), shear=15),
        lambda x, d: F.affine(x, **d, fill=0),
    ),
    (
        "affine",
        {"shear": (3, 20), "p": 0.7, "interpolation": "bilinear", "fill": "mean"},
        v2.RandomAffine(0, translate=(0, 0), scale=(1, 1), shear=(3, 20)),
        lambda x, d: F.affine(x, **d, interpolation=BILINEAR, fill=[100.0] * len(x)),
    ),
    (
        "perspective",
        {"distortion_scale": 0.8, "p": 0.6, "interpolation": "nearest", "fill": "mean"},
        v2.RandomPerspective(0.8),
        lambda x, d: F.perspective(
            x, None, None, v2.InterpolationMode.NEAREST, [100.0] * len(x), **d
        ),
    ),
    (
        "color_jitter",
        {"brightness": 0.4, "contrast": 0.9, "p": 0.8},
        v2.ColorJitter(0.4, 0.9, 0, 0),
        color_jitter,
    ),
    (
        "color_jitter",
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.3, "hue": 0.1},
        v2.ColorJitter(0.4, 0.4, 0.3, 0.1),
        color_jitter,
    ),
    (
        "blur",
        {"kernel_size": 5, "sigma": (0.5, 3.0), "p": 0.5},
        v2.GaussianBlur(5, (0.5, 3.0)),
        lambda x, d: F.gaussian_blur(x, [5, 5], **d),
    ),
]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("name", "options", "transform", "functional"),
    BY_FUNCTIONAL,
    ids=[f"{number}-{name}" for number, (name, *_) in enumerate(BY_FUNCTIONAL)],
)
def test_augmentation_is_torchvision_s_functional_of_what_it_draws(
    name: str, options: dict[str, Any], transform: Any, functional: Any, channels: int
) -> None:
    made: Any = AUGMENTATIONS.get(name)(**options)
    if channels not in getattr(made, "channels", (1, 3, 4)):
        pytest.skip("refused by validate")
    p = options.get("p", 1.0)
    images = noise(24, channels)

    def change(image: Tensor) -> Tensor:
        if torch.rand(1) >= p:
            return image
        changed: Tensor = functional(image, transform.make_params([image]))
        return changed

    wanted = draws(24).map_seeded(change, images)
    ours = augmented(name, images, **options)
    assert torch.equal(ours, wanted)
    assert ours.shape == images.shape
    same = (ours == images).flatten(1).all(1).sum()
    assert same < 16 if p < 0.8 else same < 8
    assert not torch.equal(augmented(name, images, epoch=1, **options), ours)


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 2), (3, 40)])
def test_small_and_narrow_images_are_augmented(name: str, shape: tuple[int, int]) -> None:
    made: Any = AUGMENTATIONS.get(name)(**{**OPTIONS.get(name, {}), **WILD.get(name, {})})
    images = noise(40, 3, *shape)
    given = replace(batch(images), images=images if made.works_on == "pixels" else images / 255)
    if min(shape) >= getattr(made, "min_side", 1):
        found = made(given, draws(40)).images
        assert found.shape[:2] == (40, 3)
        assert bool(found.float().isfinite().all())


def test_grayscale_is_that_of_torchvision() -> None:
    images = noise()
    chosen = draws(16).per_sample(1)[:, 0] < 0.4
    wanted = [F.rgb_to_grayscale(im, 3) if c else im for im, c in zip(images, chosen, strict=True)]
    assert 0 < chosen.sum() < 16
    assert torch.equal(augmented("grayscale", images, p=0.4), torch.stack(wanted))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("affine", {}, "no effect without `degrees`, `translate`, `scale` or `shear`"),
        ("color_jitter", {"p": 0.5}, "no effect without `brightness`, `contrast`"),
        ("blur", {"kernel_size": 4}, "`kernel_size` must be odd, not 4"),
        ("blur", {"sigma": (2.0, 1.0)}, r"is \[smallest, largest\], not \[2\.0, 1\.0\]"),
        ("rotation", {"degrees": (9.0, 1.0)}, r"is \[smallest, largest\], not \[9\.0, 1\.0\]"),
    ],
)
def test_options_without_sense_are_refused(name: str, options: Any, message: str) -> None:
    with pytest.raises(PartError, match=message):
        AUGMENTATIONS.get(name)(**options)


@pytest.mark.parametrize(
    ("name", "options", "transform"),
    [
        ("trivial_augment", {}, v2.TrivialAugmentWide()),
        ("rand_augment", {"num_ops": 3, "magnitude": 20}, v2.RandAugment(3, 20)),
        ("augmix", {}, v2.RandomApply([v2.AugMix()], 1.0)),
        (
            "augmix",
            {"severity": 7, "mixture_width": 2, "chain_depth": 4, "alpha": 0.5, "all_ops": False},
            v2.RandomApply([v2.AugMix(7, 2, 4, 0.5, all_ops=False)], 1.0),
        ),
        ("random_resized_crop", {"size": 8}, v2.RandomResizedCrop(8)),
        (
            "random_resized_crop",
            {"size": [8, 5], "interpolation": "bicubic"},
            v2.RandomResizedCrop((8, 5), interpolation=v2.InterpolationMode.BICUBIC),
        ),
        (
            "random_resized_crop",
            {"size": 8, "scale": (0.3, 0.5), "ratio": (0.5, 0.6)},
            v2.RandomResizedCrop(8, scale=(0.3, 0.5), ratio=(0.5, 0.6)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transform_is_that_of_torchvision(name: str, options: Any, transform: Any) -> None:
    images = noise(24)
    wanted = draws(24).map_seeded(transform, images)
    assert torch.equal(augmented(name, images, **options), wanted)
    assert not torch.equal(augmented(name, images, epoch=1, **options), wanted)
