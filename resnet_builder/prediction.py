"""Prediction: classes of image files, by trained weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, InstanceOf
from torch import Tensor

from resnet_builder.data.class_folders import find_images
from resnet_builder.data.decode import decode_image, preprocess_image, to_grey
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.loader import normalise
from resnet_builder.data.preprocess import Preprocessing, default_preprocess
from resnet_builder.device import full_precision
from resnet_builder.errors import DataError, NonFiniteError, Stopped, UsageError
from resnet_builder.inference import BATCH_SIZE, TrainedModel
from resnet_builder.parts import data_parts
from resnet_builder.spec.schema import Spec, ToRgb
from resnet_builder.training.evaluation import prepare_for_inference
from resnet_builder.weights.file import WeightsHeader


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """Class that an image may be of.

    Attributes:
        name: Name of the class.
        probability: Its softmax probability; its sigmoid, if an image may have several classes.
    """

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """Prediction for one image.

    Attributes:
        path: Path of the image.
        predictions: Most probable classes, the most probable first; all above one half, if an image
            may have several.
        probabilities: Probability of every class, in the order of the network's outputs.
        confidence: Probability of the most probable class; if an image may have several classes,
            that of the least certain decision about one.
        fitted: Whether the image was resized and cropped to the network's input size.
        greyed: Whether the image lost its colours, because the network takes grey images.
        error: Reason why there are no predictions.
    """

    path: Path
    predictions: tuple[ClassProbability, ...] = ()
    probabilities: Annotated[InstanceOf[Tensor] | None, Field(exclude=True)] = None
    confidence: Annotated[float | None, Field(exclude=True)] = None
    fitted: bool = False
    greyed: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for images.

    Attributes:
        weights: Path of the weights.
        classes: Class names in the order of the network's outputs.
        images: Prediction for each image.
        notices: What was passed over in folders, and images whose metadata are damaged.
    """

    weights: Path
    classes: Annotated[tuple[str, ...], Field(exclude=True)]
    images: tuple[ImagePrediction, ...]
    notices: tuple[str, ...] = ()


def predict(
    trained: TrainedModel,
    paths: Sequence[Path],
    *,
    top: int,
    device: torch.device,
    should_stop: Stop = never,
    report: Report = silent,
) -> Predictions:
    """Predict the classes of images.

    An image that preprocessing leaves in another size than the network was trained for is
    resized and cropped to that size.

    Args:
        trained: Model; its network is moved to the device.
        paths: Image files, and folders of them; what is an image is decided as in training.
        top: Number of classes for each image, unless it may have several.
        device: Device to compute on.
        should_stop: Polled at every image.
        report: Told how many images are done.

    Raises:
        DataError: There are no images.
        NonFiniteError: The logits of an image are not finite.
        Stopped: ``should_stop`` returned true.
        UsageError: The network takes neither grey nor colour images, or its weights do not say
            how they are normalised.
    """
    read = _image_reader(trained.spec, trained.header)
    classify = _classifier(trained, device)
    notices: list[str] = []
    files = _find_images(paths, notices, should_stop)
    found: list[ImagePrediction] = []
    for first in range(0, len(files), BATCH_SIZE):
        images: dict[int, Tensor] = {}  # by their number among all
        for path in files[first : first + BATCH_SIZE]:
            if should_stop():
                raise Stopped("stopped while predicting")
            prediction, image = read(path, notices)
            if image is not None:
                images[len(found)] = image
            found.append(prediction)
        if images:
            probabilities = classify(torch.stack(list(images.values())))
            for number, row in zip(images, probabilities, strict=True):
                several = trained.header.multi_label
                best = _most_probable(
                    row, trained.classes, int((row > 0.5).sum()) if several else top
                )
                certain = torch.maximum(row, 1 - row).min() if several else row.max()
                found[number] = replace(
                    found[number], predictions=best, probabilities=row, confidence=certain.item()
                )
        report("predicting", len(found), len(files))
    return Predictions(trained.path, trained.classes, tuple(found), tuple(notices))


def _find_images(paths: Sequence[Path], notices: list[str], should_stop: Stop) -> list[Path]:
    """Files, and all images in folders, in order; notices of what is no image are added."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found, passed_over = find_images(path, should_stop)
            files += found
            notices += passed_over
        else:
            files.append(path)
    if not files:
        raise DataError(f"no images in {', '.join(map(str, paths))}", *notices)
    return files


def _image_reader(
    spec: Spec, header: WeightsHeader
) -> Callable[[Path, list[str]], tuple[ImagePrediction, Tensor | None]]:
    """Function that reads an image as ``(C, H, W)`` uint8, for a prediction to be filled in.

    Its second argument takes notices.
    """
    channels, height, width = spec.model.image_shape
    if channels not in {1, 3, 4}:
        raise UsageError(f"images have 1, 3 or 4 channels, the network takes {channels}")
    takes_grey = _channels_in_files(spec, header) == 1
    preprocess = Preprocessing(header.preprocess)
    fit = Preprocessing(default_preprocess((height, width)))
    colours = 4 if channels == 4 else 3

    def read(path: Path, notices: list[str]) -> tuple[ImagePrediction, Tensor | None]:
        try:
            image = decode_image(
                path, colours, lambda problem: notices.append(f"{path}: {problem}")
            )
            greyed = takes_grey and not bool((image[0] == image).all())
            if takes_grey:
                image = to_grey(image) if greyed else image[:1]
            image = preprocess_image(image, path, preprocess)
            fitted = image.shape[-2:] != (height, width)
            if fitted:
                image = preprocess_image(image, path, fit)
        except DataError as error:
            return ImagePrediction(path, error=str(error)), None
        return ImagePrediction(path, fitted=fitted, greyed=greyed), image

    return read


def _channels_in_files(spec: Spec, header: WeightsHeader) -> int:
    """Channels that images are decoded to, before `to_rgb` makes three of one."""
    if not any(isinstance(step, ToRgb) for step in header.preprocess):
        return spec.model.image_shape[0]
    dataset = None if spec.data is None else next(data_parts(spec.data)).make()
    return 1 if dataset is None else dataset.info.channels or 1


def _classifier(trained: TrainedModel, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Function from ``(B, C, H, W)`` uint8 images to ``(B, K)`` probabilities, on the CPU."""
    header = trained.header
    if header.mean is None or header.std is None:
        raise UsageError(
            f"{trained.path} does not say how images are normalised: import it again with "
            "--set data.normalize='{mean: [...], std: [...]}'"
        )
    mean, std = (torch.tensor(values, device=device) for values in (header.mean, header.std))
    network, layout = prepare_for_inference(
        trained.network.to(device).eval(),
        cpu_kernels=trained.spec.run.cpu_kernels is not False,
    )

    @torch.inference_mode()
    @full_precision()
    def classify(images: Tensor) -> Tensor:
        inputs = normalise(images.to(device), mean, std).contiguous(memory_format=layout)
        logits = network(inputs).float()
        probabilities = logits.sigmoid() if header.multi_label else logits.softmax(1)
        if not bool(probabilities.isfinite().all()):
            raise NonFiniteError(f"{trained.path}: its logits are not finite")
        return probabilities.cpu()

    return classify


def _most_probable(
    probabilities: Tensor, classes: Sequence[str], top: int
) -> tuple[ClassProbability, ...]:
    best = probabilities.topk(min(top, len(classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(ClassProbability(classes[label], probability) for label, probability in pairs)
