"""From a source to a checked spec: the first half of checking, which needs no torch."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.layers import Layers, layers_of, read_layers
from resnet_builder.spec.plain import plain
from resnet_builder.spec.positions import Positions
from resnet_builder.spec.reading import checked
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
)
from resnet_builder.spec.section import Name, is_name
from resnet_builder.spec.tree import parse_yaml
from resnet_builder.spec.validation import problems_from

UNNAMED = "unnamed"
"""What a mapping without a name is called."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec after the first half of checking.

    Attributes:
        name: The spec's, or its file's; ``None`` like every section below if it is absent, or if
            something is wrong with it.
        plugins: What the spec asks to be imported; nothing has been.
        model: The network.
        data: The data set.
        train: The recipe.
        run: How to compute.
        expect: What the network must count to.
        published: What the source reports.
        spec: The whole, if nothing is wrong with it.
        positions: Where the values stand.
        problems: What is wrong, in file order.
        notices: What the user should know: one line each.
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
    positions: Positions
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]

    def is_wrong(self, section: str) -> bool:
        """Tell whether a section is there, but has problems."""
        return any(_section(problem) == section for problem in self.problems)


def read_draft(
    source: str | Path | Mapping[str, object],
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
) -> Draft:
    """Read a spec, merge its layers and check each section by itself.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        overrides: ``path.to.key=value``, as ``--set``.
        fragments: Fragments to lay over the spec, as ``--with``.

    Raises:
        SpecError: There is nothing to check: no file, no YAML, no mapping.
        StorageError: A file cannot be read.
    """
    return _draft(read_layers(source, overrides=overrides, fragments=fragments))


def load_spec(
    source: str | Path | Mapping[str, object],
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
) -> Spec:
    """Read a spec and check its form, closed sets and ranges; parts are not looked up.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        overrides: ``path.to.key=value``, as ``--set``.
        fragments: Fragments to lay over the spec, as ``--with``.

    Raises:
        SpecError: All that is wrong.
        StorageError: A file cannot be read.
    """
    return _whole(read_draft(source, overrides=overrides, fragments=fragments))


def load_spec_text(text: str, *, name: str = "<text>") -> Spec:
    """Read a spec from text, as :func:`dump_spec` writes it.

    Args:
        text: The spec; a relative path in it counts from the working directory.
        name: What messages call the text.

    Raises:
        SpecError: All that is wrong.
        StorageError: A file that it extends cannot be read.
    """
    return _whole(_draft(layers_of(parse_yaml(checked(text, name)))))


def _whole(draft: Draft) -> Spec:
    if draft.spec is None:
        raise SpecError(draft.problems)
    return draft.spec


def _draft(layers: Layers) -> Draft:
    positions = Positions(layers.root, layers.sources)
    data = plain(layers.root)
    _locate_weights(data, positions)
    main = layers.sources[0].path
    if data.get("name") is None and (main is None or is_name(main.stem)):
        data["name"] = UNNAMED if main is None else main.stem
    spec, found = _validate(data, positions)
    # A value that could not be read as it is written is wrong only once.
    known = {problem.path for problem in layers.problems if problem.path}
    found = [problem for problem in found if problem.path not in known]
    problems = positions.ordered([*layers.problems, *found])
    return Draft(
        **_sections(data, {_section(problem) for problem in problems}),
        spec=None if problems else spec,
        positions=positions,
        problems=problems,
        notices=layers.notices,
    )


def _locate_weights(data: dict[str, Any], positions: Positions) -> None:
    """Make the path of first weights absolute: it counts from whatever it is written in."""
    model = data.get("model")
    weights = model.get("weights") if isinstance(model, dict) else None
    path = weights.get("path") if isinstance(weights, dict) else weights
    if not isinstance(path, str) or not is_file_name(path):
        return
    absolute = os.path.realpath(positions.base_dir(("model", "weights", "path")) / path)
    if isinstance(weights, dict):
        weights["path"] = absolute
    else:
        data["model"]["weights"] = absolute


def _validate(data: dict[str, Any], positions: Positions) -> tuple[Spec | None, list[Problem]]:
    try:
        return Spec.model_validate(data), []
    except ValidationError as error:
        return None, problems_from(error, positions, (), SpecFile)


# A spec of which any section may be absent.
_Sections = create_model(
    "_Sections", __base__=Spec, name=(Name | None, None), model=(ModelSpec | None, None)
)


def _sections(data: dict[str, Any], wrong: set[str]) -> dict[str, Any]:
    """Return the sections that nothing is wrong with, and null for the others."""
    keys = Spec.model_fields.keys() - {"version"}
    sections = _Sections.model_validate({key: data.get(key) for key in keys - wrong})
    return {key: None if key in wrong else getattr(sections, key) for key in keys}


def _section(problem: Problem) -> str:
    """Return the top-level key that a problem is about."""
    return re.split(r"[.\[]", problem.path, maxsplit=1)[0]
