"""The rows of ``metrics.jsonl`` that training writes."""

from typing import Literal

from resnet_builder.runs.records import MetricsRow
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.plan import Plan
from resnet_builder.training.state import Counters


def train_row(counters: Counters, plan: Plan, lr: float, images_per_second: float) -> MetricsRow:
    """Report the steps since the last evaluation, before the next is noted.

    Args:
        counters: Of the training so far.
        plan: Its lengths.
        lr: Rate of the last step.
        images_per_second: Over these steps, as far as this process made them.
    """
    steps = counters.step - counters.evaluated
    return MetricsRow(
        event="train",
        step=counters.step,
        epoch=counters.step // plan.steps_per_epoch,
        lr=lr,
        images_per_second=images_per_second,
        seconds=counters.seconds,
        train_loss=counters.loss / steps,
        train_top1=counters.hits / (steps * plan.batch_size),
    )


def evaluation_row(
    event: Literal["validation", "test"], step: int, plan: Plan, evaluation: Evaluation
) -> MetricsRow:
    """Report an evaluation of the weights after ``step`` steps."""
    return MetricsRow.model_validate(
        {
            "event": event,
            "step": step,
            "epoch": step // plan.steps_per_epoch,
            **evaluation.metrics("val" if event == "validation" else "test"),
        }
    )
