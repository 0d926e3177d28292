"""A recipe's lengths, worked out in optimizer steps once the size of the data is known."""

from dataclasses import dataclass

from resnet_builder.errors import UsageError
from resnet_builder.spec.recipe import Duration, Interval, MultistepSchedule, TrainSpec, Unit


@dataclass(frozen=True, slots=True)
class Plan:
    """When what happens in a training, in steps; a step is one update of the weights.

    Attributes:
        total_steps: Length of the training.
        steps_per_epoch: Steps that an epoch's full batches make.
        batch_size: Images per step.
        accumulate: Equal parts that a process computes a batch in.
        processes: That share every batch out among them.
        warmup_steps: Steps before the schedule proper.
        milestones: Steps from which on a multistep schedule's rate is lower.
        evaluate_every: Steps between evaluations.
        checkpoint_steps: Steps between checkpoints, or ``None``.
        checkpoint_seconds: Seconds between checkpoints, or ``None``.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    accumulate: int
    processes: int
    warmup_steps: int
    milestones: tuple[int, ...]
    evaluate_every: int
    checkpoint_steps: int | None
    checkpoint_seconds: float | None

    @property
    def part_size(self) -> int:
        """Images that a process computes at a time."""
        return self.batch_size // (self.processes * self.accumulate)

    def epoch(self, step: int) -> float:
        """Return how many epochs ``step`` steps are."""
        return step / self.steps_per_epoch

    def evaluates_after(self, step: int) -> bool:
        """Tell whether the weights after ``step`` steps are evaluated; the last ones always are."""
        return step > 0 and (step % self.evaluate_every == 0 or step == self.total_steps)


def make_plan(train: TrainSpec, steps_per_epoch: int, processes: int = 1) -> Plan:
    """Work out a recipe in steps.

    Args:
        train: The recipe.
        steps_per_epoch: Full batches in the training images.
        processes: That share every batch out among them.

    Raises:
        UsageError: Something lies beyond the training's end.
    """
    total = _steps(train, steps_per_epoch)
    checkpoints = train.checkpoint_every
    return Plan(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        batch_size=train.batch_size,
        accumulate=train.accumulate,
        processes=processes,
        warmup_steps=_warmup_steps(train, steps_per_epoch, total),
        milestones=_milestones(train, steps_per_epoch, total),
        evaluate_every=_steps(train.evaluate_every, steps_per_epoch),
        checkpoint_steps=None if checkpoints.seconds else _steps(checkpoints, steps_per_epoch),
        checkpoint_seconds=checkpoints.seconds,
    )


def _steps(length: Duration | Interval, steps_per_epoch: int) -> int:
    if length.steps is not None:
        return length.steps
    assert length.epochs is not None, "a length is given in one unit"
    return length.epochs * steps_per_epoch


def _warmup_steps(train: TrainSpec, steps_per_epoch: int, total: int) -> int:
    warmup = getattr(train.schedule, "warmup", None)
    if warmup is None:
        return 0
    steps = _steps(warmup, steps_per_epoch)
    if steps >= total:
        raise UsageError(
            f"train.schedule.warmup: its {_counted(steps)} leave nothing of "
            f"the training's {_counted(total)}; shorten it or train longer"
        )
    return steps


def _milestones(train: TrainSpec, steps_per_epoch: int, total: int) -> tuple[int, ...]:
    if not isinstance(train.schedule, MultistepSchedule):
        return ()
    unit = train.schedule.unit or train.unit
    scale = steps_per_epoch if unit == "epochs" else 1
    last = train.schedule.milestones[-1]
    if last * scale >= total:
        raise UsageError(
            f"train.schedule.milestones: {_at(last, unit, scale)} is beyond "
            f"the training's {_counted(total)}; lower it or train longer"
        )
    return tuple(milestone * scale for milestone in train.schedule.milestones)


def _at(milestone: int, unit: Unit, scale: int) -> str:
    return f"epoch {milestone}, step {milestone * scale}," if unit == "epochs" else f"{milestone}"


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
