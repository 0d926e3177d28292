"""Preprocessing is torchvision's, and its shapes are known before anything is read."""

import re
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_builder.data.preprocess import Preprocessing, Step, covering_size, shape_after
from resnet_builder.errors import DataError, PartError
from resnet_builder.spec.schema import PreprocessSpec

STEP: TypeAdapter[Step] = TypeAdapter(PreprocessSpec)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).byte()


def preprocessed(images: Tensor, *steps: Any) -> Tensor:
    return Preprocessing(tuple(STEP.validate_python(step) for step in steps))(images)


def resize(size: Any, **options: Any) -> dict[str, Any]:
    return {"type": "resize", "size": size, **options}


def crop(size: Any) -> dict[str, Any]:
    return {"type": "center_crop", "size": size}


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (24, 24), (17, 400)])
@pytest.mark.parametrize("interpolation", ["nearest", "nearest_exact", "bilinear", "bicubic"])
def test_resize_is_that_of_torchvision(shape: tuple[int, int], interpolation: str) -> None:
    image = noise(1, 3, *shape)
    mode = v2.InterpolationMode[interpolation.upper()]
    for size, theirs in ((12, [12]), ([9, 14], [9, 14]), ((12, 12), [12, 12])):
        wanted = F.resize(image, theirs, interpolation=mode, antialias=True)
        ours = preprocessed(image, resize(size, interpolation=interpolation))
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("size", "fit", "wanted"),
    [
        (10, "auto", (10, 15)),
        (10, "cover", (10, 15)),
        (10, "contain", (6, 10)),
        (10, "stretch", (10, 10)),
        ([10, 30], "auto", (10, 30)),
        ([10, 30], "cover", (20, 30)),
        ([10, 30], "contain", (10, 15)),
        ([50, 10], "contain", (6, 10)),
        ([1, 1], "contain", (1, 1)),
    ],
)
def test_proportions_are_kept_or_not(size: Any, fit: str, wanted: tuple[int, int]) -> None:
    image = noise(1, 1, 20, 30)
    assert preprocessed(image, resize(size, fit=fit)).shape[2:] == wanted
    step = STEP.validate_python(resize(size, fit=fit))
    assert shape_after(step, 1, (20, 30)) == (1, wanted)


@pytest.mark.parametrize(
    ("size", "crop_share", "resized"),
    [(224, 0.875, 256), (224, 0.95, 235), (288, 1.0, 288), (240, 0.9, 266)],
)
def test_crop_share_is_the_crop_pct_of_timm(size: int, crop_share: float, resized: int) -> None:
    image = noise(1, 3, 300, 400)
    resize_step = resize(size, interpolation="bicubic", crop_share=crop_share)
    bicubic = v2.InterpolationMode.BICUBIC
    wanted = F.center_crop(F.resize(image, [resized], bicubic, antialias=True), [size])
    assert torch.equal(preprocessed(image, resize_step, crop(size)), wanted)


def test_crop_is_that_of_torchvision_on_larger_and_smaller_images() -> None:
    for size, theirs in ((11, [11]), ([8, 17], [8, 17]), ([40, 5], [40, 5])):
        image = noise(2, 4, 20, 13)
        assert torch.equal(preprocessed(image, crop(size)), F.center_crop(image, theirs))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_padding_is_that_of_torchvision(mode: str) -> None:
    image = noise(2, 3, 20, 13)
    for size, sides in (((25, 24), [5, 2, 6, 3]), (20, [3, 0, 4, 0])):
        wanted = F.pad(image, sides, padding_mode=mode)
        assert torch.equal(preprocessed(image, {"type": "pad", "size": size, "mode": mode}), wanted)
    filled = preprocessed(image, {"type": "pad", "size": [20, 14], "fill": 7})
    assert torch.equal(filled, F.pad(image, [0, 0, 1, 0], fill=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, "20x13 (height x width) is larger than `pad` makes it, 15x15; put `resize`"),
        ({"size": [20, 12]}, "is larger than `pad` makes it, 20x12"),
        ({"size": [20, 60], "mode": "reflect"}, "too small to be reflected to 20x60; use `mode:"),
    ],
)
def test_image_that_cannot_be_padded_is_refused(options: Any, message: str) -> None:
    step = {"type": "pad", **options}
    with pytest.raises(DataError, match=re.escape(message)):
        preprocessed(noise(1, 1, 20, 13), step)
    with pytest.raises(PartError, match=re.escape(message)):
        shape_after(STEP.validate_python(step), 1, (20, 13))


def test_line_of_pixels_is_not_resized_to_gigabytes() -> None:
    with pytest.raises(DataError, match="90,000 pixels long and 1 wide; after `resize` it would"):
        preprocessed(noise(1, 1, 1, 90_000), resize(64))


def test_rgb_is_made_of_grey_and_of_colours_with_alpha() -> None:
    grey, alpha = noise(2, 1, 4, 4), noise(2, 4, 4, 4)
    rgb = preprocessed(grey, {"type": "to_rgb"})
    assert torch.equal(rgb, grey.expand(-1, 3, -1, -1))
    assert torch.equal(preprocessed(rgb, {"type": "to_rgb"}), rgb)
    assert torch.equal(preprocessed(alpha, {"type": "to_rgb"}), alpha[:, :3])


def test_shape_is_known_before_anything_is_read() -> None:
    def after(channels: Any, size: Any, *steps: Any) -> Any:
        for step in steps:
            channels, size = shape_after(STEP.validate_python(step), channels, size)
        return channels, size

    to_rgb = {"type": "to_rgb"}
    steps = (resize(12), crop([10, 11]), to_rgb)
    assert preprocessed(noise(2, 1, 24, 24), *steps).shape == (2, 3, 10, 11)
    assert after(1, 24, *steps) == after(None, None, *steps) == (3, (10, 11))
    assert after(4, None, resize(12), to_rgb) == (3, None)
    assert after(1, None, resize([12, 9])) == (1, (12, 9))
    assert after(1, None, resize(12), {"type": "pad", "size": 40}) == (1, 40)


def test_covering_size_is_that_of_torchvision_s_resize() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, height, width in torch.randint(1, 500, (300, 3), generator=generator).tolist():
        wanted = F.resize(torch.empty(1, height, width, device="meta"), [size]).shape[1:]
        assert covering_size(size, height, width) == tuple(wanted)
