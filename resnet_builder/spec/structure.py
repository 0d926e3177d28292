"""What the schema says may stand where, read off the annotations of its models."""

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from resnet_builder.errors import SpecPath
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part

Slot = tuple[str, ...]
"""Where a value can stand: keys, and ``*`` for any index."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of the kinds of value that an annotation admits; null is left out.

    Attributes:
        kind: A type, ``Literal[...]``, ``tuple[...]`` and the like.
        limits: The constraints on it: objects with ``ge``, ``gt``, ``le``, ``lt`` and so on.
    """

    kind: Any
    limits: tuple[object, ...] = ()

    @property
    def model(self) -> type[BaseModel] | None:
        """The kind, if it is a model."""
        is_model = isinstance(self.kind, type) and issubclass(self.kind, BaseModel)
        return self.kind if is_model else None

    @property
    def is_part(self) -> bool:
        """Whether it is named by its ``type``, as parts are."""
        return self.model is not None and "type" in self.model.model_fields

    @property
    def short_key(self) -> str | None:
        """The key that a scalar stands for where a mapping of this kind may stand, if it may."""
        return "type" if self.is_part else getattr(self.model, "short_key", None)

    @property
    def choices(self) -> tuple[object, ...]:
        """The values of a ``Literal``."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return get_origin(self.kind) in {tuple, list} or self.kind in {tuple, list}

    def item(self, index: int) -> "tuple[Member, ...]":
        """Return what may stand in a list."""
        arguments = get_args(self.kind)
        if get_origin(self.kind) is list or arguments[1:] == (Ellipsis,):
            return members(arguments[0])
        return members(arguments[index]) if index < len(arguments) else ()


def members(annotation: Any, limits: Iterable[object] = ()) -> tuple[Member, ...]:
    """Take an annotation apart into the kinds of value it admits."""
    if get_origin(annotation) is Annotated:
        bare, *metadata = get_args(annotation)
        return members(bare, [*limits, *_constraints(metadata)])
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(found for one in get_args(annotation) for found in members(one, limits))
    return () if annotation is type(None) else (Member(annotation, tuple(limits)),)


def field_members(field: FieldInfo) -> tuple[Member, ...]:
    """Return the kinds of value that a field admits."""
    return members(field.annotation, _constraints(field.metadata))


def _constraints(metadata: Iterable[object]) -> Iterator[object]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def slots(model: type[BaseModel] = Spec, below: Slot = ()) -> Iterator[tuple[Slot, Member]]:
    """Yield every slot of a spec and the kinds of value it admits; options of parts excepted."""
    for name, field in model.model_fields.items():
        yield from _slots_at((*below, name), field_members(field))


def _slots_at(slot: Slot, admitted: Iterable[Member]) -> Iterator[tuple[Slot, Member]]:
    for member in admitted:
        yield slot, member
        if member.model is not None:
            yield from slots(member.model, slot)
        elif member.is_list:
            yield from _slots_at((*slot, "*"), member.item(0))


def is_part(path: SpecPath) -> bool:
    """Tell whether a part stands at this path: a name, or a mapping with ``type``."""
    return _slot(path) in _part_slots()


def short_key(path: SpecPath) -> str | None:
    """Return the key that a scalar at this path stands for, as a part's name does for ``type``."""
    return _short_keys().get(_slot(path))


def is_option(path: SpecPath) -> bool:
    """Tell whether this path lies inside a registered part, whose options are its own."""
    slot = _slot(path)
    return any(slot[:length] in _open_slots() for length in range(1, len(slot)))


def homes(key: str) -> tuple[str, ...]:
    """Return where in a spec a key can stand, as in ``model.stages[].stride``."""
    return _homes().get(key, ())


def _slot(path: SpecPath) -> Slot:
    return tuple("*" if isinstance(step, int) else step for step in path)


@cache
def _part_slots() -> frozenset[Slot]:
    return frozenset(slot for slot, member in slots() if member.is_part)


@cache
def _short_keys() -> dict[Slot, str]:
    return {slot: member.short_key for slot, member in slots() if member.short_key is not None}


@cache
def _open_slots() -> frozenset[Slot]:
    return frozenset(slot for slot, member in slots() if member.kind is Part)


@cache
def _homes() -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for slot, _ in slots():
        found.setdefault(slot[-1], {})[".".join(slot).replace(".*", "[]")] = None
    return {key: tuple(homes) for key, homes in found.items()}
