"""The learning rate as a pure function of the step."""

import math
from collections.abc import Callable

from resnet_builder.spec.recipe import (
    ConstantSchedule,
    ConstantWarmup,
    CosineSchedule,
    LinearSchedule,
    LinearWarmup,
    MultistepSchedule,
    OneCycleSchedule,
    TrainSpec,
    WarmupSpec,
)
from resnet_builder.training.plan import Plan, make_plan

Schedule = Callable[[int], float]
"""``schedule(step)`` is the learning rate of update number ``step + 1``; steps count from 0."""


def make_schedule(train: TrainSpec, steps_per_epoch: int) -> Schedule:
    """Make a recipe's schedule: without state, so that a resumed run has only a step to know.

    Args:
        train: The recipe.
        steps_per_epoch: Full batches in the training images.

    Raises:
        UsageError: A warm-up or a milestone lies beyond the training's end.
    """
    plan = make_plan(train, steps_per_epoch)
    after = _after_warmup(train, plan)
    warmup = getattr(train.schedule, "warmup", None)
    return after if warmup is None else _warmed(after, warmup, train.optimizer.lr, plan)


def _warmed(after: Schedule, warmup: WarmupSpec, peak: float, plan: Plan) -> Schedule:
    before = _warmup(warmup, peak, plan.warmup_steps)
    return lambda step: before(step) if step < plan.warmup_steps else after(step)


def _warmup(warmup: WarmupSpec, peak: float, steps: int) -> Schedule:
    match warmup:
        case ConstantWarmup(lr=lr):
            return lambda step: lr
        case LinearWarmup(start=start):
            return lambda step: start + (peak - start) * step / steps


def _after_warmup(train: TrainSpec, plan: Plan) -> Schedule:
    peak = train.optimizer.lr
    match train.schedule:
        case ConstantSchedule():
            return lambda step: peak
        case MultistepSchedule(gamma=gamma):
            return lambda step: peak * gamma ** sum(step >= mark for mark in plan.milestones)
        case CosineSchedule(end=end):
            return lambda step: _cosine(peak, end, _progress(step, plan))
        case LinearSchedule(end=end):
            return lambda step: _line(peak, end, _progress(step, plan))
        case OneCycleSchedule() as cycle:
            return _one_cycle(cycle, peak, plan.total_steps)


def _progress(step: int, plan: Plan) -> float:
    """Return how much of the way to the last step is done: 0 right after warm-up, 1 at the end."""
    return (step - plan.warmup_steps) / max(1, plan.total_steps - 1 - plan.warmup_steps)


def _line(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _one_cycle(cycle: OneCycleSchedule, peak: float, total_steps: int) -> Schedule:
    """Rise, then fall, at the very steps that ``torch.optim.lr_scheduler.OneCycleLR`` does."""
    anneal = _cosine if cycle.anneal == "cos" else _line
    first = peak / cycle.div_factor
    last = first / cycle.final_div_factor
    top = cycle.pct_start * total_steps - 1
    end = total_steps - 1

    def rate(step: int) -> float:
        if step <= top:
            return anneal(first, peak, step / top if top > 0 else 1.0)
        return anneal(peak, last, (step - top) / (end - top))

    return rate
