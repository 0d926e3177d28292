"""The outcome of a run, and how it compares with what was published."""

import copy
import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from resnet_builder.device import describe
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import storage_errors
from resnet_builder.runs.records import Comparison, ResultRecord, RuntimeConfig, versions
from resnet_builder.spec.schema import PublishedSpec, Spec
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.state import Counters


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The outcome of a run.

    Attributes:
        record: What ``result.json`` says.
        test: How the selected weights did on the test images; ``None`` if there are none.
    """

    record: ResultRecord
    test: Evaluation | None


def make_result(
    model: nn.Module,
    spec: Spec,
    run: RunDirectory,
    counters: Counters,
    choices: RuntimeConfig,
    test: Evaluation | None,
    classes: tuple[str, ...],
) -> Result:
    """Put a run's outcome together.

    Args:
        model: The network that was trained.
        spec: The experiment, resolved.
        run: Where its ``spec.yaml`` is.
        counters: Of the training, at its end.
        choices: How it was computed.
        test: How the selected weights did on the test images.
        classes: Class names, by label.
    """
    assert spec.train is not None, "a run has a recipe"
    with storage_errors("read", run.spec):
        digest = hashlib.sha256(run.spec.read_bytes()).hexdigest()
    selected = counters.best_step > 0
    record = ResultRecord(
        spec_sha256=digest,
        seed=spec.train.seed,
        steps=counters.step,
        selected_on="val" if selected else "none",
        selected_step=counters.best_step if selected else counters.step,
        val_top1=counters.best.get("val.top1"),
        test_top1=None if test is None else test.top1,
        test_top5=None if test is None else test.top5,
        test_top1_by_class=None if test is None else _by_class(test, classes),
        parameters=count_parameters(model),
        macs=_macs(model, spec),
        seconds=counters.seconds,
        images_per_second=counters.step * spec.train.batch_size / max(counters.seconds, 1e-9),
        device=describe(_device(model)),
        precision=choices.precision,
        versions=versions(),
        published=_compare(spec.published, test),
    )
    return Result(record, test)


def _by_class(test: Evaluation, classes: tuple[str, ...]) -> dict[str, float]:
    pairs = zip(classes, test.per_class, strict=True)
    return {name: top1 for name, top1 in pairs if top1 is not None}


def _compare(published: PublishedSpec | None, test: Evaluation | None) -> Comparison | None:
    """Set our test metrics beside the source's, where both are known."""
    if published is None:
        return None
    top1, top5 = (None, None) if test is None else (test.top1, test.top5)
    return Comparison(
        source=published.source,
        test_top1=published.test_top1,
        test_top1_difference=_difference(top1, published.test_top1),
        test_top5=published.test_top5,
        test_top5_difference=_difference(top5, published.test_top5),
    )


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _macs(model: nn.Module, spec: Spec) -> int:
    channels, size, _ = spec.model.image_shape
    return count_macs(copy.deepcopy(model).to("meta"), channels, size)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
