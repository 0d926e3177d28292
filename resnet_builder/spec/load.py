"""Loading of a spec: text to nodes, composition, validation; none of it needs torch."""

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from resnet_builder.errors import Problem, SpecError, SpecPath, dotted
from resnet_builder.spec.compose import SpecSource, absolute_path, compose, read_document
from resnet_builder.spec.diagnostics import Positions, file_name_problem, problems_from
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import (
    DataSpec,
    ExpectSpec,
    ModelSpec,
    PublishedSpec,
    RunSpec,
    Spec,
    SpecFile,
    is_file_name,
    parts_in,
)
from resnet_builder.spec.section import Name, Part, is_name
from resnet_builder.spec.yaml_source import Document, parse_yaml, plain, source_of

UNNAMED = "unnamed"
"""Name of a mapping that has none."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec after the first half of checking: its form, closed sets and ranges.

    Attributes:
        name: Name of the spec, or of its file; ``None``, like every section below, if it is absent
            or has problems.
        plugins: Plugins that the spec asks for; none has been imported.
        model: The network.
        data: The dataset.
        train: The recipe.
        run: How to compute.
        expect: Expected counts of the network.
        published: Published result.
        spec: The whole spec, if it has no problems.
        values: Composed values as written: paths absolute, and no defaults.
        parts: Parts that the sections with problems name, and their paths.
        positions: Positions of the values.
        problems: All problems, in file order.
        notices: Notices for the user, one line each.
    """

    name: str | None
    plugins: tuple[str, ...] | None
    model: ModelSpec | None
    data: DataSpec | None
    train: TrainSpec | None
    run: RunSpec | None
    expect: ExpectSpec | None
    published: PublishedSpec | None
    spec: Spec | None
    values: dict[str, Any]
    parts: tuple[tuple[SpecPath, Part], ...]
    positions: Positions
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]

    @property
    def asks_data(self) -> bool:
        """Whether the dataset decides some values, which it may know only from its files."""
        asks_classes = self.model is not None and self.model.num_classes == "auto"
        return asks_classes or (self.data is not None and self.data.validation == "auto")

    def is_wrong(self, section: str) -> bool:
        """Tell whether a section is there, but has problems."""
        return any(_section(problem) == section for problem in self.problems)


def load_spec(
    source: SpecSource,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
) -> Spec:
    """Load a spec and check its form, closed sets and ranges; parts are not looked up.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        overrides: ``path.to.key=value``, as ``--set``; or a flag, as ``--epochs 10``.
        fragments: Fragments to lay over the spec, as ``--with``.

    Raises:
        SpecError: The spec has problems; it lists all of them.
        StorageError: A file cannot be read.
    """
    return _whole(read_draft(source, overrides=overrides, fragments=fragments))


def load_spec_text(text: str, *, name: str = "<text>") -> Spec:
    """Load a spec from text, as :func:`dump_spec` writes it.

    Args:
        text: The spec; a relative path in it counts from the working directory.
        name: Name of the text in messages.

    Raises:
        SpecError: The spec has problems; it lists all of them.
        StorageError: A file that it extends cannot be read.
    """
    return _whole(_draft(parse_yaml(source_of(text, name)), (), ()))


def read_draft(
    source: SpecSource,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    data: str | Path | None = None,
) -> Draft:
    """Read a spec, compose it and check each section by itself.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        overrides: ``path.to.key=value``, as ``--set``; or a flag, as ``--epochs 10``.
        fragments: Fragments to lay over the spec, as ``--with``.
        data: Images to use instead of the spec's dataset, as ``--data``.

    Raises:
        SpecError: There is nothing to check: no file, no YAML, no mapping.
        StorageError: A file cannot be read.
    """
    return _draft(read_document(source), overrides, fragments, data)


def _whole(draft: Draft) -> Spec:
    if draft.spec is None:
        raise SpecError(draft.problems)
    return draft.spec


def _draft(
    document: Document,
    overrides: Sequence[str],
    fragments: Sequence[str | Path],
    data: str | Path | None = None,
) -> Draft:
    composition = compose(document, overrides=overrides, fragments=fragments, data=data)
    positions = Positions(composition.root, composition.sources)
    values = plain(composition.root)
    _make_paths_absolute(values, positions)
    own = list(composition.problems)
    path = document.source.path
    if values.get("name") is None:
        if path is None or is_name(path.stem):
            values["name"] = UNNAMED if path is None else path.stem
        else:
            own.append(file_name_problem(document.source.name, path.stem))
    spec, found = _validate(values, positions)
    # A value that could not be read as it is written is wrong only once.
    known = {problem.path for problem in own if problem.path}
    problems = positions.ordered([*own, *(one for one in found if one.path not in known)])
    wrong = {_section(problem) for problem in problems}
    if problems or spec is None:
        spec, sections = None, _sections(values, wrong)
    else:
        sections = {key: getattr(spec, key) for key in _SECTION_KEYS}
    return Draft(
        **sections,
        spec=spec,
        values=values,
        parts=tuple(parts_in({key: values[key] for key in wrong & values.keys()})),
        positions=positions,
        problems=problems,
        notices=composition.notices,
    )


def _make_paths_absolute(data: dict[str, Any], positions: Positions) -> None:
    """Make the paths of weights and of a dataset absolute: each counts from its own file."""
    for section, key in (("model", "weights"), ("data", "dataset")):
        values = data.get(section)
        if not isinstance(values, dict):
            continue
        if key == "weights" and isinstance(values.get(key), str):
            values[key] = {"path": values[key]}
        part = values.get(key)
        path = part.get("path") if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(path, str) and is_file_name(path):
            part["path"] = absolute_path(path, positions.place((section, key, "path")))


def _validate(data: dict[str, Any], positions: Positions) -> tuple[Spec | None, list[Problem]]:
    try:
        return Spec.model_validate(data), []
    except ValidationError as error:
        problems = problems_from(error, positions, (), SpecFile)
        cleaned = _without_unknown_keys(data, error, problems)
    # Pydantic checks the rules between keys only where there is no unknown one.
    try:
        Spec.model_validate(cleaned)
    except ValidationError as error:
        known = {problem.path for problem in problems}
        found = problems_from(error, positions, (), SpecFile)
        problems += [one for one in found if one.path not in known and one.code != "missing-key"]
    return None, problems


def _without_unknown_keys(
    data: dict[str, Any], error: ValidationError, problems: Iterable[Problem]
) -> dict[str, Any]:
    """Copy of a spec without its unknown keys, unless they may be meant to be others."""
    misspelt = {one.path for one in problems if one.suggestion and "." not in one.suggestion}
    cleaned = deepcopy(data)
    for details in error.errors(include_url=False):
        if details["type"] != "extra_forbidden":
            continue
        path: SpecPath = ()
        here: Any = cleaned
        *above, key = details["loc"]
        for step in above:
            # Pydantic's location also names members of unions, which are no keys.
            if isinstance(step, int) or step in here:
                path, here = (*path, step), here[step]
        if dotted((*path, key)) not in misspelt:
            del here[key]
    return cleaned


_SECTION_KEYS = frozenset(Spec.model_fields) - {"version"}

# A spec of which any section may be absent.
_Sections = create_model(
    "_Sections", __base__=Spec, name=(Name | None, None), model=(ModelSpec | None, None)
)


def _sections(data: dict[str, Any], wrong: set[str]) -> dict[str, Any]:
    """Sections without problems, and null for the others."""
    sections = _Sections.model_validate({key: data.get(key) for key in _SECTION_KEYS - wrong})
    return {key: None if key in wrong else getattr(sections, key) for key in _SECTION_KEYS}


def _section(problem: Problem) -> str:
    """Top-level key that a problem is about."""
    return re.split(r"[.\[]", problem.path, maxsplit=1)[0]
