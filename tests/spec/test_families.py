"""New specs of the papers' networks."""

import re
from dataclasses import replace
from typing import Any

import pytest

from resnet_builder.builder import check_source
from resnet_builder.data.interfaces import DATASETS
from resnet_builder.errors import UsageError
from resnet_builder.parts import resolve
from resnet_builder.spec.families import LARGE_IMAGES, Wish, new_spec
from resnet_builder.spec.load import load_spec, load_spec_text
from resnet_builder.spec.yaml_source import parse_plain

RESNEXT = Wish("resnext", 29, groups=8, width_per_group=64)


def text_of(wish: Wish) -> str:
    """Return a new spec, as ``init`` makes it."""
    if wish.is_large:
        return new_spec(wish, num_classes=1000)
    info = DATASETS.get(wish.dataset)().info
    assert info.num_classes is not None
    assert isinstance(info.image_size, int)
    return new_spec(wish, num_classes=info.num_classes, image_size=info.image_size)


def values_of(wish: Wish) -> dict[str, Any]:
    data: dict[str, Any] = parse_plain(text_of(wish), "new")
    return data


def large(family: str, depth: int, **more: Any) -> Wish:
    return Wish(family, depth, LARGE_IMAGES, **more)


@pytest.mark.parametrize(
    "wish",
    [
        *(Wish("resnet", depth) for depth in (20, 110)),
        *(large("resnet", depth) for depth in (18, 50)),
        Wish("plain", 20),
        *(Wish("preact", depth) for depth in (110, 164, 1001)),
        Wish("wrn", 16, width=8),
        Wish("wrn", 28, width=10),
        RESNEXT,
        replace(RESNEXT, groups=16),
        large("resnext", 50, groups=32, width_per_group=4),
        Wish("seresnet", 110),
        Wish("resnet", 20, "digits"),
    ],
    ids=lambda wish: wish.name,
)
def test_spec_is_the_bundled_one_of_its_name(wish: Wish) -> None:
    new, bundled = (resolve(one) for one in (load_spec_text(text_of(wish)), load_spec(wish.name)))
    assert new.name == bundled.name
    assert (new.model, new.data, new.train) == (bundled.model, bundled.data, bundled.train)


@pytest.mark.parametrize(
    ("wish", "name"),
    [(large("preact", 50), "resnetv2_50"), (large("seresnet", 50), "seresnet50")],
)
def test_network_is_that_of_a_bundled_spec(wish: Wish, name: str) -> None:
    assert load_spec_text(text_of(wish)).model == load_spec(name).model


# Arithmetic on the papers' networks; those with 10 and 1000 classes agree with other programs.
@pytest.mark.parametrize(
    ("wish", "parameters", "macs"),
    [
        (Wish("resnet", 20, shortcut="projection"), 272_474, 40_813_184),
        (Wish("resnet", 56, "cifar100"), 853_018 + 5_850, 125_485_696 + 90 * 64),
        (Wish("plain", 56), 853_018, 125_485_696),
        (Wish("preact", 110, shortcut="pad"), 1_727_962, 252_887_680),
        (Wish("preact", 164, "cifar100"), 1_726_388, 247_646_720 + 90 * 256),
        (Wish("wrn", 40, "cifar100", width=4), 8_972_340, 1_298_582_016 + 90 * 256),
        (Wish("wrn", 28, "cifar100", width=10), 36_536_884, 5_243_328_768 + 90 * 640),
        (replace(RESNEXT, dataset="cifar100"), 34_518_948, 5_387_266_048 + 90 * 1024),
        (Wish("seresnet", 110, shortcut="projection"), 1_744_952, 253_161_920),
        (large("resnet", 18, shortcut="pad"), 11_515_688, None),
    ],
    ids=lambda value: value.name if isinstance(value, Wish) else "",
)
def test_network_counts_to_what_is_published(wish: Wish, parameters: int, macs: int | None) -> None:
    counts = check_source(values_of(wish), with_forward=True).counts
    assert counts["parameters"] == parameters
    assert counts["depth"] == (wish.depth if wish.family != "wrn" else wish.depth - 2)
    assert macs is None or counts["macs"] == macs


@pytest.mark.parametrize(
    "dataset", sorted({*DATASETS.names()} - {LARGE_IMAGES, "image_table", "cifar10"})
)
def test_networks_fit_every_data_set(dataset: str) -> None:
    wish = Wish("resnet", 8, dataset)
    found = check_source(values_of(wish))
    assert found.problems == ()
    assert found.spec is not None
    assert found.spec.data is not None
    assert found.spec.data.dataset.type == dataset


def test_images_are_augmented_as_they_can_be() -> None:
    for dataset, wanted in {
        "cifar10": [{"type": "random_crop", "padding": 4}, "horizontal_flip"],
        "fashion_mnist": [{"type": "random_crop", "padding": 3}, "horizontal_flip"],
        "digits": [{"type": "random_crop", "padding": 1}],
        "synthetic": [],
    }.items():
        assert values_of(Wish("resnet", 8, dataset))["data"].get("augment", []) == wanted


def test_networks_are_warmed_up_from_110_layers_on() -> None:
    below, deep = (values_of(Wish("resnet", depth))["train"]["schedule"] for depth in (104, 110))
    assert "warmup" not in below
    assert deep["warmup"] == {"type": "constant", "steps": 400, "lr": 0.01}


@pytest.mark.parametrize(
    ("wish", "block"),
    [
        (Wish("preact", 29), "preact_bottleneck"),
        (Wish("preact", 20, block="basic"), "preact_basic"),
        (Wish("preact", 20, block="bottleneck"), "preact_bottleneck"),
        (large("preact", 34), "preact_basic"),
    ],
)
def test_depth_or_wish_chooses_the_block(wish: Wish, block: str) -> None:
    assert values_of(wish)["model"]["block"] == block


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (("resnet", 30), "on cifar10: depths are 6n + 2, the nearest 26 and 32"),
        (("resnet", 2, "digits"), "depths are 6n + 2, the nearest 8 and 14"),
        (("wrn", 26, "cifar10", 2), "depths are 6n + 4, the nearest 22 and 28"),
        (("preact", 30), "depths are 6n + 2 or 9n + 2, the nearest 29 and 32"),
        (("resnet", 20, LARGE_IMAGES), "depths are 18, 34, 50, 101, 152"),
        (("plain", 50, LARGE_IMAGES), "no plain is 50 layers deep on image_folder"),
        (("wrn", 50, LARGE_IMAGES, 2), "wrn is for small images"),
        (("preact", 38), "add --block basic or --block bottleneck"),
        (("wrn", 28), "wrn needs --width"),
        (("resnext", 29), "resnext needs --groups and --width-per-group"),
        (("resnet", 20, "cifar10", 2), "resnet takes no --width"),
        (("vgg", 16), "no family is named 'vgg'; one of resnet, plain, preact"),
        (("res-net", 20), "no family is named 'res-net'; did you mean: resnet"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(wish: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        new_spec(Wish(*wish))
