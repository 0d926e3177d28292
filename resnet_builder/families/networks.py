"""The network that is wished for, or why there is none."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from resnet_builder.errors import UsageError
from resnet_builder.families.table import (
    FAMILIES,
    LARGE_STAGES,
    LARGE_WIDTHS,
    PAPER_BLOCKS,
    Depths,
    Family,
)

PICTURES = "image_folder"
"""The data set of large pictures, for which networks have the depths of ImageNet's."""

LARGE_SIZE = 224
"""Their pixels a side."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new spec is to be; ``None`` where its family decides.

    Attributes:
        family: One of :data:`FAMILIES`.
        depth: As the family's paper counts it.
        dataset: What it is trained on.
        width: Of a wide ResNet: how many times as wide it is.
        groups: Of a ResNeXt: its cardinality.
        width_per_group: Of a ResNeXt: the width of a group in the first stage.
        shortcut: A registered shortcut.
        block: ``basic`` or ``bottleneck``, where the depth leaves the choice.
    """

    family: str
    depth: int
    dataset: str = "cifar10"
    width: int | None = None
    groups: int | None = None
    width_per_group: int | None = None
    shortcut: str | None = None
    block: str | None = None

    @property
    def is_large(self) -> bool:
        """Whether it is for large pictures."""
        return self.dataset == PICTURES


def default_name(wish: Wish) -> str:
    """Return what a spec is called if nobody says otherwise.

    Raises:
        UsageError: There is no such family, or it needs or takes something else.
    """
    family = family_of(wish)
    name = f"{family.name}{wish.depth}"
    if wish.width is not None:
        name += f"_{wish.width}"
    if wish.groups is not None:
        name += f"_{wish.groups}x{wish.width_per_group}d"
    return name if wish.dataset in {"cifar10", PICTURES} else f"{name}_{wish.dataset}"


def family_of(wish: Wish) -> Family:
    """Find the family that is wished for, and check that it can be wished for so.

    Raises:
        UsageError: There is no such family, or it needs or takes something else.
    """
    if wish.family not in FAMILIES:
        raise UsageError(f"no family is named '{wish.family}': one of {', '.join(FAMILIES)}")
    family = FAMILIES[wish.family]
    for key in ("width", "groups", "width_per_group", "shortcut", "block"):
        is_given = getattr(wish, key) is not None
        if key in family.needs and not is_given:
            raise UsageError(f"{wish.family} needs {' and '.join(map(_flag, family.needs))}")
        if is_given and key not in {*family.needs, *family.takes}:
            raise UsageError(f"{wish.family} takes no {_flag(key)}")
    return family


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def small_model(wish: Wish, family: Family) -> dict[str, Any]:
    """Describe a network of three stages with as many blocks each.

    Raises:
        UsageError: The family has no such depth.
    """
    kind, count = blocks(wish, family)
    widths = [width * (wish.width or 1) for width in family.widths]
    return {
        "stem": _stem("conv3x3", family.widths[0], family),
        "block": _block(kind, wish, family),
        "shortcut": wish.shortcut or family.shortcut,
        **_attention(family),
        "stages": _stages(widths, [count] * len(widths)),
    }


def large_model(wish: Wish, family: Family) -> dict[str, Any]:
    """Describe a network of four stages.

    Raises:
        UsageError: The family has no such depth.
    """
    if not family.large_depths:
        others = "`resnet-build list specs` has others for large ones"
        raise UsageError(f"{wish.family} is for small images; {others}")
    if wish.depth not in family.large_depths:
        raise UsageError(_no_such_depth(wish, ", ".join(map(str, family.large_depths))))
    if wish.block is not None:
        raise UsageError(f"{wish.family} takes no --block on {PICTURES}: the depth decides")
    kind, counts = LARGE_STAGES[wish.depth]
    return {
        "image_size": LARGE_SIZE,
        "stem": _stem("conv7x7_maxpool", LARGE_WIDTHS[0], family),
        "block": _block(kind, wish, family),
        "shortcut": wish.shortcut or ("none" if family.shortcut == "none" else "projection"),
        **_attention(family),
        "stages": _stages(LARGE_WIDTHS, counts),
    }


def blocks(wish: Wish, family: Family) -> tuple[str, int]:
    """Return the kind of block that makes a depth, and how many there are in each stage.

    Raises:
        UsageError: None does, or more than one and the choice is not made.
    """
    rules = {kind: rule for kind, rule in family.depths.items() if wish.block in {None, kind}}
    if not rules:
        kinds = " or ".join(family.depths)
        raise UsageError(f"{wish.family} has no block '{wish.block}': {kinds}")
    fitting = {kind: count for kind in rules if (count := rules[kind].blocks(wish.depth))}
    if not fitting:
        raise UsageError(_no_such_depth(wish, _nearest(wish.depth, rules.values())))
    kind = next(iter(fitting)) if len(fitting) == 1 else PAPER_BLOCKS.get(wish.depth)
    if kind is None:
        choice = " or ".join(f"--block {kind}" for kind in fitting)
        raise UsageError(f"either block can make {wish.depth} layers: add {choice}")
    return kind, fitting[kind]


def _nearest(depth: int, rules: Collection[Depths]) -> str:
    """Say which depths there are, and the two that are nearest to one that is not."""
    near = {one for rule in rules for one in rule.around(depth)}
    low, high = sorted(sorted(near, key=lambda one: (abs(one - depth), one))[:2])
    return f"{' or '.join(map(str, rules))}, the nearest {low} and {high}"


def _no_such_depth(wish: Wish, depths: str) -> str:
    return f"no {wish.family} is {wish.depth} layers deep on {wish.dataset}: depths are {depths}"


def _stem(kind: str, channels: int, family: Family) -> dict[str, Any]:
    bare = {"bare": True} if family.block_prefix else {}
    return {"type": kind, "channels": channels, **bare}


def _block(kind: str, wish: Wish, family: Family) -> Any:
    block = f"{family.block_prefix}{kind}"
    if wish.groups is None:
        return block
    return {"type": block, "groups": wish.groups, "width_per_group": wish.width_per_group}


def _attention(family: Family) -> dict[str, Any]:
    return {} if family.attention is None else {"attention": family.attention}


def _stages(widths: Iterable[int], counts: Iterable[int]) -> list[dict[str, int]]:
    """Describe stages that halve the size, but for the first."""
    return [
        {"channels": width, "blocks": count, **({"stride": 2} if number else {})}
        for number, (width, count) in enumerate(zip(widths, counts, strict=True))
    ]
