"""Galleries of single images: the most confident mistakes and the least certain predictions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resnet_builder.data.interfaces import ImageSource
from resnet_builder.data.loader import normalise
from resnet_builder.errors import DataError
from resnet_builder.inference import SplitImages
from resnet_builder.model import ResNet
from resnet_builder.reports.grad_cam import grad_cam
from resnet_builder.reports.html import escaped, gallery, note, percent
from resnet_builder.reports.thumbnails import Thumbnail, as_rgb, heat_maps, side_by_side, thumbnail
from resnet_builder.runs.predictions import RunPredictions, below_common_folder

_TOLERANCE = 0.02  # of a probability, computed on another device or with other operations


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """Image with its prediction.

    Attributes:
        index: Index in the split, and in ``predictions.npz``.
        file: Name of its file, if it has one.
        label: Name of its class.
        predicted: Name of the predicted class.
        probability: Probability of the predicted class.
        label_probability: Probability of its class.
    """

    index: int
    file: str | None
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some images of a split.

    Attributes:
        split: ``test`` or ``val``.
        total: Number of images that they were chosen from.
        images: The images, in their order.
    """

    split: str
    total: int
    images: tuple[GalleryImage, ...]


def most_confident_mistakes(predictions: RunPredictions, count: int) -> Gallery:
    """Choose the wrong predictions of the highest probability, the most confident first."""
    known = np.isfinite(predictions.confidence)
    wrong = np.flatnonzero(known & ~predictions.correct)
    order = np.argsort(-predictions.confidence[wrong], kind="stable")
    return _gallery(predictions, wrong[order][:count], len(wrong))


def least_certain(predictions: RunPredictions, count: int) -> Gallery:
    """Choose the predictions of the lowest probability, right or wrong, the lowest first."""
    known = np.flatnonzero(np.isfinite(predictions.confidence))
    order = np.argsort(predictions.confidence[known], kind="stable")
    return _gallery(predictions, known[order][:count], len(known))


def _gallery(predictions: RunPredictions, chosen: npt.NDArray[np.intp], total: int) -> Gallery:
    classes = predictions.classes
    images = tuple(
        GalleryImage(
            index=index,
            file=predictions.files[index] if predictions.files else None,
            label=classes[predictions.labels[index]],
            predicted=classes[predictions.predicted[index]],
            probability=float(predictions.confidence[index]),
            label_probability=float(predictions.label_probabilities[index]),
        )
        for index in chosen.tolist()
    )
    return Gallery(predictions.split, total, images)


@dataclass(frozen=True, slots=True, eq=False)
class GradCamImage:
    """Thumbnails of an image.

    Attributes:
        image: The image, after preprocessing.
        heat_map: Grad-CAM for the predicted class.
    """

    image: Thumbnail
    heat_map: Thumbnail


def read_grad_cam(
    network: ResNet, data: SplitImages, predictions: RunPredictions, indices: list[int]
) -> dict[int, GradCamImage]:
    """Read images, and compute Grad-CAM for their predicted classes.

    Args:
        network: Network with the selected weights, on the CPU.
        data: Images of the split that was predicted.
        predictions: Predictions.
        indices: Images to read.

    Returns:
        Their thumbnails, by index.

    Raises:
        DataError: The images are not those that were predicted.
    """
    _check_same(data.images, predictions)
    if not indices:
        return {}
    chosen = torch.tensor(indices)
    [images] = data.images.read([chosen])
    inputs = normalise(images, torch.tensor(data.mean), torch.tensor(data.std))
    classes = torch.from_numpy(predictions.predicted.astype(np.int64))[chosen]
    maps, logits = grad_cam(network, inputs, classes)
    found = logits.softmax(dim=1).gather(1, classes[:, None])[:, 0]
    recorded = torch.from_numpy(predictions.confidence.copy())[chosen]
    if not torch.allclose(found, recorded, atol=_TOLERANCE, rtol=0):
        raise DataError("the images have changed: the network predicts otherwise for them now")
    height, width = images.shape[2:]
    overlays = heat_maps(maps, height, width)
    pairs = zip(indices, as_rgb(images), overlays, strict=True)
    return {index: GradCamImage(thumbnail(pixels), overlay) for index, pixels, overlay in pairs}


def _check_same(images: ImageSource, predictions: RunPredictions) -> None:
    labels: Tensor = images.labels
    names = getattr(images, "names", None)
    files = () if names is None else below_common_folder(names)
    is_same = (
        labels.shape == predictions.labels.shape
        and bool((labels.numpy() == predictions.labels).all())
        and files == predictions.files
    )
    if not is_same:
        raise DataError("the images have changed since they were predicted")


def draw_gallery(found: Gallery, pictures: dict[int, GradCamImage]) -> str:
    """Draw each image, and beside it the image under its Grad-CAM.

    Args:
        found: Images to draw.
        pictures: Their thumbnails, by index.
    """
    figures = []
    for image in found.images:
        name = image.file or f"image {image.index:,}"
        picture = pictures[image.index]
        is_right = image.label == image.predicted
        title = f"{name}: {image.label}, predicted {image.predicted}"
        color = "--good" if is_right else "--bad"
        shown = side_by_side(picture.image, None, title, over=picture.heat_map)
        said = f'<span style="color: var({color})">{escaped(image.predicted)}</span>'
        share = f'<span style="white-space: nowrap">({percent(image.probability, 1)})</span>'
        verdict = f"predicted {said} {share}"
        caption = f"<strong>{escaped(image.label)}</strong><br/>{verdict}"
        figures.append(f"{shown}<figcaption>{caption}</figcaption>")
    told = note(
        f"{len(found.images):,} of {found.total:,}. Right of each image: its Grad-CAM on the last "
        "stage, bright where the image speaks for the predicted class."
    )
    return f"{gallery(figures)}\n{told}"
