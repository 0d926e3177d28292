"""Everything that changes while training, and how it goes into a checkpoint and comes back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_builder.errors import CheckpointError, DataError, UsageError
from resnet_builder.model import state_dict_mismatch
from resnet_builder.runs.checkpoint import Checkpoint
from resnet_builder.runs.records import first_problem
from resnet_builder.training.ema import Ema
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.optim import optimizer_state, restore_optimizer


@dataclass
class Counters:
    """The plain numbers of a training.

    Attributes:
        step: Optimizer steps done.
        evaluated: Steps after which the weights were last evaluated.
        loss: Sum of the steps' training losses since then.
        hits: Training images answered right since then.
        validation: Metrics of the last evaluation, by names like ``val.top1``.
        best_step: Steps after which the weights did best on validation; 0 until some did.
        best: Metrics of those weights.
        reference: The last top-1 that was a rise to ``early_stop``; -1 before the first.
        stale: Evaluations since then.
        seconds: Spent, over all processes.
    """

    step: int = 0
    evaluated: int = 0
    loss: float = 0.0
    hits: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    reference: float = -1.0
    stale: int = 0
    seconds: float = 0.0


class State:
    """What a checkpoint has to hold so that a training goes on to the same bits.

    Nothing else has a memory: the rate, the batch and the network's randomness are functions of
    the step.

    Args:
        model: The network, on its device and in its memory format.
        optimizer: What changes its weights.
        ema: The average of its weights, if one is kept.
        fingerprint: Of the data that it learns from.
        validation_indices: Which of the training images were set aside.

    Attributes:
        counters: The plain numbers.
        best_weights: The state dict that did best on validation, on the CPU; empty until one did.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        ema: Ema | None,
        *,
        fingerprint: str,
        validation_indices: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self._data: dict[str, Any] = {
            "fingerprint": fingerprint,
            "validation": list(validation_indices),
        }
        self.counters = Counters()
        self.best_weights: dict[str, Tensor] = {}

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is evaluated and delivered: the average, if one is kept."""
        return self.model if self.ema is None else self.ema.model

    def note(self, evaluation: Evaluation, min_delta: float) -> bool:
        """Take in how the present weights did on validation.

        Args:
            evaluation: How they did.
            min_delta: The smallest rise that ``early_stop`` counts.

        Returns:
            Whether they are now the best. The highest top-1 is, the earlier of equals, and none
            whose loss is not finite.
        """
        counters = self.counters
        counters.validation = evaluation.metrics("val")
        top1 = evaluation.top1 if math.isfinite(evaluation.loss) else -1.0
        is_best = top1 > counters.best.get("val.top1", -1.0)
        if is_best:
            counters.best_step, counters.best = counters.step, counters.validation
            self.best_weights = host_copy(self.evaluated_model)
        rise = top1 - counters.reference
        counters.stale = 0 if rise > 0 and rise >= min_delta else counters.stale + 1
        if counters.stale == 0:
            counters.reference = top1
        return is_best

    def checkpoint(self, metrics_bytes: int) -> Checkpoint:
        """Describe the present state; the tensors are the state's own.

        Args:
            metrics_bytes: Size of ``metrics.jsonl``, to go back to.
        """
        tensors = {
            **_under("model", self.model.state_dict()),
            **_under("optim", optimizer_state(self.optimizer, self.model)),
            **_under("best", self.best_weights),
        }
        if self.ema is not None:
            tensors |= _under("ema", self.ema.model.state_dict())
        state = {
            "counters": asdict(self.counters),
            "optimizer": type(self.optimizer).__name__,
            "data": self._data,
            "metrics_bytes": metrics_bytes,
        }
        return Checkpoint(self.counters.step, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> int:
        """Take over a checkpoint's state.

        Where the recipe was changed in between, an average that was not kept before starts from
        the weights, and another optimizer from nothing.

        Returns:
            The size of ``metrics.jsonl`` to go back to.

        Raises:
            CheckpointError: What it says besides its tensors is not what training writes.
            DataError: It is of other images.
            UsageError: It is of another network.
        """
        saved = _Saved.of(checkpoint)
        self._refuse_other_data(saved.data)
        weights = _below("model", checkpoint.tensors)
        load_weights(self.model, weights)
        if self.ema is not None:
            load_weights(self.ema.model, _below("ema", checkpoint.tensors) or weights)
        if saved.optimizer == type(self.optimizer).__name__:
            restore_optimizer(self.optimizer, self.model, _below("optim", checkpoint.tensors))
        self.best_weights = _below("best", checkpoint.tensors)
        self.counters = saved.counters
        return saved.metrics_bytes

    def _refuse_other_data(self, saved: "_SavedData") -> None:
        names = {"fingerprint": "the data set is", "validation": "the validation images are"}
        for name, what in names.items():
            before = getattr(saved, name)
            if before != self._data[name]:
                raise DataError(
                    f"{what} not the run's: {_short(before)} when it began, "
                    f"{_short(self._data[name])} now; go back to the data as it was, "
                    "or begin a new run"
                )


class _SavedData(BaseModel):
    """Of which images a checkpoint is."""

    fingerprint: str
    validation: list[int]


class _Saved(BaseModel):
    """What a checkpoint holds besides tensors."""

    counters: Counters
    optimizer: str
    data: _SavedData
    metrics_bytes: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Read it, as it may be another program's, or from before a key was added.

        Raises:
            CheckpointError: It is not what training writes.
        """
        where = f"the checkpoint of step {checkpoint.step} is damaged"
        try:
            saved = cls.model_validate(checkpoint.state)
        except ValidationError as error:
            raise CheckpointError(f"{where}: {first_problem(error)}") from error
        if saved.counters.step != checkpoint.step:
            raise CheckpointError(f"{where}: its counters are of step {saved.counters.step}")
        return saved


def host_copy(model: nn.Module) -> dict[str, Tensor]:
    """Copy a network's state dict to the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()
    }


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a network, whose tensors keep their device and memory format.

    Raises:
        UsageError: Names or shapes differ.
    """
    own = model.state_dict()
    if (difference := state_dict_mismatch(own, weights)) is not None:
        raise UsageError(f"the checkpoint is of another network: {difference}")
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def _short(value: str | list[int]) -> str:
    return value if isinstance(value, str) else f"{len(value)} images from {value[:3]}"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
