"""``--set path.to.key=value``: one value laid over a spec, or taken out of it."""

import re
from dataclasses import dataclass

from resnet_builder.errors import Problem, SpecError, SpecPath
from resnet_builder.spec.merging import merge
from resnet_builder.spec.reading import checked
from resnet_builder.spec.source import Document, Node, Place, Source
from resnet_builder.spec.tree import MAX_DEPTH, parse_yaml

SET = "<command line>:--set"

# Indices are written .0, or [0] as in messages.
_STEP = r"[^\s.=\[\]]+"
_KEY = re.compile(rf"{_STEP}(?:\.{_STEP}|\[[0-9]+\])*")
_INDEX = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class _Step:
    """One key or index of a path, and where in the argument it stands."""

    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Override:
    """An argument of ``--set``, parsed.

    Attributes:
        source: The argument.
        steps: What stands before the ``=``.
        value: What stands behind it.
        problems: What is wrong with the value.
    """

    source: Source
    steps: tuple[_Step, ...]
    value: Node
    problems: tuple[Problem, ...]


def parse_override(argument: str) -> Override:
    """Parse ``path.to.key=value``, the value in YAML 1.2 flow style.

    Raises:
        SpecError: It is not of this form.
    """
    source = checked(argument, SET, has_lines=False)
    key, equals, text = source.text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise _refused(source, 0, "must be path.to.key=value")
    if len(re.findall(_STEP, key)) > MAX_DEPTH:
        raise _refused(source, 0, f"nested deeper than {MAX_DEPTH}", code="limit")
    if not text.split("#")[0].strip():
        raise _refused(source, len(key), 'no value: null takes the key away, "" is empty text')
    steps = tuple(
        _Step(match[0], source.place(0, match.start())) for match in re.finditer(_STEP, key)
    )
    if steps[0].text == "extends":
        raise _refused(source, 0, "`extends` works in files; lay a file over a spec by --with")
    document = _parse_value(source, len(key) + 1, steps)
    return Override(source, steps, document.root, document.problems)


def apply_override(root: Node, override: Override, *, main: Source) -> Node:
    """Lay an override's value over a spec.

    Raises:
        SpecError: It points to an item that a list does not have.
    """
    return merge(root, _overlay(root, override.steps, override.value, main), main=main)


def _parse_value(source: Source, start: int, steps: tuple[_Step, ...]) -> Document:
    path = tuple(int(s.text) if _INDEX.fullmatch(s.text) else s.text for s in steps)
    document = parse_yaml(source, start=start, path=path)
    is_block = isinstance(document.root.value, dict | list)
    if is_block and source.text[start:].lstrip()[0] not in "[{":
        raise _refused(source, start, "write a mapping as {key: value}, a list as [a, b]")
    return document


def _overlay(
    below: Node | None, steps: tuple[_Step, ...], value: Node, main: Source, path: SpecPath = ()
) -> Node:
    """Wrap a value in the mappings and lists that lead to it."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if below is not None and isinstance(below.value, list):
        index = _index(step, len(below.value), path)
        here = (*path, index)
        item = below.value[index]
        new = merge(item, _overlay(item, rest, value, main, here), main=main, path=here)
        kept = [] if new.value is None else [new]
        items = [*below.value[:index], *kept, *below.value[index + 1 :]]
        return Node(items, below.place, below.key_place)
    child = below.value.get(step.text) if below and isinstance(below.value, dict) else None
    inside = _overlay(child, rest, value, main, (*path, step.text))
    key_place = inside.key_place or step.place
    return Node({step.text: Node(inside.value, inside.place, key_place)}, step.place)


def _index(step: _Step, count: int, path: SpecPath) -> int:
    if _INDEX.fullmatch(step.text) and int(step.text) < count:
        return int(step.text)
    message = f"there is no item {step.text}, only {count}, counted from 0"
    indices = tuple(str(index) for index in range(count))
    raise SpecError([step.place.problem("out-of-range", message, path=path, allowed=indices)])


def _refused(source: Source, column: int, message: str, code: str = "yaml-syntax") -> SpecError:
    return SpecError([source.place(0, column).problem(code, message)])
