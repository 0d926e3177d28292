"""Check of all trials of a plan before the first one is trained."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_builder.builder import check_source
from resnet_builder.errors import DataError, MissingDataError, Problem, SpecError, SpecPath, counted
from resnet_builder.launch.plan import Plan, Trial, override_key
from resnet_builder.parts import describe_data
from resnet_builder.spec.compose import COMMAND_LINE, SET
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import Spec
from resnet_builder.trackers import check_packages


@dataclass(frozen=True, slots=True)
class TrialCheck:
    """Setting of a plan that was checked.

    Attributes:
        trial: Its first trial.
        spec: Resolved spec.
        parameters: Learnt parameters.
        macs: Multiply-adds for one image.
    """

    trial: Trial
    spec: Spec
    parameters: int
    macs: int

    @property
    def length(self) -> str:
        """Length of the training in words."""
        train = self.spec.train
        assert train is not None, "a spec that is trained has a recipe"
        if train.steps is not None:
            return counted(train.steps, "step")
        return "1 epoch" if train.epochs == 1 else f"{train.epochs:g} epochs"

    @property
    def cost(self) -> float | None:
        """Multiply-adds for one image, times epochs; ``None`` if the length is in steps."""
        train = self.spec.train
        assert train is not None, "a spec that is trained has a recipe"
        return None if train.epochs is None else float(self.macs * train.epochs)


def check_trials(
    plan: Plan,
    *,
    plugins: Sequence[str] = (),
    data_dir: Path | None = None,
    processes: int = 1,
    needs_data: bool = True,
) -> list[TrialCheck]:
    """Check the spec of each setting in full, as ``train`` does; seeds make no difference.

    Args:
        plan: The plan.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets.
        processes: Number of processes that divide each batch.
        needs_data: Whether data that are not there are an error.

    Returns:
        One for each setting, in the order of the plan.

    Raises:
        DataError: The data are missing or unusable; otherwise the specs are sound.
        SpecError: Everything that is wrong with the specs, at the place in the sweep file if what
            stands there is wrong; or two trials are the same; or a search has no validation images.
        StorageError: A file cannot be read.
        UsageError: A spec has no ``data`` or no ``train``, or a tracker's package is missing.
    """
    found: list[TrialCheck] = []
    problems: dict[Problem, list[str]] = {}
    data_error: DataError | None = None
    same: dict[str, str] = {}
    macs: dict[str, int] = {}
    settings = list(_one_of_each_setting(plan.trials))
    for trial in settings:
        try:
            draft = trial.draft()
            # The network runs on meta once for all settings that compute the same in it.
            computed = repr((draft.model, draft.data, _computation(draft.train)))
            checked = check_source(
                draft,
                plugins=plugins,
                with_forward=computed not in macs,
                with_weights=True,
                with_data=True,
                data_dir=data_dir,
                processes=processes,
            )
            if checked.problems:
                raise SpecError(checked.problems)
        except SpecError as error:
            for one in error.errors:
                problems.setdefault(_placed(one, plan, trial), []).append(trial.name)
            continue
        data_error = data_error or checked.data_error
        spec = checked.experiment().spec
        check_packages(spec.run.log)
        if plan.method != "grid" and not has_validation(spec, data_dir):
            message = (
                f"`{plan.method}` chooses by the accuracy on validation images, never by the test "
                "images: set some training images aside, as by `set: {data.validation: 0.1}`"
            )
            problems.setdefault(_problem(plan, ("method",), "missing-key", message), [])
        # The name is that of the file, and what is claimed of it changes no training.
        plain = dump_spec(spec.model_copy(update={"name": "x", "published": None, "expect": None}))
        if (first := same.setdefault(plain, trial.name)) != trial.name:
            message = f"'{first}' and '{trial.name}' are the same experiment: leave one of them out"
            problems.setdefault(_problem(plan, ("axes",), "exclusive", message), [])
        count = macs.setdefault(computed, checked.macs or 0)
        found.append(TrialCheck(trial, spec, checked.counts["parameters"], count))
    if problems:
        told = [_told_of(one, names, plan, len(settings)) for one, names in problems.items()]
        raise SpecError(told if plan.sweep is None else plan.sweep.positions.ordered(told))
    is_missing = isinstance(data_error, MissingDataError)
    if data_error is not None and (needs_data or not is_missing):
        raise data_error
    return found


def _one_of_each_setting(trials: Iterable[Trial]) -> Iterator[Trial]:
    seen = set()
    for trial in trials:
        key = (trial.base.name, repr(trial.settings))
        if key not in seen:
            seen.add(key)
            yield trial


def _computation(train: TrainSpec | None) -> TrainSpec | None:
    """Recipe without what only decides the numbers that a training step computes with."""
    numbers = dict.fromkeys(("optimizer", "schedule", "epochs", "steps", "seed"))
    return None if train is None else train.model_copy(update=numbers)


def has_validation(spec: Spec, data_dir: Path | None) -> bool:
    """Whether a resolved spec has validation images: set aside, or the dataset's own."""
    if spec.data is None or spec.data.validation:
        return spec.data is not None
    _, info, _ = describe_data(spec.data, spec.model, data_dir, with_data=True)
    return info is not None and bool(info.own_validation)


def _problem(plan: Plan, path: SpecPath, code: str, message: str) -> Problem:
    assert plan.sweep is not None, "seeds differ"
    return plan.sweep.positions.problem(code, path, message)


def _placed(problem: Problem, plan: Plan, trial: Trial) -> Problem:
    """Problem of an override, at the place in the sweep file where its value stands."""
    if plan.sweep is None or problem.line is not None or problem.snippet is None:
        return problem
    if not problem.file.startswith(COMMAND_LINE):
        return problem
    path = _path(problem.snippet, plan, trial)
    if path is None:
        return problem
    key_length = len(override_key(problem.snippet))
    is_of_key = problem.file == SET and (problem.col or 1) <= key_length
    place = plan.sweep.positions.place(
        path[:2] if is_of_key else path, at="key" if is_of_key else "value"
    )
    return replace(
        problem,
        file=place.source.name,
        line=place.line,
        col=place.column,
        snippet=place.source.lines[(place.line or 1) - 1],
    )


def _path(override: str, plan: Plan, trial: Trial) -> SpecPath | None:
    """Place in the sweep file of the value that made an override; ``None`` if none did."""
    assert plan.sweep is not None, "the caller looked"
    for axis in plan.sweep.axes:
        value = trial.settings.get(axis.name)
        if axis.name in trial.settings and axis.override(value) == override:
            if axis.range is not None:
                return ("axes", axis.name, "low" if value == axis.range.low else "high")
            return ("axes", axis.name, axis.values.index(value))
    for key, given in zip(plan.sweep.file.set, plan.sweep.overrides, strict=True):
        if given == override:
            return ("set", key)
    return None


def _told_of(problem: Problem, trials: Sequence[str], plan: Plan, settings: int) -> Problem:
    """Name the trials that have a problem, if it stands in a spec that others have, too."""
    is_in_sweep = plan.sweep is not None and problem.file == str(plan.sweep.path)
    if is_in_sweep or len(trials) in {0, settings}:
        return problem
    more = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
    return replace(problem, message=f"{problem.message} (in {trials[0]}{more})")
