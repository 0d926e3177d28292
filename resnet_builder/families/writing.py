"""The text of a new spec: a network, its paper's recipe as far as it suits the data, comments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from resnet_builder.data.interfaces import DATASETS, DatasetInfo
from resnet_builder.errors import RegistryError, UsageError
from resnet_builder.families.networks import (
    LARGE_SIZE,
    PICTURES,
    Wish,
    blocks,
    default_name,
    family_of,
    large_model,
    small_model,
)
from resnet_builder.families.table import Family
from resnet_builder.parts import MODEL_PARTS
from resnet_builder.spec.bundled import bundled_file
from resnet_builder.spec.commented import commented_spec
from resnet_builder.spec.layers import read_layers
from resnet_builder.spec.plain import plain

IMAGENET = DatasetInfo(num_classes=1000, channels=3, image_size=LARGE_SIZE)

_EXPECT = "Checked at each build; `resnet-build validate --expect` measures it anew."

_DEEP = 110
"""Layers from which on He et al. 2015 warm up."""


@dataclass(frozen=True, slots=True)
class _Images:
    """What a data set of small images wants otherwise than CIFAR.

    Attributes:
        recipe: The bundled spec that it is trained like; default: the family's recipe.
        validation: Images held out, or a fraction of them.
        augment: The augmentations that leave its images what they are.
    """

    recipe: str | None = None
    validation: float | None = None
    augment: tuple[str, ...] = ("random_crop", "horizontal_flip")


_IMAGES = {
    "digits": _Images("resnet20_digits", 287, augment=("random_crop",)),
    "synthetic": _Images("resnet20_digits", 0.2, augment=()),
}


def new_spec(wish: Wish, *, name: str | None = None, header: Iterable[str] = ()) -> str:
    """Write a spec, but for what it expects: that is measured, and put behind.

    Args:
        wish: What it is to be.
        name: What it is called; default: as :func:`default_name` says.
        header: Further lines of the comment that it begins with.

    Raises:
        UsageError: There is no such network; the message says which there are.
    """
    family = family_of(wish)
    facts = _facts(wish.dataset)
    model = large_model(wish, family) if wish.is_large else small_model(wish, family)
    experiment = _large_experiment(family) if wish.is_large else _small_experiment(wish, family)
    return commented_spec(
        {
            "name": name or default_name(wish),
            "model": {"num_classes": facts.num_classes, **model},
            **experiment,
        },
        header=[f"{_title(wish, family)}.", "", f"Source: {family.source}.", *header],
        beside=_comments(wish, family, model),
        footer=[_EXPECT, *([family.note] if family.note else [])],
    )


def _title(wish: Wish, family: Family) -> str:
    title = f"{family.title}-{wish.depth}"
    if wish.width is not None:
        title += f"-{wish.width}"
    if wish.groups is not None:
        title += f" ({wish.groups} groups, {wish.width_per_group} wide)"
    return f"{title} for {wish.dataset}"


def _facts(dataset: str) -> DatasetInfo:
    """Return what is known of a data set's images.

    Raises:
        UsageError: There is no such data set.
    """
    if dataset == PICTURES:
        return IMAGENET
    try:
        return DATASETS.get(dataset)().info
    except RegistryError as error:
        raise UsageError(f"{error}: one of {', '.join(error.allowed)}") from error


def _small_experiment(wish: Wish, family: Family) -> dict[str, Any]:
    """Return the family's recipe, as far as it suits the data set."""
    images = _IMAGES.get(wish.dataset, _Images())
    deep = {"he2015": "he2015_warmup"} if wish.depth >= _DEEP else {}
    recipe = _bundled(deep.get(family.recipe, family.recipe))
    validation = images.validation or recipe["data"]["validation"]
    augment = [
        {**part, "padding": _padding(part["padding"], wish)} if isinstance(part, dict) else part
        for part in recipe["data"]["augment"]
        if (part["type"] if isinstance(part, dict) else part) in images.augment
    ]
    data = {"dataset": wish.dataset, "validation": validation, "augment": augment}
    return {
        "data": {key: value for key, value in data.items() if value},
        "train": _bundled(images.recipe)["train"] if images.recipe else recipe["train"],
    }


def _padding(pixels: int, wish: Wish) -> int:
    """Scale a crop's padding from CIFAR's images to those of a data set."""
    side = _facts(wish.dataset).image_size
    assert side is not None, "small images are all of one size"
    return max(1, pixels * side // 32)


def _large_experiment(family: Family) -> dict[str, Any]:
    """Return torchvision's first recipe, which its published weights are from."""
    recipe = _bundled("torchvision_v1")
    return {"data": recipe["data"], "train": {**recipe["train"], "epochs": family.large_epochs}}


def _bundled(name: str) -> dict[str, Any]:
    values: dict[str, Any] = plain(read_layers(bundled_file(name)).root)
    return values


def _comments(wish: Wish, family: Family, model: Mapping[str, Any]) -> dict[str, str]:
    """Return what is said beside some keys."""
    documented = [key for key in ("block", "shortcut", "attention") if key in model]
    said = {key: _what(key, model[key]) for key in documented}
    if wish.is_large:
        said["num_classes"] = "as many as there are folders of training images"
        said["dataset"] = "in the folder that --data-dir names"
    else:
        kind, count = blocks(wish, family)
        rule = family.depths[kind]
        said["stages"] = f"{wish.depth} = {rule.step} * {count} + {rule.rest}"
    said["validation"] = "training images held out, by which the best weights are chosen"
    return said


def _what(key: str, part: Any) -> str:
    """Say what a part is, by the first line of its docstring."""
    registry, name = MODEL_PARTS[key], part["type"] if isinstance(part, Mapping) else part
    documented = registry.get(name).__doc__ if name in registry else None
    return (documented or "").partition("\n")[0].replace("``", "`")
