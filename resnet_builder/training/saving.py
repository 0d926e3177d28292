"""When a training is saved, and what happens when it cannot be."""

from functools import partial
from time import monotonic

from resnet_builder.errors import NonFiniteError, StorageError
from resnet_builder.runs.checkpoint import checkpoint_path, load_newest, save_checkpoint
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.training.callbacks import Observer
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.plan import Plan
from resnet_builder.training.state import State


class CheckpointManager:
    """Saves a training's state, by steps or by a clock that is never set.

    Args:
        run: Where to.
        state: What.
        plan: When.
        keep: How many checkpoints to keep.
        observer: Told of what is saved, and of what cannot be.
        ctx: The processes that hold this state; its leader alone reads and writes, and the
            others wait for it.
    """

    def __init__(
        self,
        run: RunDirectory,
        state: State,
        plan: Plan,
        keep: int,
        observer: Observer,
        ctx: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._run = run
        self._state = state
        self._plan = plan
        self._keep = keep
        self._observer = observer
        self._team = ctx
        self._tried = self._safe = monotonic()
        self._saved: tuple[int, int] | None = None

    def resume(self) -> None:
        """Go back to the newest checkpoint that holds, or to the beginning if there is none.

        Raises:
            CheckpointError: There are checkpoints, but none that can be used.
            DataError: It is of other images.
            StorageError: One cannot be read, or ``metrics.jsonl`` cannot be shortened.
            UsageError: It is of another network or a newer release.
        """
        warn = self._observer.warned
        checkpoint = self._team.run_on_main(partial(load_newest, self._run, warn=warn))
        size = 0
        if checkpoint is not None:
            size = self._state.restore(checkpoint)
            self._saved = self._moment
        if self._team.is_main_process:
            MetricsLog(self._run).rewind(size, warn=warn)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint between the last step and the next."""
        step = self._state.counters.step
        if step == 0 or self._moment == self._saved:
            return False
        if self._plan.checkpoint_seconds is not None:
            return monotonic() - self._tried >= self._plan.checkpoint_seconds
        assert self._plan.checkpoint_steps is not None, "one of the two is given"
        return step % self._plan.checkpoint_steps == 0

    def save(self) -> None:
        """Save, unless this very state is saved; every process calls this after the same step.

        Raises:
            NonFiniteError: The state holds a value that is not finite.
            StorageError: The disk is full, read-only or failing.
        """
        if self._moment == self._saved:
            return
        step = self._state.counters.step
        self._tried = monotonic()
        error = self._team.run_on_main(self._write)
        if error is not None:
            raise error
        self._saved, self._safe = self._moment, self._tried
        self._observer.saved(step, checkpoint_path(self._run, step))

    def _write(self) -> NonFiniteError | StorageError | None:
        """Write a checkpoint; return what went wrong, so that all processes take it alike."""
        try:
            checkpoint = self._state.checkpoint(MetricsLog(self._run).sync())
            save_checkpoint(self._run, checkpoint, self._keep, warn=self._observer.warned)
        except NonFiniteError as error:
            return NonFiniteError(f"{error}; the newest checkpoint is {self.newest}")
        except StorageError as error:
            return error
        return None

    def save_if_possible(self) -> None:
        """Save; training goes on if it fails, and the checkpoints before are left as they are.

        Raises:
            NonFiniteError: The state holds a value that is not finite.
        """
        try:
            self.save()
        except StorageError as error:
            self._observer.warned(
                f"not saved at step {self._state.counters.step}, and not since {self._since}: "
                f"{error}; the newest checkpoint is {self.newest}"
            )

    @property
    def newest(self) -> str:
        """The newest checkpoint, for messages."""
        return "none" if self._saved is None else str(checkpoint_path(self._run, self._saved[0]))

    @property
    def _since(self) -> str:
        """From when on everything would be lost, for messages."""
        ago = f"{monotonic() - self._safe:.0f} s ago"
        return f"the beginning, {ago}" if self._saved is None else f"step {self._saved[0]}, {ago}"

    @property
    def _moment(self) -> tuple[int, int]:
        """The present state's place in the run: a step, and whether it has been evaluated."""
        return self._state.counters.step, self._state.counters.evaluated
