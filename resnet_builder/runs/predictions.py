"""Predictions of a run: the contents of ``predictions.npz``."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_builder.errors import CheckpointError, ResnetBuilderError
from resnet_builder.registry import described
from resnet_builder.runs.files import storage_errors, write_atomically
from resnet_builder.runs.records import refuse_newer
from resnet_builder.system import open_regular

SCHEMA = 1
"""Number of the form of the file, as in the other records of a run."""

NOT_FINITE = -1
"""Class in place of those that logits which are not all finite would tell."""


@dataclass(frozen=True, slots=True, eq=False)
class RunPredictions:
    """Predictions of the selected weights, for images that have one label each.

    The file is one of ``numpy.savez_compressed``, with an array for each attribute. Equal
    predictions make equal files.

    Attributes:
        split: ``test``, or ``val`` where there are no test images.
        step: Step of the selected weights.
        classes: Names of the K classes.
        labels: ``(N,)`` int32 labels, in the order of the split.
        top_classes: ``(N, k)`` int32: the likeliest classes, the likeliest first; k is 5, or K if
            that is less. :data:`NOT_FINITE` where the logits of an image are not all finite.
        top_probabilities: ``(N, k)`` float32: their probabilities, the softmax of the logits; NaN
            where these are not all finite.
        label_probabilities: ``(N,)`` float32: probability of the label; NaN likewise.
        files: Names of the images' files below their common folder; empty where images are no
            files.
    """

    split: str
    step: int
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    top_classes: npt.NDArray[np.int32]
    top_probabilities: npt.NDArray[np.float32]
    label_probabilities: npt.NDArray[np.float32]
    files: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    def predicted(self) -> npt.NDArray[np.int32]:
        """``(N,)`` predicted classes, or :data:`NOT_FINITE`."""
        return self.top_classes[:, 0]

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """``(N,)`` probabilities of the predicted classes; NaN where the logits are not finite."""
        return self.top_probabilities[:, 0]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """``(N,)`` whether the predicted class is the label."""
        return self.predicted == self.labels

    def write(self, path: Path) -> None:
        """Write the file, atomically.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "schema": np.array(SCHEMA),
            "split": np.array(self.split),
            "step": np.array(self.step),
            "classes": np.array(self.classes),
            "labels": self.labels,
            "top_classes": self.top_classes,
            "top_probabilities": self.top_probabilities,
            "label_probabilities": self.label_probabilities,
        }
        if self.files:
            arrays["files"] = np.array(self.files)
        file = io.BytesIO()  # numpy gives every member of the archive the same date
        np.savez_compressed(file, allow_pickle=False, **arrays)
        write_atomically(path, [file.getbuffer()])

    @classmethod
    def read(cls, path: Path) -> "RunPredictions":
        """Read the file.

        Raises:
            CheckpointError: It is damaged.
            StorageError: It is missing or cannot be read.
            UsageError: A newer release wrote it.
        """
        try:
            with (
                storage_errors("read", path),
                open_regular(path) as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                refuse_newer(int(arrays["schema"]), SCHEMA, str(path))
                found = cls(
                    split=str(arrays["split"]),
                    step=int(arrays["step"]),
                    classes=tuple(map(str, arrays["classes"])),
                    labels=arrays["labels"].astype(np.int32),
                    top_classes=arrays["top_classes"].astype(np.int32),
                    top_probabilities=arrays["top_probabilities"].astype(np.float32),
                    label_probabilities=arrays["label_probabilities"].astype(np.float32),
                    files=tuple(map(str, arrays["files"])) if "files" in arrays else (),
                )
            found._check()
        except ResnetBuilderError:
            raise
        except Exception as error:  # zipfile and numpy raise whatever they stumble over
            raise CheckpointError(f"{path} is damaged: {described(error)}") from error
        return found

    def _check(self) -> None:
        """Compare shapes and classes with each other.

        Raises:
            ValueError: They do not fit.
        """
        images, likeliest = self.num_images, min(5, len(self.classes))
        shapes = {
            "labels": (self.labels, (images,)),
            "top_classes": (self.top_classes, (images, likeliest)),
            "top_probabilities": (self.top_probabilities, (images, likeliest)),
            "label_probabilities": (self.label_probabilities, (images,)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape or not likeliest:
                raise ValueError(f"{name} has the shape {array.shape}, not {shape}")
        for name, array, least in (
            ("labels", self.labels, 0),
            ("top_classes", self.top_classes, NOT_FINITE),
        ):
            if array.size and not (least <= array.min() and array.max() < len(self.classes)):
                raise ValueError(f"{name} are not all of the {len(self.classes)} classes")
        if self.split not in {"test", "val"}:
            raise ValueError(f"it is of the split {self.split!r}")
        if len(self.files) not in {0, images}:
            raise ValueError(f"it has {len(self.files)} files for {images} images")


def below_common_folder(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths below the innermost folder that holds all of them, with ``/``; others as they are."""
    folders = {os.path.dirname(path) for path in paths}
    if not folders or not all(map(os.path.isabs, folders)):
        return tuple(paths)
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # on several drives
        return tuple(paths)
    start = len(os.path.join(common, ""))
    return tuple(path[start:].replace(os.sep, "/") for path in paths)
