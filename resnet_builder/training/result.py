"""Result of a run: ``result.json``, ``predictions.npz``, and the header of its weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resnet_builder.data.interfaces import ImageSource
from resnet_builder.data.splits import DataSplits
from resnet_builder.device import peak_memory
from resnet_builder.experiment import Experiment
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.runs.predictions import RunPredictions, below_common_folder
from resnet_builder.runs.records import METRIC_WORDS, Comparison, EnvRecord, ResultRecord
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import PublishedSpec
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.state import TrainState
from resnet_builder.weights.file import WeightsHeader


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Result of a run.

    Attributes:
        record: Contents of ``result.json``.
        test: Metrics of the selected weights on the test images; ``None`` if there are none.
    """

    record: ResultRecord
    test: Metrics | None

    @property
    def early_end(self) -> str | None:
        """Sentence that says that early stopping ended the training, if it did."""
        if not self.record.early_stopped:
            return None
        monitored = self.record.monitored or "top1"
        change = "fall" if monitored == "loss" else "rise"
        return (
            f"stopped early after step {self.record.steps:,} of {self.record.planned_steps:,}: "
            f"validation {METRIC_WORDS[monitored]} did not {change} any more"
        )


def weights_header(
    experiment: Experiment, data: DataSplits, step: int, metrics: Mapping[str, float]
) -> WeightsHeader:
    """Header of a weights file.

    Args:
        experiment: The experiment.
        data: The images.
        step: Step of the weights.
        metrics: Metrics of the weights, by names like ``val.top1``.
    """
    return WeightsHeader(
        spec=dump_spec(experiment.spec),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        preprocess=experiment.data.preprocess or (),
        images=data.fingerprint,
        metrics=metrics,
        multi_label=data.info.multi_label,
        step=step,
    )


def save_predictions(
    path: Path, data: DataSplits, step: int, *, validation: Metrics | None, test: Metrics | None
) -> None:
    """Write ``predictions.npz``: predictions for the test images, or else the validation images.

    Images of several labels have none.

    Args:
        path: The file.
        data: The images.
        step: Step of the weights.
        validation: Their metrics on the validation images, if there are any.
        test: Their metrics on the test images, if there are any.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    metrics, images = (validation, data.validation) if test is None else (test, data.test)
    if metrics is not None and images is not None:
        split = "val" if test is None else "test"
        found = run_predictions(split, step, data.classes, images, metrics)
        if found is not None:
            found.write(path)


def run_predictions(
    split: str, step: int, classes: tuple[str, ...], images: ImageSource, metrics: Metrics
) -> RunPredictions | None:
    """Contents of ``predictions.npz``; ``None`` for images of several labels.

    Args:
        split: ``test`` or ``val``.
        step: Step of the weights.
        classes: Names of the classes.
        images: The images of the split.
        metrics: Metrics of the weights on them.
    """
    if metrics.top is None:
        return None
    names = getattr(images, "names", None)
    return RunPredictions(
        split=split,
        step=step,
        classes=classes,
        labels=metrics.labels.numpy().astype(np.int32),
        top_classes=metrics.top.classes.numpy().astype(np.int32),
        top_probabilities=metrics.top.probabilities.numpy(),
        label_probabilities=metrics.top.of_label.numpy(),
        files=() if names is None else below_common_folder(names),
    )


def result_record(
    experiment: Experiment,
    state: TrainState,
    test: Metrics | None,
    *,
    planned_steps: int,
    classes: tuple[str, ...],
    env: EnvRecord,
) -> ResultRecord:
    """Contents of ``result.json``.

    Args:
        experiment: The experiment.
        state: State after the last step.
        test: Metrics of the selected weights on the test images, if there are any.
        planned_steps: Steps of the recipe, before early stopping.
        classes: Names of the classes.
        env: Environment of the run.
    """
    # Of the spec that was trained: spec.yaml may have been edited since.
    digest = hashlib.sha256(dump_spec(experiment.spec).encode()).hexdigest()
    has_best = state.best_step > 0
    return ResultRecord(
        spec_sha256=digest,
        seed=experiment.train.seed,
        steps=state.step,
        planned_steps=planned_steps,
        early_stopped=state.step < planned_steps,
        selected_on="val" if has_best else "none",
        selected_step=state.best_step if has_best else state.step,
        monitored=state.monitored or None,
        monitored_value=state.best.get(f"val.{state.monitored}"),
        val_top1=state.best.get("val.top1"),
        val_map=state.best.get("val.map"),
        test_top1=test.top1 if test else None,
        test_top5=test.top5 if test else None,
        test_map=test.map if test else None,
        test_micro=test.micro if test else None,
        test_macro=test.macro if test else None,
        test_weighted=test.weighted if test else None,
        test_by_class=dict(zip(classes, test.by_class, strict=True)) if test else None,
        parameters=count_parameters(experiment.network),
        macs=count_macs(experiment.network, experiment.input_shape),
        seconds=state.seconds,
        images_per_second=state.images / max(state.seconds, 1e-9),
        peak_memory=peak_memory(torch.device(env.runtime.device)),
        device=env.device,
        precision=env.runtime.precision,
        versions=env.versions,
        published=_compare(experiment.spec.published, test),
    )


def _compare(published: PublishedSpec | None, test: Metrics | None) -> Comparison | None:
    if published is None:
        return None
    return Comparison(
        source=published.source,
        test_top1=published.test_top1,
        test_top1_difference=_difference(test.top1 if test else None, published.test_top1),
        test_top5=published.test_top5,
        test_top5_difference=_difference(test.top5 if test else None, published.test_top5),
    )


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
