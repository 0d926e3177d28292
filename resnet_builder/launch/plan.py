"""Plan of a group of runs: its trials, their names, and the specs that they are trained with."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from resnet_builder.data.datasets import image_sizes
from resnet_builder.errors import SpecError, UsageError
from resnet_builder.launch.sweep_file import FAMILY_AXES, MAX_RUNS, SPEC, WITH, Sweep
from resnet_builder.runs.group import SPECS, GroupKind, GroupRun, Method, SettingSummary
from resnet_builder.spec.compose import SpecSource, named_file
from resnet_builder.spec.diagnostics import quoted
from resnet_builder.spec.dump import dump_value, dump_values
from resnet_builder.spec.families import Wish, new_spec
from resnet_builder.spec.load import Draft, read_draft
from resnet_builder.spec.yaml_source import Node, parse_plain

_LONGEST_NAME = 120
_LONGEST_VALUE = 40


@dataclass(frozen=True)
class Base:
    """Spec that several trials share, before their settings are laid over it.

    Attributes:
        name: Name of its copy below ``specs/``.
        source: The spec.
        fragments: Fragments that are laid over it.
        overrides: Overrides that are part of it.
        data: Images to use instead of its dataset, as ``--data``.
    """

    name: str
    source: SpecSource
    fragments: tuple[str | Path, ...] = ()
    overrides: tuple[str, ...] = ()
    data: Path | None = None

    def draft(self, overrides: Sequence[str] = ()) -> Draft:
        """Read the spec with further overrides.

        Raises:
            SpecError: There is nothing to check.
            StorageError: A file cannot be read.
        """
        return read_draft(
            self.source,
            overrides=(*self.overrides, *overrides),
            fragments=self.fragments,
            data=self.data,
        )

    @cached_property
    def text(self) -> str:
        """Composed spec, of which a copy gives the same drafts wherever it is stored.

        Raises:
            SpecError: Everything that is wrong with the spec by itself.
            StorageError: A file cannot be read.
        """
        draft = self.draft()
        plugins = [
            os.path.realpath(draft.positions.base_dir(("plugins", number)) / plugin)
            if plugin.endswith(".py") or "/" in plugin or os.sep in plugin
            else plugin
            for number, plugin in enumerate(draft.plugins or ())
        ]
        return dump_values({**draft.values, **({"plugins": plugins} if plugins else {})})

    def file(self, group: Path) -> Path:
        """File of the copy in the directory of the group."""
        return group / SPECS / f"{self.name}.yaml"


@dataclass(frozen=True, slots=True)
class Trial:
    """A run that is to be: a spec, the settings laid over it, and a seed.

    Attributes:
        name: Name of its run directory.
        base: The spec.
        settings: Values of the axes, as plain data.
        seed: Seed.
        overrides: Overrides of the settings, and of the seed if it is not the spec's own.
    """

    name: str
    base: Base
    settings: Mapping[str, Any]
    seed: int
    overrides: tuple[str, ...]

    def draft(self) -> Draft:
        """Read the spec of the run."""
        return self.base.draft(self.overrides)

    def arguments(self, group: Path) -> list[str]:
        """Arguments of ``resnet-build train`` that train the spec of the run."""
        return [str(self.base.file(group)), *override_arguments(self.overrides)]

    def planned(self) -> GroupRun:
        """Entry in the record of the group."""
        return GroupRun(
            name=self.name, spec=self.base.name, settings=dict(self.settings), seed=self.seed
        )


@dataclass(frozen=True)
class Plan:
    """Plan of a group of runs.

    Attributes:
        kind: Seeds of one spec, or a sweep.
        name: Name of the spec, or of the sweep.
        method: How settings are chosen.
        trials: Trials in the order in which they begin; of a search, those at the ends of its
            axes, which are only checked.
        overrides: What is laid over every spec by the trials.
        sweep: Sweep file, of a sweep.
    """

    kind: GroupKind
    name: str
    method: Method
    trials: tuple[Trial, ...]
    overrides: tuple[str, ...] = ()
    sweep: Sweep | None = None
    seeds: tuple[int, ...] | None = None
    bases: "_Bases | None" = field(default=None, repr=False)

    @property
    def num_runs(self) -> int:
        """Number of runs; of a search, that of its trials."""
        searched = self.sweep is not None and self.method != "grid"
        return (self.sweep.file.trials or 0) if self.sweep and searched else len(self.trials)

    def trial(self, settings: Mapping[str, Any], number: int) -> Trial:
        """Trial of a search."""
        assert self.bases is not None, "only a sweep has axes"
        assert self.sweep is not None, "only a sweep has axes"
        return _trial(self.sweep, self.bases, settings, self.seeds, self.overrides, number=number)[
            0
        ]

    def best_arguments(self, group: Path, best: SettingSummary) -> list[str]:
        """Arguments of ``resnet-build train`` for a setting, without a seed."""
        assert self.sweep is not None, "only a sweep has settings"
        laid = _laid_overrides(self.sweep, best.settings)
        file = group / SPECS / f"{best.spec}.yaml"
        return [str(file), *override_arguments((*self.overrides, *laid))]


def override_arguments(overrides: Sequence[str]) -> list[str]:
    """Arguments of the command line for overrides: ``--set key=value``, or a flag."""
    words: list[str] = []
    for one in overrides:
        flag, _, value = one.partition(" ")
        words += [flag, value] if one.startswith("--") else ["--set", one]
    return words


def override_key(override: str) -> str:
    """Key of an override, or its flag."""
    return override.partition(" ")[0] if override.startswith("--") else override.partition("=")[0]


def plan_seeds(
    source: str | Path,
    seeds: Sequence[int],
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    data: Path | None = None,
) -> Plan:
    """Plan the runs of one spec with several seeds.

    Raises:
        SpecError: The spec cannot be read.
        StorageError: A file cannot be read.
        UsageError: Seeds are given in another way, too.
    """
    if any(one.startswith(("--seed ", "train.seed=")) for one in overrides):
        raise UsageError("--seeds and another seed are given: leave the other one out")
    base = Base("spec", source, tuple(fragments), tuple(overrides), data)
    draft = base.draft()
    if draft.name is None:
        raise SpecError(draft.problems)
    base = Base(draft.name, source, tuple(fragments), tuple(overrides), data)
    trials = tuple(Trial(f"seed={seed}", base, {}, seed, (f"--seed {seed}",)) for seed in seeds)
    return Plan("seeds", draft.name, "grid", trials)


def plan_sweep(
    sweep: Sweep,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    data: Path | None = None,
) -> Plan:
    """Plan the trials of a sweep.

    Args:
        sweep: The sweep file.
        overrides: Further overrides of every spec, as ``--set`` and flags.
        fragments: Further fragments of every spec, as ``--with``.
        data: Images to use instead of each spec's dataset, as ``--data``.

    Raises:
        SpecError: A spec cannot be read.
        StorageError: A file cannot be read.
    """
    bases = _Bases(sweep, tuple(fragments), data)
    common = (*sweep.overrides, *overrides)
    seeds = sweep.file.seeds
    settings = list(_grid(sweep) if sweep.file.method == "grid" else _ends(sweep))
    if len(settings) * len(seeds or (0,)) > MAX_RUNS:
        raise UsageError(f"{sweep.path} has more than {MAX_RUNS:,} runs")
    problems, by_setting = [], []
    for one in settings:
        try:
            by_setting.append(_trial(sweep, bases, one, seeds, common))
        except SpecError as error:
            problems += [found for found in error.errors if found not in problems]
    if problems:
        raise SpecError(problems)
    # The first seed of all settings comes first, so that they can be compared early.
    trials = tuple(
        trial for with_one_seed in zip(*by_setting, strict=True) for trial in with_one_seed
    )
    return Plan(
        "sweep",
        sweep.name,
        sweep.file.method,
        _with_unique_names(trials),
        common,
        sweep,
        seeds,
        bases,
    )


def _grid(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Settings of a grid: the last axis varies fastest."""
    names = [axis.name for axis in sweep.axes]
    for values in product(*(axis.values for axis in sweep.axes)):
        yield dict(zip(names, values, strict=True))


def _ends(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Settings in which each axis takes each of its values, or the ends of its range, once."""
    choices = {
        axis.name: axis.values if axis.range is None else (axis.range.low, axis.range.high)
        for axis in sweep.axes
    }
    first = {name: values[0] for name, values in choices.items()}
    yield first
    for name, values in choices.items():
        for value in values[1:]:
            yield {**first, name: value}


def _trial(
    sweep: Sweep,
    bases: "_Bases",
    settings: Mapping[str, Any],
    seeds: Sequence[int] | None,
    common: Sequence[str],
    *,
    number: int | None = None,
) -> list[Trial]:
    """Trials of a setting, one for each seed."""
    base = bases.base(settings)
    laid = _laid_overrides(sweep, settings)
    trials = []
    if seeds is None:
        draft = base.draft((*common, *laid))
        own = 0 if draft.train is None else draft.train.seed
        given: list[tuple[int, tuple[str, ...]]] = [(own, ())]
    else:
        given = [(seed, (f"--seed {seed}",)) for seed in seeds]
    names = short_names(tuple(axis.name for axis in sweep.axes))
    for seed, flag in given:
        parts = [] if number is None else [f"trial={number}"]
        # Sorted, so that another order of the axes names the same runs.
        parts += [f"{names[key]}={value_name(settings[key])}" for key in sorted(settings)]
        parts.append(f"seed={seed}")
        name = _cut(",".join(parts), _LONGEST_NAME)
        trials.append(Trial(name, base, settings, seed, (*common, *laid, *flag)))
    return trials


def _laid_overrides(sweep: Sweep, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides of the axes that are keys of the spec; the others choose the spec."""
    keys = (SPEC, WITH, *(FAMILY_AXES if sweep.file.family is not None else ()))
    return tuple(axis.override(settings[axis.name]) for axis in sweep.axes if axis.name not in keys)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shortest ends of keys that are all different: ``lr`` for ``train.optimizer.lr``."""
    found = {}
    for key in keys:
        steps = key.split(".")
        ends = [".".join(steps[-length:]) for length in range(1, len(steps) + 1)]
        others = [other for other in keys if other != key]
        found[key] = next(
            (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)),
            key,
        )
    return found


def value_name(value: Any) -> str:
    """Value as a part of a file's name, on every system."""
    if isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, str):
        text = Path(value).stem if value.endswith((".yaml", ".yml")) else value
    elif isinstance(value, dict) and "type" in value:
        rest = {key: one for key, one in value.items() if key != "type"}
        text = f"{value['type']} {dump_value(rest)}"
    else:
        text = dump_value(value)
    plain = re.sub(r"[^A-Za-z0-9._+-]+", " ", text).strip(" .").replace(" ", "-")
    return _cut(plain or "-", _LONGEST_VALUE)


def _cut(text: str, longest: int) -> str:
    """Cut a long name; a digest tells it from others with the same beginning."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9]}-{_digest(text)}"


def _with_unique_names(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Add digests to names that a file system could take for the same."""
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.name.casefold()] = counts.get(trial.name.casefold(), 0) + 1
    return tuple(
        trial
        if counts[trial.name.casefold()] == 1
        else replace(trial, name=f"{trial.name},{_digest(repr(trial.settings))}")
        for trial in trials
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class _Bases:
    """Base specs of a sweep, each of which is made once.

    Args:
        sweep: The sweep file.
        fragments: Fragments of the command line, which are laid over all of them.
        data: Images of the command line.
    """

    def __init__(self, sweep: Sweep, fragments: tuple[str | Path, ...], data: Path | None) -> None:
        self._sweep, self._fragments, self._data = sweep, fragments, data
        self._found: dict[str, Base] = {}

    def base(self, settings: Mapping[str, Any]) -> Base:
        """Base spec of a setting.

        Raises:
            SpecError: There is no such spec, recipe or network.
        """
        file, sweep = self._sweep.file, self._sweep
        named = [self._located(one, (WITH, index)) for index, one in enumerate(file.with_)]
        more = settings.get(WITH)
        for one in more if isinstance(more, list) else [] if more is None else [more]:
            index = next(axis for axis in sweep.axes if axis.name == WITH).values.index(more)
            named.append(self._located(one, ("axes", WITH, index)))
        fragments = (*named, *self._fragments)
        if file.family is not None:
            options = file.family.model_dump(exclude_none=True)
            family = options.pop("name")
            options |= {key: settings[key] for key in FAMILY_AXES if key in settings}
            key = repr((family, options, fragments))
            if key not in self._found:
                self._found[key] = self._of_family(family, options, fragments)
            return self._found[key]
        spec = settings.get(SPEC, file.spec)
        key = repr((spec, fragments))
        if key not in self._found:
            path: tuple[str | int, ...] = (SPEC,)
            if SPEC in settings:
                values = next(axis for axis in sweep.axes if axis.name == SPEC).values
                path = ("axes", SPEC, values.index(spec))
            source = self._located(spec, path)
            self._found[key] = self._new(source.stem, source, fragments)
        return self._found[key]

    def _located(self, name: Any, path: tuple[str | int, ...]) -> Path:
        positions = self._sweep.positions
        if not isinstance(name, str):
            message = "must be the name of a bundled file, or a path"
            raise SpecError([positions.problem("wrong-type", path, message)])
        file = named_file(Node(name, positions.place(path)), path)
        if not file.is_file() and not (file / "spec.yaml").is_file():
            message = f"{file}: there is no such file"
            raise SpecError([positions.problem("unknown-name", path, message)])
        return file if file.is_file() else file / "spec.yaml"

    def _of_family(
        self, family: str, options: dict[str, Any], fragments: tuple[str | Path, ...]
    ) -> Base:
        path: tuple[str | int, ...] = ("family",)
        try:
            if "depth" not in options:
                raise UsageError("give a depth: as an axis, or {name: ..., depth: ...}")
            wish = Wish(family, **options)
            text = new_spec(wish, **image_sizes(wish.dataset))
        except UsageError as error:
            for axis in self._sweep.axes:
                if axis.name == "depth":
                    path = ("axes", "depth", axis.values.index(options["depth"]))
            raise SpecError(
                [self._sweep.positions.problem("out-of-range", path, str(error))]
            ) from error
        except TypeError as error:  # an option of a family is no whole number
            message = f"{quoted(str(options))} are no options of a family"
            raise SpecError(
                [self._sweep.positions.problem("wrong-type", ("axes",), message)]
            ) from error
        return self._new(wish.name, parse_plain(text, wish.name), fragments)

    def _new(self, name: str, source: SpecSource, fragments: tuple[str | Path, ...]) -> Base:
        stems = [Path(one).stem for one in fragments]
        name = re.sub(r"[^A-Za-z0-9._+-]+", "-", "+".join([name, *stems]))
        taken = {base.name.casefold() for base in self._found.values()}
        if name.casefold() in taken:
            name += f"-{_digest(repr((source, fragments)))}"
        return Base(name, source, fragments, data=self._data)
