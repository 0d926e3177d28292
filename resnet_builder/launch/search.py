"""Search by Optuna's samplers: which trial comes next, and which is pruned."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from resnet_builder.errors import NonFiniteError, SpecError, UsageError, the_extra
from resnet_builder.launch.group import Group
from resnet_builder.launch.plan import Plan, Trial
from resnet_builder.launch.sweep_file import Axis
from resnet_builder.launch.workers import Queue
from resnet_builder.runs.files import Warn, storage_errors, truncate
from resnet_builder.runs.status import RunStatus
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.yaml_source import parse_plain

JOURNAL = "optuna.journal"
"""File of the study in the directory of a sweep, for Optuna's ``JournalStorage``."""


def import_optuna() -> Any:
    """Import Optuna.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"`method: random` and `tpe` need {the_extra('sweep')}; a grid needs none"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Search(Queue):
    """Trials of a search, chosen one after another by what the finished ones came to.

    The study is in the journal, so that a search that was killed goes on with the trials that had
    begun. A sampler is seeded anew for each trial, by the number of those before it: a search that
    is continued chooses what one without a break chooses, and no setting twice by a seed that
    starts again.

    Args:
        plan: Plan of the sweep.
        group: Its group, which is held.
        warn: Told of settings that were chosen again.
    """

    def __init__(self, plan: Plan, group: Group, warn: Warn) -> None:
        super().__init__(())
        assert plan.sweep is not None, "only a sweep is searched"
        self._plan, self._group, self._warn = plan, group, warn
        self._file = plan.sweep.file
        self._optuna = import_optuna()
        self._axes = {axis.name: axis for axis in plan.sweep.axes}
        self._study = self._open(group.path / JOURNAL)
        self._numbers: dict[str, int] = {}
        states = self._optuna.trial.TrialState
        self._begun = self._study.get_trials(states=(states.RUNNING,))
        for one in self._study.get_trials(states=(states.PRUNED,)):
            group.mark(self._trial(one), "pruned")  # if this process was killed before it could

    def next(self) -> Trial | None:
        """Return a trial that had begun, or let the sampler choose one."""
        while self._begun:
            found = self._begun.pop(0)
            if found.params.keys() == self._axes.keys():
                return self._trial(found)
            self._tell(found.number, self._optuna.trial.TrialState.FAIL)  # killed while chosen
        while (count := self._count()) < (self._file.trials or 0):
            self._study.sampler = self._sampler(count)
            with storage_errors("write", self._group.path / JOURNAL):
                asked = self._study.ask(_distributions(self._optuna, self._axes))
            found = self._study.trials[asked.number]
            if not self._is_known(found):
                try:
                    return self._trial(found)
                except SpecError as error:
                    self._tell(found.number, self._optuna.trial.TrialState.FAIL)
                    self._warn(f"trial {found.number}: {str(error).partition(chr(10))[0]}")
        return None

    def prunes(self, trial: Trial, accuracies: Sequence[float]) -> bool:
        """Report the accuracies, and ask the pruner."""
        optuna, number = self._optuna, self._numbers[trial.name]
        if self._file.pruning == "none":
            return False
        found = self._study.trials[number]
        live = optuna.trial.Trial(self._study, found._trial_id)
        for step, accuracy in enumerate(accuracies, start=1):
            if step in found.intermediate_values:
                continue
            with storage_errors("write", self._group.path / JOURNAL):
                live.report(accuracy, step)
            if live.should_prune():
                self._tell(number, optuna.trial.TrialState.PRUNED)
                return True
        return False

    def finished(self, trial: Trial, status: RunStatus) -> None:
        """Tell the study the accuracy on the validation images."""
        result = status.result
        assert result is not None, "the run is finished"
        accuracy = result.val_top1 if result.val_map is None else result.val_map
        if accuracy is None or not math.isfinite(accuracy):
            self._tell(self._numbers[trial.name], self._optuna.trial.TrialState.FAIL)
        else:
            self._tell(self._numbers[trial.name], value=accuracy)

    def failed(self, trial: Trial, exit_code: int) -> bool:
        """Tell the study of a training that diverged; any other failure is tried again."""
        has_diverged = exit_code == NonFiniteError.exit_code
        if has_diverged:  # a range may well reach so far: the search goes on
            self._tell(self._numbers[trial.name], self._optuna.trial.TrialState.FAIL)
        return not has_diverged

    def _open(self, journal: Path) -> Any:
        optuna = self._optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        # The group is held, so a lock here, or half a line, is of a process that was killed.
        for left in journal.parent.glob(f"{journal.name}.lock*"):
            with storage_errors("remove", left):
                left.unlink()
        if journal.is_file():
            data = journal.read_bytes()
            if (whole := data.rfind(b"\n") + 1) < len(data):
                truncate(journal, whole)
        pruners = {
            "none": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        }
        with storage_errors("write", journal):
            backend = JournalFileBackend(str(journal), JournalFileOpenLock(str(journal)))
            return optuna.create_study(
                storage=JournalStorage(backend),
                study_name=self._plan.name,
                pruner=pruners[self._file.pruning](),
                direction="maximize",
                load_if_exists=True,
            )

    def _sampler(self, count: int) -> Any:
        samplers = self._optuna.samplers
        seed = crc32(f"{self._file.sampler_seed} {count}".encode())
        if self._file.method == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed)

    def _count(self) -> int:
        """Number of trials that were chosen; one that was killed while it was is none."""
        return sum(one.params.keys() == self._axes.keys() for one in self._study.trials)

    def _is_known(self, found: Any) -> bool:
        """Whether a setting was chosen before; then its value is told again, without a training."""
        for other in self._study.trials:
            if other.number < found.number and other.params == found.params:
                value = other.value if other.state.name == "COMPLETE" else None
                state = None if value is not None else self._optuna.trial.TrialState.FAIL
                self._tell(found.number, state, value)
                self._warn(f"trial {found.number} has the setting of trial {other.number} again")
                return True
        return False

    def _tell(self, number: int, state: Any = None, value: float | None = None) -> None:
        with storage_errors("write", self._group.path / JOURNAL):
            self._study.tell(number, value, state=state)

    def _trial(self, found: Any) -> Trial:
        settings = {name: _value(axis, found.params[name]) for name, axis in self._axes.items()}
        trial = self._plan.trial(settings, found.number)
        self._numbers[trial.name] = found.number
        self._group.add(trial)
        return trial


def _distributions(optuna: Any, axes: dict[str, Axis]) -> dict[str, Any]:
    """Distributions of the axes. Values of lists are told as YAML: Optuna knows no mappings."""
    found: dict[str, Any] = {}
    for name, axis in axes.items():
        limits = axis.range
        if limits is None:
            choices = [dump_value(value) for value in axis.values]
            found[name] = optuna.distributions.CategoricalDistribution(choices)
        elif limits.is_whole:
            found[name] = optuna.distributions.IntDistribution(
                *(int(limits.low), int(limits.high), limits.log, int(limits.step or 1))
            )
        else:
            found[name] = optuna.distributions.FloatDistribution(
                *(limits.low, limits.high, limits.log, limits.step)
            )
    return found


def _value(axis: Axis, found: Any) -> Any:
    return found if axis.range is not None else parse_plain(found)
