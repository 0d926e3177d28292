"""Thumbnails of images and of heat maps, as elements of SVG that hold their pixels."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from resnet_builder.reports.html import escaped

_LARGEST = 128  # pixels of the longer side
_CRISP = 64  # images up to this size are shown pixel by pixel, as PNG; larger ones are JPEG
_QUALITY = 80
_MAP_SIDE = 32
_GAP = 0.06  # between two images side by side, by their width
_LEVELS = 16  # colours of a heat map
_OPACITY = 150  # of 255
# Colours of matplotlib's "magma", from the least to the most: even steps for the colour-blind, too.
_MAGMA = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Small image.

    Attributes:
        uri: Data URI of a PNG or JPEG file.
        width: Width of the image that it shows, in pixels.
        height: Height of it.
        crisp: Whether its pixels are shown as squares when it is enlarged.
    """

    uri: str
    width: int
    height: int
    crisp: bool


def as_rgb(images: Tensor) -> npt.NDArray[np.uint8]:
    """Turn images of any number of channels into colour images to look at.

    Of four channels the last is alpha, and is left out. Two, or more than four, are averaged.

    Args:
        images: ``(N, C, H, W)`` uint8.

    Returns:
        ``(N, H, W, 3)`` uint8.
    """
    channels = images.shape[1]
    if channels in {3, 4}:
        images = images[:, :3]
    else:
        images = images.float().mean(dim=1, keepdim=True).round().byte().expand(-1, 3, -1, -1)
    pixels: npt.NDArray[np.uint8] = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def thumbnail(pixels: npt.NDArray[np.uint8]) -> Thumbnail:
    """Make a thumbnail of an ``(H, W, 3)`` image."""
    height, width = pixels.shape[:2]
    image, file = Image.fromarray(pixels), io.BytesIO()
    is_crisp = max(height, width) <= _CRISP
    if is_crisp:
        image.save(file, "PNG")
        return Thumbnail(_data_uri(file, "png"), width, height, crisp=True)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    image.save(file, "JPEG", quality=_QUALITY)
    return Thumbnail(_data_uri(file, "jpeg"), width, height, crisp=False)


def heat_maps(maps: Tensor, height: int, width: int) -> list[Thumbnail]:
    """Make half-transparent thumbnails of heat maps, to be laid over images.

    Args:
        maps: ``(N, h, w)`` values from 0 to 1.
        height: Height of the images.
        width: Width of the images.
    """
    scale = min(1.0, _MAP_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    smooth = functional.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0]
    levels = (smooth.clamp(0, 1) * (_LEVELS - 1)).round().byte().numpy()
    places = np.linspace(0, 1, len(_MAGMA))
    colors = [
        np.interp(np.linspace(0, 1, _LEVELS), places, [color[channel] for color in _MAGMA])
        for channel in range(3)
    ]
    palette = np.stack(colors, axis=1).round().astype(np.uint8).tobytes()
    found = []
    for one in levels:
        image, file = Image.fromarray(one, "P"), io.BytesIO()
        image.putpalette(palette)
        image.save(file, "PNG", transparency=bytes([_OPACITY] * _LEVELS), bits=4)
        found.append(Thumbnail(_data_uri(file, "png"), width, height, crisp=False))
    return found


def side_by_side(
    one: Thumbnail, other: Thumbnail | None, title: str, *, over: Thumbnail | None = None
) -> str:
    """Return an SVG of two thumbnails of one height.

    Args:
        one: Left picture.
        other: Right picture; by default the left one again.
        title: Description, which is a tooltip too.
        over: Picture to lay over the right one.
    """
    height, gap = one.height, _GAP * one.width
    right = one if other is None else other
    width = right.width * height / right.height
    left = one.width + gap
    pictures = [_image(one, 0, one.width, height)]
    pictures.append(_image(right, left, width, height))
    if over is not None:
        pictures.append(_image(over, left, width, height))
    return (
        f'<svg viewBox="0 0 {left + width:g} {height:g}" role="img" '
        f'style="display: block; width: 100%; height: auto"><title>{escaped(title)}</title>'
        f"{''.join(pictures)}</svg>"
    )


def _image(picture: Thumbnail, x: float, width: float, height: float) -> str:
    crisp = ' style="image-rendering: pixelated"' if picture.crisp else ""
    return (
        f'<image x="{x:g}" y="0" width="{width:g}" height="{height:g}" '
        f'preserveAspectRatio="none" href="{picture.uri}"{crisp}/>'
    )


def _data_uri(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn ``(N, C, H, W)`` float32 normalised images back into uint8."""
    means, deviations = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((images * deviations + means) * 255).round().clamp(0, 255).nan_to_num(0).byte()
