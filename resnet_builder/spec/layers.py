"""The layers of a spec, merged: what it extends, the file itself, fragments and overrides."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnet_builder.errors import Problem, SpecError, SpecPath, nearest
from resnet_builder.spec.bundled import (
    bundled_file,
    bundled_names,
    find_spec,
    is_path,
    recipe_names,
)
from resnet_builder.spec.merging import merge
from resnet_builder.spec.overrides import SET, Override, apply_override, parse_override
from resnet_builder.spec.plain import node_from_mapping, plain
from resnet_builder.spec.reading import read_yaml
from resnet_builder.spec.source import Document, Node, Place, Source
from resnet_builder.spec.words import missing_space

WITH = "<command line>:--with"

OWN = ("name", "expect", "published")
"""What belongs to the file it stands in and is never inherited."""

_SECTIONS = {"model": "the network", "data": "the data", "train": "the recipe"}

_CLAIMS = {"expect": {"model"}, "published": {"model", "data", "train"}}
"""What a file says of itself, and the sections that it says it of."""

_INCIDENTAL = frozenset(
    {
        "data.split_seed",
        "train.seed",
        "train.evaluate_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
    }
)
"""With another value of these, an experiment is repeated, and its published result still holds."""

_MAX_FILES = 64


@dataclass(frozen=True, slots=True)
class Layers:
    """A spec's layers, merged.

    Attributes:
        root: The values.
        sources: Everything that was read, the spec first.
        problems: What is wrong with the layers by themselves.
        notices: What the user should know.
    """

    root: Node
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]


def read_layers(
    source: str | Path | Mapping[str, object],
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
) -> Layers:
    """Read a spec and everything that is laid under and over it.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        overrides: ``path.to.key=value``, as ``--set``.
        fragments: Fragments to lay over the spec: paths, or names of bundled specs or recipes.

    Raises:
        SpecError: A layer cannot be read.
        StorageError: A file cannot be read.
    """
    document = (
        node_from_mapping(source)
        if isinstance(source, Mapping)
        else read_yaml(source if isinstance(source, Path) else find_spec(source))
    )
    return layers_of(document, overrides=overrides, fragments=fragments)


def layers_of(
    document: Document,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
) -> Layers:
    """Do the same for a spec that has been read.

    Raises:
        SpecError: A layer cannot be read.
        StorageError: A file cannot be read.
    """
    stack = _Stack(document.source)
    try:
        root = written = stack.extended(document)
        for fragment in fragments:
            root = merge(root, stack.fragment(fragment), main=stack.main)
        for argument in overrides:
            root = stack.overridden(root, parse_override(argument))
    except SpecError as error:
        raise SpecError([*stack.problems, *error.errors]) from error
    root, notices = _without_stale_claims(root, written)
    return Layers(root, tuple(stack.sources), tuple(stack.problems), notices)


class _Stack:
    """Reads layers, and remembers what was read and what is wrong with it."""

    def __init__(self, main: Source) -> None:
        self.main = main
        self.sources: list[Source] = []
        self.problems: list[Problem] = []

    def extended(self, document: Document, chain: tuple[str, ...] = ()) -> Node:
        """Return a document laid over whatever it extends.

        Raises:
            SpecError: It is no mapping, or extends what cannot be read, or itself.
            StorageError: A file cannot be read.
        """
        self.sources.append(document.source)
        self.problems += document.problems
        root, entries = document.root, _entries(document)
        if document.source.path is not None:
            chain = (*chain, os.path.realpath(document.source.path))
        below: Node | None = None
        for node, path in _names(entries.pop("extends", None)):
            base = self._base(node, path, chain)
            below = base if below is None else merge(below, base, main=self.main)
        above = Node(entries, root.place)
        return above if below is None else merge(below, above, main=self.main)

    def _base(self, node: Node, path: SpecPath, chain: tuple[str, ...]) -> Node:
        """Read what a document extends."""
        file = _located(node, path)
        if len(self.sources) == _MAX_FILES:
            raise _refused(node.place, path, f"more than {_MAX_FILES} layers")
        document = read_yaml(file, refusal=partial(_cannot_extend, node.place, path, file))
        if os.path.realpath(file) in chain:
            raise _refused(node.place, path, f"{file} extends itself")
        return _without_own(self.extended(document, chain))

    def fragment(self, fragment: str | Path) -> Node:
        """Return a fragment to lay over the spec."""
        place = Source(WITH, str(fragment), has_lines=False).place(0, 0)
        node = Node(str(fragment), place)
        file = fragment if isinstance(fragment, Path) else _located(node, ())
        document = read_yaml(file, refusal=partial(_cannot_extend, place, (), file))
        return _without_own(self.extended(document))

    def overridden(self, root: Node, override: Override) -> Node:
        """Return the spec with an override laid over it; note what is wrong with the override."""
        self.sources.append(override.source)
        self.problems += override.problems
        try:
            return apply_override(root, override, main=self.main)
        except SpecError as error:
            self.problems += error.errors
            return root


def _entries(document: Document) -> dict[str, Node]:
    root = document.root
    if isinstance(root.value, dict):
        return dict(root.value)
    message = "the top level must be a mapping of `key: value`"
    raise SpecError(
        [root.place.problem("wrong-type", message, suggestion=missing_space(root.value))]
    )


def _names(extends: Node | None) -> list[tuple[Node, SpecPath]]:
    """Return what ``extends`` names, lowest layer first.

    Raises:
        SpecError: It is neither a name nor a list of names.
    """
    if extends is None or extends.value is None:
        return []
    named: list[tuple[Node, SpecPath]] = [(extends, ("extends",))]
    if isinstance(extends.value, list):
        named = [(node, ("extends", index)) for index, node in enumerate(extends.value)]
    for node, path in named:
        if not isinstance(node.value, str):
            raise _refused(node.place, path, "must be a file, a bundled spec's name, or a list")
    return named


def _located(node: Node, path: SpecPath) -> Path:
    """Return the file that a layer's name means; a relative path counts from who names it."""
    name, file = str(node.value), node.place.source.path
    if is_path(name):
        return Path(name) if file is None else file.parent / name
    names = (*bundled_names(), *recipe_names())
    if name in names:
        return bundled_file(name)
    message = f"no bundled spec or recipe is named '{name}'"
    raise SpecError(
        [
            node.place.problem(
                "extends", message, path=path, allowed=names, suggestion=nearest(name, names)
            )
        ]
    )


def _cannot_extend(place: Place, path: SpecPath, file: Path, code: str, message: str) -> Problem:
    return place.problem("extends", f"{file}: {message}", path=path)


def _refused(place: Place, path: SpecPath, message: str) -> SpecError:
    return SpecError([place.problem("extends", message, path=path)])


def _without_own(root: Node) -> Node:
    assert isinstance(root.value, dict)
    entries = {key: node for key, node in root.value.items() if key not in OWN}
    return Node(entries, root.place, root.key_place)


def _without_stale_claims(root: Node, written: Node) -> tuple[Node, tuple[str, ...]]:
    """Drop what a file says of itself that fragments or overrides have made another.

    Args:
        root: The spec with all its layers.
        written: The spec as its file has it.
    """
    assert isinstance(root.value, dict)
    changed = [key for key in _SECTIONS if _experiment(root, key) != _experiment(written, key)]
    entries = dict(root.value)
    dropped = []
    for key, sections in _CLAIMS.items():
        if key not in entries or not sections & set(changed):
            continue
        if (kept := _set_part(entries.pop(key))) is not None:
            entries[key] = kept
        else:
            dropped.append(f"`{key}`")
    what = " and ".join(_SECTIONS[key] for key in changed)
    notice = f"{' and '.join(dropped)} left out, as --set or --with changes {what}"
    return Node(entries, root.place, root.key_place), (notice,) if dropped else ()


def _experiment(root: Node, section: str) -> object:
    """Return a section, without what leaves the experiment the same."""
    assert isinstance(root.value, dict)
    values = plain(root.value[section]) if section in root.value else None
    if isinstance(values, dict):
        return {key: values[key] for key in values if f"{section}.{key}" not in _INCIDENTAL}
    return values


def _set_part(claims: Node) -> Node | None:
    """Return what of a mapping was given by ``--set``, if any was."""
    if not isinstance(claims.value, dict):
        return claims if claims.place.source.name == SET else None
    kept = {key: node for key, node in claims.value.items() if node.place.source.name == SET}
    return Node(kept, claims.place, claims.key_place) if kept else None
