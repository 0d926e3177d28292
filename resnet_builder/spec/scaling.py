"""Scaling of a recipe to another length: ``--epochs N`` and ``--steps N``.

The milestones, the warm-up and all other lengths in the recipe keep their share of the training.
Epochs may come out as fractions, steps are rounded. All of this happens on plain nodes, before any
validation: what has the wrong form is left as it is, and refused later.
"""

from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

from resnet_builder.errors import Problem, SpecPath, dotted
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.yaml_source import Node, plain

_UNITS = ("steps", "epochs")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "exponential": {"every": {"epochs": 1}},
    "plateau": {"patience": 10, "cooldown": 0},
}
"""Lengths of schedules that need not be written."""

_DIGITS = 6  # of a number of epochs


class ScaledRecipe(NamedTuple):
    """A spec whose recipe was scaled.

    Attributes:
        root: Nodes of the spec.
        notices: Notices for the user, one line for each value that changed.
        problems: Problems of lengths that cannot be scaled.
    """

    root: Node
    notices: list[str]
    problems: list[Problem]


def scale_recipe(root: Node, unit: str, length: Node) -> ScaledRecipe:
    """Scale the recipe of a spec to another length.

    Args:
        root: Nodes of the spec.
        unit: Unit of the new length, ``steps`` or ``epochs``.
        length: New length; its source is the argument of the command line.
    """
    train = _entries(_entries(root).get("train"))
    old_unit = next((one for one in _UNITS if _count(train.get(one))), unit)
    old, new = _count(train.get(old_unit)), _count(length)
    scaler = _Scaler(root, old_unit, unit, length)
    if old and new and (old_unit, old) != (unit, new):
        scaler.scale(old, new)
    for one in _UNITS:
        scaler.put((one,), length if one == unit else None)
    return ScaledRecipe(scaler.root, scaler.notices, scaler.problems)


class _Scaler:
    """Scales the lengths in a recipe, one after the other."""

    def __init__(self, root: Node, old_unit: str, unit: str, length: Node) -> None:
        self.root = root
        self.notices: list[str] = []
        self.problems: list[Problem] = []
        self._old_unit = old_unit
        self._unit = unit
        self._length = length
        self._ratio = Fraction(1)

    def scale(self, old: int, new: int) -> None:
        """Scale every length in the recipe but its own."""
        self._ratio = Fraction(new, old)
        unit = "" if self._unit == self._old_unit else f" {self._unit}"
        self._tell((self._old_unit,), str(old), f"{new}{unit}")
        if (self._unit, new) == ("steps", 1):
            self._replace_schedule("constant")  # nothing can change in one step
            return
        for key in ("warmup", "every", "first_cycle"):
            self._scale_length(("schedule", key))
        self._scale_milestones(new)
        self._scale_interval(("evaluate_every",))
        self._scale_interval(("checkpoint_every",))
        if self._unit == self._old_unit:  # else the number of evaluations before is not known
            self._scale_evaluations(("schedule", "patience"))
            self._scale_evaluations(("schedule", "cooldown"))

    def _scale_length(self, path: SpecPath) -> None:
        node = self._at(path)
        unit, length = _length_of(node)
        if node is not None and unit is not None and length is not None:
            new_unit, new = self._scaled(path, unit, length)
            if new is not None:
                self._replace_length(path, node, unit, {new_unit: new})

    def _scale_interval(self, path: SpecPath) -> None:
        """Shorten an interval with the training, but not below an epoch; never lengthen it."""
        node = self._at(path)
        unit, length = _length_of(node)
        if node is None or unit != self._old_unit or length is None:
            return
        _, new = self._scaled(path, unit, length)
        if new is not None and self._unit == unit == "epochs":
            new = max(new, min(1, length))
        if new is not None and (new < length or self._unit != unit):
            self._replace_length(path, node, unit, {self._unit: new})

    def _scale_milestones(self, end: int) -> None:
        schedule = self._at(("schedule",))
        node = self._at(("schedule", "milestones"))
        given = [] if node is None or not isinstance(node.value, list) else node.value
        old = [number for number in map(_number, given) if number is not None]
        if node is None or not old or len(old) != len(given):
            return
        unit_node = _entries(schedule).get("unit")
        unit = self._old_unit if unit_node is None else str(unit_node.value)
        path: SpecPath = ("schedule", "milestones")
        scaled = [self._scaled(path, unit, number) for number in old]
        new_unit, new = scaled[0][0], [number for _, number in scaled if number is not None]
        if len(new) != len(old):
            return
        if new_unit == self._unit == "steps":
            new = _spread(new[: end - 1], end)
        self._tell(path, f"{dump_value(old)} {unit}", f"{dump_value(new)} {new_unit}")
        self.put(path, Node([self._node(number) for number in new], self._length.place))
        if unit_node is not None:
            self.put(("schedule", "unit"), self._node(new_unit))

    def _scale_evaluations(self, path: SpecPath) -> None:
        """Scale a number of evaluations down; the schedule could not change in time otherwise."""
        node = self._at(path)
        old = None if node is None else _number(node)
        if isinstance(old, int) and (new := round(old * self._ratio)) < old:
            self._tell(path, str(old), str(new))
            self.put(path, self._node(new))

    def _scaled(
        self, path: SpecPath, unit: str, length: int | float
    ) -> tuple[str, int | float | None]:
        """Unit and length after scaling; no length where the number of images would be needed."""
        new_unit = unit
        if self._unit != self._old_unit:
            if unit != self._old_unit:
                message = (
                    f"is in {unit}, and the recipe in {self._old_unit}: give --{self._old_unit} "
                    f"instead of `{self._argument}`, or this length in {self._old_unit} by --set"
                )
                place, at = self._length.place, ("train", *path)
                self.problems.append(place.problem("out-of-range", message, path=at))
                return unit, None
            new_unit = self._unit
        exact = Fraction(length) * self._ratio
        return new_unit, max(1, round(exact)) if new_unit == "steps" else _epochs(exact)

    def _replace_length(
        self, path: SpecPath, node: Node, unit: str, length: dict[str, int | float]
    ) -> None:
        old = {unit: plain(_entries(node)[unit])}
        if old == length:
            return
        self._tell(path, dump_value(old), dump_value(length))
        kept = {key: value for key, value in _entries(node).items() if key != unit}
        new = {key: self._node(value) for key, value in length.items()}
        self.put(path, replace(node, value={**kept, **new}))

    def _replace_schedule(self, kind: str) -> None:
        old = self._at(("schedule",))
        if old is not None:
            self._tell(("schedule",), dump_value(plain(old)), kind)
            self.put(("schedule",), self._node(kind))

    def _at(self, path: SpecPath) -> Node | None:
        """Node in the recipe; of a schedule's length that is not written, its default."""
        train = _entries(_entries(self.root).get("train"))
        node = train.get(str(path[0]))
        if len(path) == 1 or node is None:
            return node
        kind = _entries(node)["type"].value if "type" in _entries(node) else node.value
        default = _DEFAULTS.get(str(kind), {}).get(str(path[1]))
        written = _entries(node).get(str(path[1]))
        return self._node(default) if written is None and default is not None else written

    def put(self, path: SpecPath, node: Node | None) -> None:
        """Put a node into the recipe, or take one away."""
        self.root = _with(self.root, ("train", *path), node)

    def _node(self, value: Any) -> Node:
        if isinstance(value, dict):
            value = {key: self._node(item) for key, item in value.items()}
        return Node(value, self._length.place, self._length.place)

    def _tell(self, path: SpecPath, old: str, new: str) -> None:
        self.notices.append(f"{self._argument}: {dotted(('train', *path))}: {old} -> {new}")

    @property
    def _argument(self) -> str:
        return self._length.place.source.text


def _with(node: Node, path: SpecPath, value: Node | None) -> Node:
    """Copy of a node with another value below it; a part's name becomes a mapping."""
    key, *rest = map(str, path)
    entries = _entries(node)
    if isinstance(node.value, str):
        entries = {"type": Node(node.value, node.place, node.key_place)}
    if rest:
        value = _with(entries.get(key, Node({}, node.place)), tuple(rest), value)
    kept = {name: item for name, item in entries.items() if name != key}
    return replace(node, value=kept if value is None else {**entries, key: value})


def _spread(milestones: list[int | float], end: int) -> list[int | float]:
    """Move apart the milestones that rounding has made equal."""
    spread: list[int | float] = []
    for number, milestone in enumerate(milestones):
        latest = end - len(milestones) + number
        spread.append(max(1, *[last + 1 for last in spread[-1:]], min(milestone, latest)))
    return spread


def _epochs(number: Fraction) -> int | float:
    whole = round(number, _DIGITS)
    return int(whole) if whole.denominator == 1 and whole else float(f"{float(number):.{_DIGITS}g}")


def _length_of(node: Node | None) -> tuple[str | None, int | float | None]:
    """Unit and length that a mapping gives, if it does."""
    given = _entries(node)
    unit = next((unit for unit in _UNITS if unit in given and given[unit].value), None)
    return (None, None) if unit is None else (unit, _number(given[unit]))


def _number(node: Node) -> int | float | None:
    value = node.value
    is_length = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return value if is_length else None  # type: ignore[return-value]  # mypy does not follow


def _count(node: Node | None) -> int | None:
    number = None if node is None else _number(node)
    return number if isinstance(number, int) else None


def _entries(node: Node | None) -> dict[str, Node]:
    return node.value if node is not None and isinstance(node.value, dict) else {}
