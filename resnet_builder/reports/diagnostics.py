"""Diagnostics of a run for its report: predictions and images, as pieces of HTML with numbers."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import CheckpointError, ResnetBuilderError, UsageError
from resnet_builder.inference import (
    SplitImages,
    TrainedModel,
    load_model,
    load_own_splits,
    load_split,
)
from resnet_builder.registry import described
from resnet_builder.reports.accuracy import (
    accuracies_of_scores,
    class_accuracies,
    confusion,
    draw_class_accuracies,
    draw_confusion,
)
from resnet_builder.reports.batch import batch_images, draw_batch, first_batch
from resnet_builder.reports.calibration import (
    calibration,
    coverage,
    draw_calibration,
    draw_coverage,
)
from resnet_builder.reports.gallery import (
    Gallery,
    draw_gallery,
    least_certain,
    most_confident_mistakes,
    read_grad_cam,
)
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.predictions import RunPredictions
from resnet_builder.runs.records import DataRecord, ResultRecord

GALLERY_IMAGES = 12
"""Most images of a gallery."""

BATCH_IMAGES = 12
"""Images of the first batch that are shown."""

_MAX_MACS = 50_000_000_000  # of the images of both galleries together: a second or two
_LEAST_IMAGES = 4
_MACS_OF_ONE_THREAD = 10_000_000_000  # below, to share the work among threads takes longer than it


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a report.

    Attributes:
        name: Name, for anchors and keys.
        title: Heading.
        html: HTML, well-formed and escaped; empty if something is missing.
        numbers: Numbers behind it, a dataclass of plain values; ``None`` if there are none.
        missing: Sentence that says why there is no HTML, if so.
    """

    name: str
    title: str
    html: str = ""
    numbers: Any = None
    missing: str | None = None


def read_diagnostics(
    path: Path,
    *,
    plugins: Sequence[str] = (),
    data_dir: Path | None = None,
    images: bool = True,
) -> list[Fragment]:
    """Read what the predictions and images of a run show. It never fails: parts may be missing.

    Args:
        path: Run directory.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets.
        images: Whether to load the network and the images. Without them, only files of the run
            directory are read, and galleries and batch are left out.
    """
    run = RunDirectory(path)
    predictions, missing = _read_predictions(run)
    fragments = [_classes(run, predictions, missing)]
    parts: tuple[tuple[str, str, Callable[..., Any], Callable[..., str]], ...] = (
        ("confusion", "Confusion", confusion, draw_confusion),
        ("calibration", "Calibration", calibration, draw_calibration),
        ("coverage", "Accuracy against coverage", coverage, draw_coverage),
    )
    for name, title, compute, draw in parts:
        if predictions is None:
            fragments.append(Fragment(name, title, missing=missing))
        else:
            found = compute(predictions)
            fragments.append(Fragment(name, title, draw(found), found))
    return fragments + (_images(run, predictions, missing, plugins, data_dir) if images else [])


def _read_predictions(run: RunDirectory) -> tuple[RunPredictions | None, str | None]:
    """Return the predictions of a run, or a sentence that says why there are none."""
    try:
        if not run.is_finished:
            return None, "The run is not finished: predictions.npz is written at its end."
        result = ResultRecord.read(run.result)
        if run.predictions.is_file():
            predictions = RunPredictions.read(run.predictions)
            if agrees(predictions, result):
                return predictions, None
            return None, (
                "predictions.npz is of another training than result.json: remove both and resume "
                "the run, and both are made again."
            )
    except ResnetBuilderError as error:
        return None, _sentence(error)
    if result.val_map is not None or result.test_map is not None:
        return None, "Images of several labels have no predictions.npz."
    if result.test_top1 is None and result.val_top1 is None:
        return None, "The run has neither test nor validation images."
    return None, ("The run has no predictions.npz: resume it, and they are made again.")


def agrees(predictions: RunPredictions, result: ResultRecord) -> bool:
    """Whether predictions have the step and the accuracy of a result."""
    accuracy = result.test_top1 if predictions.split == "test" else result.val_top1
    return (
        predictions.step == result.selected_step
        and accuracy is not None
        and math.isclose(float(predictions.correct.mean()), accuracy, abs_tol=1e-6)
    )


def _classes(
    run: RunDirectory, predictions: RunPredictions | None, missing: str | None
) -> Fragment:
    """Accuracy of each class; with several labels an image, the recalls of ``result.json``."""
    name, title, found = "classes", "Accuracy of each class", None
    if predictions is not None:
        found = class_accuracies(predictions)
    elif run.is_finished:
        try:
            scores = ResultRecord.read(run.result).test_by_class
        except ResnetBuilderError as error:
            return Fragment(name, title, missing=_sentence(error))
        if scores is not None:
            found = accuracies_of_scores("test", scores)
    if found is None:
        return Fragment(name, title, missing=missing)
    return Fragment(name, title, draw_class_accuracies(found), found)


def _images(
    run: RunDirectory,
    predictions: RunPredictions | None,
    missing: str | None,
    plugins: Sequence[str],
    data_dir: Path | None,
) -> list[Fragment]:
    """Galleries of test images, and the first batch of the training."""
    mistakes = Fragment("mistakes", "Most confident mistakes", missing=missing)
    uncertain = Fragment("uncertain", "Least certain images", missing=missing)
    batch = Fragment("batch", "First batch of the training")
    # Whatever goes wrong here is told in the report: the data may be gone, or changed, and code of
    # plugins reads them. A report at the end of a training must not fail for it.
    try:
        trained = load_model(run.path, plugins=plugins)
    except Exception as error:
        told = _sentence(error)
        return [replace(one, missing=told) for one in (mistakes, uncertain, batch)]
    splits: DataSplits | None = None
    left_out = left_out_images(run)
    try:
        splits = load_own_splits(trained, data_dir=data_dir, left_out=left_out)
        found = first_batch(trained.spec, splits, BATCH_IMAGES)
        numbers = batch_images(trained.spec, found)
        batch = replace(batch, html=draw_batch(found), numbers=numbers)
    except Exception as error:
        batch = replace(batch, missing=_sentence(error))
    if predictions is None:
        return [mistakes, uncertain, batch]
    macs = _macs_of_image(run)
    # Few of a large network, so that the report does not take long.
    count = max(_LEAST_IMAGES, min(GALLERY_IMAGES, _MAX_MACS // max(1, 2 * macs)))
    chosen = [
        (mistakes, most_confident_mistakes(predictions, count)),
        (uncertain, least_certain(predictions, count)),
    ]
    try:
        galleries = _galleries(trained, splits, predictions, chosen, data_dir, left_out, macs)
    except Exception as error:
        # Their numbers come from predictions.npz alone.
        told = _sentence(error)
        galleries = [replace(one, numbers=gallery, missing=told) for one, gallery in chosen]
    return [*galleries, batch]


def _galleries(
    trained: TrainedModel,
    splits: DataSplits | None,
    predictions: RunPredictions,
    chosen: Sequence[tuple[Fragment, Gallery]],
    data_dir: Path | None,
    left_out: tuple[str, ...],
    macs: int,
) -> list[Fragment]:
    if trained.header.step != predictions.step:
        raise CheckpointError(
            f"the weights are of step {trained.header.step}, and predictions.npz is of step "
            f"{predictions.step}: the run has been trained on"
        )
    if splits is None:  # the training images may be gone, and the test images there
        data = load_split(trained, predictions.split, data_dir=data_dir, left_out=left_out)
    else:
        source = splits.test if predictions.split == "test" else splits.validation
        if source is None:
            raise UsageError(f"there are no {predictions.split} images any more")
        data = SplitImages(
            predictions.split, source, splits.classes, splits.mean, splits.std, splits.notices
        )
    indices = sorted({image.index for _, gallery in chosen for image in gallery.images})
    with _threads_for(len(indices) * macs):
        pictures = read_grad_cam(trained.network, data, predictions, indices)
    empty = '<p class="note">There are no such images.</p>'
    return [
        replace(one, html=draw_gallery(found, pictures) if found.images else empty, numbers=found)
        for one, found in chosen
    ]


def left_out_images(run: RunDirectory) -> tuple[str, ...]:
    """Names of images that were left out of the training because they cannot be decoded."""
    try:
        return DataRecord.read(run.data).skipped
    except ResnetBuilderError:
        return ()


def _macs_of_image(run: RunDirectory) -> int:
    """MACs for one image; many, if they are not known."""
    try:
        return ResultRecord.read(run.result).macs
    except ResnetBuilderError:
        return _MAX_MACS


@contextmanager
def _threads_for(macs: int) -> Iterator[None]:
    """Context in which a small network is computed in one thread."""
    before = torch.get_num_threads()
    if macs < _MACS_OF_ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sentence(error: Exception) -> str:
    """Say in one line what went wrong."""
    line = str(error).partition("\n")[0] if isinstance(error, ResnetBuilderError) else ""
    told = line or described(error)
    return f"{told[:1].upper()}{told[1:].rstrip('.')}."
