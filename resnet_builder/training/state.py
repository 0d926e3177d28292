"""Training state: progress, the best weights so far, and early stopping."""

import math
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf
from torch import Tensor, nn

from resnet_builder.errors import UsageError
from resnet_builder.model import state_dict_mismatch
from resnet_builder.runs.records import Count
from resnet_builder.spec.recipe import EarlyStopSpec
from resnet_builder.training.metrics import Metrics


class TrainState(BaseModel):
    """Progress of a training; with the weights and the optimizer, all that a resume needs.

    Batches and random numbers are functions of the step: they have no state. Neither has the
    learning rate, except that the plateau schedule needs the evaluations so far.

    Attributes:
        step: Optimizer steps done.
        images: Training images seen; a run may be resumed with another batch size.
        evaluated_step: Step of the last evaluation.
        evaluated_images: Training images seen before the last evaluation.
        loss_sum: Sum of the training losses since the last evaluation.
        num_correct: Training images predicted correctly since the last evaluation.
        validation: Metrics of the last evaluation, by names like ``val.top1``.
        history: Validation metrics by the step of their evaluation, where the schedule needs them.
        best_step: Step of the best weights; 0 if there are none yet.
        best: Validation metrics of the best weights.
        best_weights: State dict of the best weights, on the CPU; empty if there are none yet.
        best_metrics: Validation metrics of the best weights with each prediction, if they were
            evaluated since the training started or was resumed.
        monitored: Name of the metric that selects the best weights.
        best_score: Value that early stopping compares with, the higher, the better; ``None`` before
            the first evaluation.
        evaluations_without_improvement: Evaluations since ``best_score`` was reached.
        seconds: Training time, over all processes that worked on the run.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    step: Count = 0
    images: Count = 0
    evaluated_step: Count = 0
    evaluated_images: Count = 0
    loss_sum: float = 0.0
    num_correct: float = 0.0
    validation: dict[str, float] = {}
    history: dict[Count, dict[str, float]] = {}
    best_step: Count = 0
    best: dict[str, float] = {}
    best_weights: dict[str, Tensor] = Field(default={}, exclude=True, repr=False)
    best_metrics: InstanceOf[Metrics] | None = Field(default=None, exclude=True, repr=False)
    monitored: str = ""
    best_score: float | None = None
    evaluations_without_improvement: Count = 0
    seconds: float = 0.0

    def update_best(
        self, metrics: Metrics, model: nn.Module, early_stop: EarlyStopSpec | None = None
    ) -> bool:
        """Compare the present weights with the best ones, and keep them if they are better.

        The highest score of the metrics wins, the earlier one of equals. Weights whose validation
        loss is not finite never win.

        Args:
            metrics: Validation metrics of the present weights.
            model: The network with these weights.
            early_stop: Which improvements reset early stopping; any, if it is ``None``.

        Returns:
            Whether the present weights are now the best.
        """
        self.validation = metrics.named("val")
        score = metrics.score if math.isfinite(metrics.loss) else -math.inf
        if metrics.monitored != self.monitored:  # a resumed run may have another recipe
            self.monitored, self.best_score = metrics.monitored, None
        min_delta = early_stop.min_delta if early_stop else 0.0
        improvement = score - (-math.inf if self.best_score is None else self.best_score)
        if improvement > 0 and improvement >= min_delta:
            self.best_score, self.evaluations_without_improvement = score, 0
        else:
            self.evaluations_without_improvement += 1
        sign = -1 if metrics.monitored == "loss" else 1
        best = self.best.get(f"val.{metrics.monitored}")
        is_best = score > (-math.inf if best is None else sign * best)
        if is_best:
            self.best_step, self.best, self.best_metrics = self.step, self.validation, metrics
            self.best_weights = copy_weights(model)
        return is_best

    def is_stale(self, early_stop: EarlyStopSpec | None) -> bool:
        """Tell whether early stopping ends the training."""
        return (
            early_stop is not None and self.evaluations_without_improvement >= early_stop.patience
        )


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state dict of a network to the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()
    }


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a network, whose tensors keep their device and memory format.

    Raises:
        UsageError: Names or shapes differ.
    """
    own = model.state_dict()
    if (difference := state_dict_mismatch(own, weights)) is not None:
        raise UsageError(f"the checkpoint is of another network: {difference}")
    for name, tensor in own.items():
        tensor.copy_(weights[name])
