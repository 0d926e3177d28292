"""Families of networks for ``init``: each is a depth rule over a bundled spec."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from resnet_builder.errors import UsageError, nearest
from resnet_builder.spec.bundled import bundled_file
from resnet_builder.spec.compose import compose, read_document
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.yaml_source import plain

LARGE_IMAGES = "image_folder"
"""The dataset of large images, for which networks have the depths of ImageNet's."""


@dataclass(frozen=True, slots=True)
class Depths:
    """Depth rule of three stages with as many blocks each.

    Attributes:
        step: Layers that one more block in each stage adds.
        outside: Layers outside the blocks, as the paper counts.
    """

    step: int
    outside: int

    def __str__(self) -> str:
        return f"{self.step}n + {self.outside}"

    def blocks(self, depth: int) -> int | None:
        """Number of blocks in each stage, if there is one for this depth."""
        count, left = divmod(depth - self.outside, self.step)
        return count if count > 0 and not left else None

    def around(self, depth: int) -> tuple[int, int]:
        """Possible depths below and above one that is not."""
        below = max(1, (depth - self.outside) // self.step)
        return self.step * below + self.outside, self.step * (below + 1) + self.outside


@dataclass(frozen=True, slots=True)
class Family:
    """Networks of one paper.

    Attributes:
        title: Title before the depth.
        base: Bundled spec for small images, whose depth and width are changed.
        source: The paper.
        depths: Depth rules for small images, by kind of block.
        large_depths: Depths for large images.
        recipe: Bundled recipe for small images.
        large_epochs: Epochs on large images.
        needs: Options of ``init`` that are needed.
        takes: Other options of ``init`` that are taken.
    """

    title: str
    base: str
    source: str
    depths: Mapping[str, Depths]
    large_depths: tuple[int, ...] = (18, 34, 50, 101, 152)
    recipe: str = "he2015"
    large_epochs: int = 90
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ("shortcut",)


_HE_2015 = "He et al. 2015, https://arxiv.org/abs/1512.03385"

FAMILIES = {
    "resnet": Family("ResNet", "resnet20", _HE_2015, {"basic": Depths(6, 2)}),
    "plain": Family(
        "Plain network",
        "plain20",
        _HE_2015,
        {"basic": Depths(6, 2)},
        large_depths=(18, 34),
        takes=(),
    ),
    "preact": Family(
        "Pre-activated ResNet",
        "preact110",
        "He et al. 2016, https://arxiv.org/abs/1603.05027",
        {"basic": Depths(6, 2), "bottleneck": Depths(9, 2)},
        recipe="he2015_warmup",
        takes=("shortcut", "block"),
    ),
    "wrn": Family(
        "Wide ResNet",
        "wrn16_8",
        "Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146",
        {"basic": Depths(6, 4)},
        large_depths=(),
        recipe="wrn200",
        needs=("width",),
    ),
    "resnext": Family(
        "ResNeXt",
        "resnext29_8x64d",
        "Xie et al. 2016, https://arxiv.org/abs/1611.05431",
        {"bottleneck": Depths(9, 2)},
        large_depths=(50, 101, 152),
        recipe="resnext300",
        large_epochs=100,
        needs=("groups", "width_per_group"),
    ),
    "seresnet": Family(
        "SE-ResNet",
        "seresnet110",
        "Hu et al. 2018, https://arxiv.org/abs/1709.01507",
        {"basic": Depths(6, 2)},
    ),
}

# The blocks of He et al. 2016, tables 2 and 4, at depths that both kinds can come to.
_PAPER_BLOCKS = {110: "basic", 164: "bottleneck"}

# Layers from which on He et al. 2015 warm up.
_DEEP = 110

# Datasets of small images whose recipe, validation images and augmentations are not CIFAR's.
_OTHER_DATA: dict[str, dict[str, Any]] = {
    "digits": {"recipe": "resnet20_digits", "validation": 287, "augment": ["random_crop"]},
    "synthetic": {"recipe": "resnet20_digits", "validation": 0.2, "augment": []},
}


@dataclass(frozen=True, slots=True)
class Wish:
    """Options of ``init``, checked; ``None`` where the family decides.

    Attributes:
        family: One of :data:`FAMILIES`.
        depth: Depth, as the family's paper counts it.
        dataset: Dataset to train on.
        width: Width multiplier of a wide ResNet.
        groups: Cardinality of a ResNeXt.
        width_per_group: Width of a group in the first stage of a ResNeXt.
        shortcut: A registered shortcut.
        block: ``basic`` or ``bottleneck``, where the depth leaves the choice.

    Raises:
        UsageError: There is no such family, or it needs or takes something else.
    """

    family: str
    depth: int
    dataset: str = "cifar10"
    width: int | None = None
    groups: int | None = None
    width_per_group: int | None = None
    shortcut: str | None = None
    block: str | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            meant = nearest(self.family, FAMILIES)
            names = f"did you mean: {meant}" if meant else f"one of {', '.join(FAMILIES)}"
            raise UsageError(f"no family is named '{self.family}'; {names}")
        family = FAMILIES[self.family]
        for key in ("width", "groups", "width_per_group", "shortcut", "block"):
            is_given = getattr(self, key) is not None
            if key in family.needs and not is_given:
                raise UsageError(f"{self.family} needs {' and '.join(map(_flag, family.needs))}")
            if is_given and key not in family.needs + family.takes:
                raise UsageError(f"{self.family} takes no {_flag(key)}")

    @property
    def is_large(self) -> bool:
        """Whether it is for large images."""
        return self.dataset == LARGE_IMAGES

    @property
    def name(self) -> str:
        """Name of the spec if nobody says otherwise, as ``wrn28_10_cifar100``."""
        name = f"{self.family}{self.depth}"
        if self.width is not None:
            name += f"_{self.width}"
        if self.groups is not None:
            name += f"_{self.groups}x{self.width_per_group}d"
        return name if self.dataset in {"cifar10", LARGE_IMAGES} else f"{name}_{self.dataset}"


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def new_spec(
    wish: Wish,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    name: str | None = None,
    header: Iterable[str] = (),
) -> str:
    """YAML text of a new spec, without ``expect``: its counts are measured, and put behind.

    Args:
        wish: Options of ``init``.
        num_classes: Classes of the dataset.
        image_size: Pixels a side of the dataset's images, if they are small.
        name: Name of the spec; default: the wish's.
        header: Further lines of the comment that it begins with.

    Raises:
        UsageError: There is no such network; the message says which there are.
    """
    family = FAMILIES[wish.family]
    comments = {"validation": "training images held out, by which the best weights are chosen"}
    if wish.is_large:
        values = _large_spec(wish, family)
        comments["num_classes"] = "as many as there are folders of training images"
        comments["dataset"] = "in the folder that --data-dir names"
    else:
        kind, count = _blocks(wish, family)
        values = _small_spec(wish, family, kind, count, image_size)
        rule = family.depths[kind]
        comments["stages"] = f"{wish.depth} = {rule.step} * {count} + {rule.outside}"
    values["model"] = {**values["model"], "num_classes": num_classes}
    if wish.shortcut is not None:
        values["model"]["shortcut"] = wish.shortcut
    title = f"{family.title}-{wish.depth}"
    title += "" if wish.width is None else f"-{wish.width}"
    if wish.groups is not None:
        title += f" ({wish.groups} groups, {wish.width_per_group} wide)"
    lines = [
        *(
            f"# {line}".rstrip()
            for line in [f"{title} for {wish.dataset}.", "", f"Source: {family.source}.", *header]
        ),
        f"name: {name or wish.name}",
        *_commented_lines(values, comments),
        "# Checked at each build; `resnet-build validate` prints the line anew.",
    ]
    return "".join(f"{line}\n" for line in lines)


def _commented_lines(
    sections: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str]
) -> Iterator[str]:
    """YAML lines of sections: parts in one line, comments beside their keys."""
    for section, values in sections.items():
        yield f"{section}:"
        for key, value in values.items():
            comment = f" # {comments[key]}" if key in comments else ""
            if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
                yield f"  {key}:{comment}"
                for item in value:
                    yield f"    - {dump_value(item)}"
            else:
                yield f"  {key}: {dump_value(value)}{comment}"


def _small_spec(
    wish: Wish, family: Family, kind: str, count: int, image_size: int
) -> dict[str, Any]:
    """Model, data and train of a network of three stages with ``count`` blocks each."""
    base = _bundled(family.base)["model"]
    stages = [{**stage, "blocks": count} for stage in base["stages"]]
    if wish.width is not None:  # 16, 32 and 64 times the width, as in table 1 of the paper
        for number, stage in enumerate(stages):
            stage["channels"] = 16 * 2**number * wish.width
    prefix = _name_of(base["block"]).removesuffix("basic").removesuffix("bottleneck")
    model = {**base, "block": _block(prefix + kind, wish), "stages": stages}

    is_warmed_up = family.recipe == "he2015" and wish.depth >= _DEEP
    recipe = _bundled("he2015_warmup" if is_warmed_up else family.recipe)
    other = _OTHER_DATA.get(wish.dataset, {})
    allowed = other.get("augment", ("random_crop", "horizontal_flip"))
    augment = [part for part in recipe["data"]["augment"] if _name_of(part) in allowed]
    for number, part in enumerate(augment):
        if isinstance(part, dict):  # a crop, whose padding is scaled from CIFAR's images
            padding = max(1, part["padding"] * image_size // 32)
            augment[number] = {**part, "padding": padding}
    validation = other.get("validation", recipe["data"]["validation"])
    data = {"dataset": wish.dataset, "validation": validation}
    return {
        "model": model,
        "data": {**data, "augment": augment} if augment else data,
        "train": _bundled(other["recipe"])["train"] if other else recipe["train"],
    }


def _large_spec(wish: Wish, family: Family) -> dict[str, Any]:
    """Model, data and train of ImageNet's network of this depth, with the family's changes.

    Raises:
        UsageError: The family has no such network.
    """
    if not family.large_depths:
        others = "`resnet-build list specs` has others for large ones"
        raise UsageError(f"{wish.family} is for small images; {others}")
    if wish.depth not in family.large_depths:
        raise UsageError(_no_such_depth(wish, ", ".join(map(str, family.large_depths))))
    if wish.block is not None:
        raise UsageError(f"{wish.family} takes no --block on {LARGE_IMAGES}: the depth decides")
    base, small = _bundled(f"resnet{wish.depth}"), _bundled(family.base)["model"]
    prefix = "preact_" if _name_of(small["block"]).startswith("preact_") else ""
    model = {**base["model"], "block": _block(prefix + _name_of(base["model"]["block"]), wish)}
    if small["stem"].get("bare"):
        model["stem"] = {**model["stem"], "bare": True}
    model["shortcut"] = "none" if small["shortcut"] == "none" else "projection"
    if "attention" in small:
        model["attention"] = small["attention"]
    return {
        "model": model,
        "data": base["data"],
        "train": {**base["train"], "epochs": family.large_epochs},
    }


def _bundled(name: str) -> dict[str, Any]:
    """Values of a bundled spec or recipe, with what it extends."""
    values: dict[str, Any] = plain(compose(read_document(bundled_file(name))).root)
    return values


def _name_of(part: Any) -> str:
    name: str = part["type"] if isinstance(part, dict) else part
    return name


def _block(kind: str, wish: Wish) -> Any:
    if wish.groups is None:
        return kind
    return {"type": kind, "groups": wish.groups, "width_per_group": wish.width_per_group}


def _blocks(wish: Wish, family: Family) -> tuple[str, int]:
    """Kind of block that makes a depth on small images, and its number in each stage.

    Raises:
        UsageError: None does, or more than one and the choice is not made.
    """
    rules = {kind: rule for kind, rule in family.depths.items() if wish.block in {None, kind}}
    fitting = {kind: count for kind in rules if (count := rules[kind].blocks(wish.depth))}
    if not fitting:
        near = {one for rule in rules.values() for one in rule.around(wish.depth)}
        low, high = sorted(sorted(near, key=lambda one: (abs(one - wish.depth), one))[:2])
        forms = " or ".join(map(str, rules.values()))
        raise UsageError(_no_such_depth(wish, f"{forms}, the nearest {low} and {high}"))
    kind = next(iter(fitting)) if len(fitting) == 1 else _PAPER_BLOCKS.get(wish.depth)
    if kind is None:
        choice = " or ".join(f"--block {kind}" for kind in fitting)
        raise UsageError(f"either block can make {wish.depth} layers: add {choice}")
    return kind, fitting[kind]


def _no_such_depth(wish: Wish, depths: str) -> str:
    return f"no {wish.family} is {wish.depth} layers deep on {wish.dataset}: depths are {depths}"
