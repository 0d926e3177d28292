"""Plan of a training: learning rate (``learning_rate``), image size, seed and intervals by step.

All are pure functions of the number of the step, so that a resumed run has only a step to restore.
The plateau schedule is one of the step and the evaluations before it, which checkpoints hold.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from resnet_builder.data.preprocess import covering_size
from resnet_builder.data.random import hash_seed
from resnet_builder.spec.recipe import (
    ConstantSchedule,
    ConstantWarmup,
    CosineRestartsSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    MultistepSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    StepSchedule,
    TrainSpec,
    WarmupSpec,
)

History = Mapping[int, Mapping[str, float]]
"""Validation metrics by the step of their evaluation, in the order of the steps."""

_NO_HISTORY: History = {}

_SMALLEST_FALL = 1e-8
"""Falls of the learning rate that are smaller are left out, as by torch's ReduceLROnPlateau."""


class Plan:
    """Plan of a training, in steps. A step is one update of the weights.

    Steps count from 0: ``lr(step)`` is the learning rate of update number ``step + 1``, and
    ``evaluates_at(step)`` concerns the weights after ``step`` updates.

    The warm-up and the milestones end before the training, as :mod:`resnet_builder.checks` sees to.

    Args:
        recipe: The recipe.
        steps_per_epoch: Number of full batches in the training images.
        processes: Number of processes that divide each batch.

    Attributes:
        recipe: The recipe.
        total_steps: Length of the training.
        steps_per_epoch: Length of an epoch.
        batch_size: Images of a step.
        micro_batch_size: Images that a process computes at a time.
        warmup_steps: Length of the warm-up.
        milestones: Steps at which a multistep schedule lowers the learning rate.
        evaluation_steps: Steps between evaluations.
        checkpoint_steps: Steps between checkpoints; ``None`` if they are saved by the clock.
        checkpoint_seconds: Seconds between checkpoints; ``None`` if they are saved by the step.
    """

    def __init__(self, recipe: TrainSpec, steps_per_epoch: int, processes: int = 1) -> None:
        self.recipe = recipe
        self.total_steps = recipe.in_steps(steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = recipe.batch_size
        self.micro_batch_size = recipe.batch_size // (processes * recipe.accumulate)
        # A one-cycle schedule has no warm-up: it rises by itself.
        self._warmup: WarmupSpec | None = getattr(recipe.schedule, "warmup", None)
        self.warmup_steps = self._warmup.in_steps(steps_per_epoch) if self._warmup else 0
        self.milestones = _milestones(recipe, steps_per_epoch)
        self._interval_steps = _interval_steps(recipe, steps_per_epoch)
        self.evaluation_steps = recipe.evaluate_every.in_steps(steps_per_epoch)
        checkpoints = recipe.checkpoint_every
        self.checkpoint_seconds = checkpoints.seconds
        self.checkpoint_steps = (
            None if checkpoints.seconds else checkpoints.in_steps(steps_per_epoch)
        )
        self._sizes = _size_ends(recipe)

    def epoch(self, step: int) -> float:
        """Return the number of epochs after ``step`` steps, with a fraction."""
        return step / self.steps_per_epoch

    def evaluates_at(self, step: int) -> bool:
        """Return whether the weights after ``step`` steps are evaluated. The last always are."""
        return step > 0 and (step % self.evaluation_steps == 0 or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step`` steps, if it is not by the clock."""
        return step > 0 and self.checkpoint_steps is not None and step % self.checkpoint_steps == 0

    @property
    def needs_history(self) -> bool:
        """Whether the learning rate depends on the evaluations before."""
        return isinstance(self.recipe.schedule, PlateauSchedule)

    def lr(self, step: int, history: History = _NO_HISTORY) -> float:
        """Return the learning rate (``learning_rate``) of a step: its schedule and warm-up.

        Args:
            step: The step.
            history: Evaluations so far, if the plan needs them; later ones than ``step`` are
                passed over.
        """
        peak, schedule = self.recipe.optimizer.lr, self.recipe.schedule
        if self._warmup is not None and step < self.warmup_steps:
            if isinstance(self._warmup, ConstantWarmup):
                return self._warmup.lr
            start = self._warmup.start
            return start + (peak - start) * step / self.warmup_steps
        after_warmup = step - self.warmup_steps
        # 0 right after the warm-up, 1 at the last step.
        progress = after_warmup / max(1, self.total_steps - 1 - self.warmup_steps)
        match schedule:
            case ConstantSchedule():
                return peak
            case MultistepSchedule(gamma=gamma):
                return peak * gamma ** sum(step >= milestone for milestone in self.milestones)
            case StepSchedule(gamma=gamma):
                return peak * gamma ** (step // self._interval_steps)
            case ExponentialSchedule(gamma=gamma):
                return peak * gamma ** (after_warmup / self._interval_steps)
            case CosineSchedule(end=end):
                return _cosine(peak, end, progress)
            case CosineRestartsSchedule(end=end, cycle_multiplier=multiplier):
                progress = _cycle_progress(after_warmup, self._interval_steps, multiplier)
                return _cosine(peak, end, progress)
            case LinearSchedule(end=end):
                return _line(peak, end, progress)
            case OneCycleSchedule():
                return _one_cycle_lr(schedule, peak, step, self.total_steps)
            case PlateauSchedule():
                known = (m for at, m in history.items() if self.warmup_steps < at <= step)
                return _plateau_lr(schedule, peak, known)

    def image_size(self, step: int, size: int) -> int:
        """Return the shorter side of the images of a step, whose own is ``size``."""
        progress = step / self.total_steps
        return next((size for end, size in self._sizes if progress < end), size)

    def resize(self, images: Tensor, step: int) -> Tensor:
        """Resize the images of a step (progressive resizing); large ones come last.

        Each new pixel is the average of what it covers.

        Shape:
            ``(B, C, H, W)`` float32 to ``(B, C, H', W')`` in the same proportions, or unchanged.
        """
        height, width = images.shape[-2:]
        size = self.image_size(step, min(height, width))
        if size == min(height, width):
            return images
        size_in_proportion = covering_size(size, height, width)
        return interpolate(images, size=size_in_proportion, mode="bilinear", antialias=True)


def _milestones(recipe: TrainSpec, steps_per_epoch: int) -> tuple[int, ...]:
    schedule = recipe.schedule
    if not isinstance(schedule, MultistepSchedule):
        return ()
    scale = steps_per_epoch if (schedule.unit or recipe.unit) == "epochs" else 1
    return tuple(max(1, round(milestone * scale)) for milestone in schedule.milestones)


def _interval_steps(recipe: TrainSpec, steps_per_epoch: int) -> int:
    """Return the length of a schedule's interval or first cycle; 1 where it has none."""
    schedule = recipe.schedule
    if isinstance(schedule, CosineRestartsSchedule):
        return schedule.first_cycle.in_steps(steps_per_epoch)
    if isinstance(schedule, StepSchedule | ExponentialSchedule):
        return schedule.every.in_steps(steps_per_epoch)
    return 1


def _size_ends(recipe: TrainSpec) -> list[tuple[float, int]]:
    """Return the sizes of progressive resizing, each with the progress at which it ends."""
    ends: list[tuple[float, int]] = []
    for part in recipe.progressive_resizing:
        ends.append(((ends[-1][0] if ends else 0.0) + part.fraction, part.size))
    return ends


def _line(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _cycle_progress(step: int, cycle: int, multiplier: int) -> float:
    """Return the fraction of the present cycle that is done; the first one has ``cycle`` steps."""
    if multiplier == 1:
        return step % cycle / cycle
    while step >= cycle:
        step -= cycle
        cycle *= multiplier
    return step / cycle


def _plateau_lr(
    schedule: PlateauSchedule, peak: float, evaluations: Iterable[Mapping[str, float]]
) -> float:
    """Return the learning rate that ``torch.optim.lr_scheduler.ReduceLROnPlateau`` comes to."""
    # Top-1 is to rise, the loss to fall.
    sign = 1 if schedule.monitor == "val.top1" else -1
    lr, best, num_bad, cooldown = peak, -math.inf, 0, 0
    for metrics in evaluations:
        value = sign * metrics.get(schedule.monitor, math.nan)  # a loss may not be finite
        if value > best * (1 + sign * schedule.threshold):
            best, num_bad = value, 0
        else:
            num_bad += 1
        if cooldown > 0:
            cooldown, num_bad = cooldown - 1, 0
        if num_bad > schedule.patience:
            lower = max(lr * schedule.factor, schedule.min_lr)
            lr = lower if lr - lower > _SMALLEST_FALL else lr
            cooldown, num_bad = schedule.cooldown, 0
    return lr


def _one_cycle_lr(cycle: OneCycleSchedule, peak: float, step: int, total_steps: int) -> float:
    """Return the learning rate that ``torch.optim.lr_scheduler.OneCycleLR`` has at a step."""
    anneal = _cosine if cycle.anneal == "cos" else _line
    first = peak / cycle.div_factor
    last = first / cycle.final_div_factor
    top = cycle.pct_start * total_steps - 1
    if step <= top:
        return anneal(first, peak, step / top if top > 0 else 1.0)
    return anneal(peak, last, (step - top) / (total_steps - 1 - top))


_MASK = 0xFFFFFFFF


def step_seed(seed: int, step: int) -> int:
    """Return the random seed of a step, 32 bits: all that torch's CPU generator uses.

    For one ``seed`` it is a bijection of the step's 32 bits: no two steps of a run share a seed.
    """
    key = hash_seed(seed, "network") & _MASK
    return _scramble(_scramble(step & _MASK) ^ key)


def _scramble(number: int) -> int:
    """Scramble 32 bits reversibly (the finalizer of MurmurHash3)."""
    number ^= number >> 16
    number = number * 0x85EBCA6B & _MASK
    number ^= number >> 13
    number = number * 0xC2B2AE35 & _MASK
    return number ^ (number >> 16)


def seed_step(seed: int, step: int, device: torch.device, *, rank: int = 0) -> None:
    """Seed the generators that dropout and stochastic depth draw from, for one step.

    Args:
        seed: Seed of the recipe.
        step: The step.
        device: Device of the network.
        rank: Index of the process; each has dropout masks of its own.
    """
    number = step_seed(seed if rank == 0 else hash_seed(seed, "process", rank), step)
    # Not torch.manual_seed: where CUDA is not initialised, it keeps every call for later.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    if device.type == "mps":
        torch.mps.manual_seed(number)


@contextmanager
def private_generators(device: torch.device) -> Iterator[None]:
    """Context after which torch's global generators are as they were before."""
    cuda = [device] if device.type == "cuda" else []
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)
