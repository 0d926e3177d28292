"""Published counts, exactly (He et al. 2015; closed forms by arithmetic over the layers)."""

import random

import pytest

from resnet_builder.builder import resolve
from resnet_builder.builder.construct import construct_on_meta
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.spec.schema import Spec
from tests.networks import cifar_spec, imagenet_spec

OPTIONS = {"A": "pad", "B": "projection", "C": "projection_all"}

CIFAR = {
    3: (269_722, 272_474, 283_962, 40_551_040, 40_813_184, 42_648_192),
    5: (464_154, 466_906, 489_594, 68_862_592, 69_124_736, 72_532_608),
    7: (658_586, 661_338, 695_226, 97_174_144, 97_436_288, 102_417_024),
    9: (853_018, 855_770, 900_858, 125_485_696, 125_747_840, 132_301_440),
    18: (1_727_962, 1_730_714, 1_826_202, 252_887_680, 253_149_824, 266_781_312),
    200: (19_421_274, 19_424_026, 20_538_714, 2_829_238_912, 2_829_501_056, 2_986_263_168),
}

IMAGENET = {
    "18": ((2, 2, 2, 2), "basic", (11_515_688, 11_689_512, 12_043_816), 1_814_073_344),
    "34": ((3, 4, 6, 3), "basic", (21_623_848, 21_797_672, 22_716_840), 3_663_761_408),
    "50": ((3, 4, 6, 3), "bottleneck", (22_780_456, 25_557_032, 40_128_552), 4_089_184_256),
    "101": ((3, 4, 23, 3), "bottleneck", (41_772_584, 44_549_160, 76_981_288), 7_801_405_440),
    "152": ((3, 8, 36, 3), "bottleneck", (57_416_232, 60_192_808, 107_335_720), 11_513_626_624),
}

STRIDE_IN_1X1 = {"50": 3_857_973_248, "101": 7_570_194_432, "152": 11_282_415_616}

KUANGLIU = {
    "18": ((2, 2, 2, 2), "basic", 11_173_962),
    "34": ((3, 4, 6, 3), "basic", 21_282_122),
    "50": ((3, 4, 6, 3), "bottleneck", 23_520_842),
    "101": ((3, 4, 23, 3), "bottleneck", 42_512_970),
    "152": ((3, 8, 36, 3), "bottleneck", 58_156_618),
}


def counts(spec: Spec) -> tuple[int, int, int]:
    """Return a spec's parameters, MACs and depth."""
    model = resolve(spec).model
    network = construct_on_meta(model)
    assert model.in_channels
    assert model.image_size
    return (
        count_parameters(network),
        count_macs(network, model.in_channels, model.image_size),
        network.depth,
    )


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("blocks", CIFAR)
def test_cifar_network_has_the_published_counts(blocks: int, option: str) -> None:
    which = "ABC".index(option)
    wanted = (CIFAR[blocks][which], CIFAR[blocks][3 + which], 6 * blocks + 2)
    assert counts(cifar_spec(blocks, shortcut=OPTIONS[option])) == wanted


def test_cifar_network_follows_the_closed_forms() -> None:
    draw = random.Random(0)
    for _ in range(6):
        n, classes = draw.randint(1, 12), draw.randint(2, 200)
        a = 97_216 * n - 22_576 + 65 * classes
        macs_a = 442_368 + 2_359_296 * (6 * n - 1) + 64 * classes
        wanted = {
            "A": (a, macs_a, 6 * n + 2),
            "B": (a + 2_752, macs_a + 262_144, 6 * n + 2),
            "C": (a + 2_752 + 5_600 * n - 5_312, macs_a + 262_144 * (3 * n - 1), 6 * n + 2),
        }
        for option, expected in wanted.items():
            spec = cifar_spec(n, shortcut=OPTIONS[option], classes=classes)
            assert counts(spec) == expected, (n, classes, option)


def test_plain_network_has_option_a_s_counts() -> None:
    assert counts(cifar_spec(9, shortcut="none")) == counts(cifar_spec(9, shortcut="pad"))


@pytest.mark.parametrize("depth", IMAGENET)
@pytest.mark.parametrize("option", "ABC")
def test_imagenet_network_has_the_published_parameters(depth: str, option: str) -> None:
    blocks, block, parameters, _ = IMAGENET[depth]
    found = counts(imagenet_spec(blocks, block, shortcut=OPTIONS[option]))
    assert (found[0], found[2]) == (parameters["ABC".index(option)], int(depth))


@pytest.mark.parametrize("depth", IMAGENET)
def test_imagenet_network_takes_the_published_macs(depth: str) -> None:
    blocks, block, _, macs = IMAGENET[depth]
    assert counts(imagenet_spec(blocks, block))[1] == macs


@pytest.mark.parametrize("depth", STRIDE_IN_1X1)
def test_stride_in_the_first_convolution_takes_the_paper_s_macs(depth: str) -> None:
    blocks, block, parameters, _ = IMAGENET[depth]
    found = counts(imagenet_spec(blocks, {"type": block, "stride_in": "conv1x1"}))
    assert found[:2] == (parameters[1], STRIDE_IN_1X1[depth])


@pytest.mark.parametrize("depth", KUANGLIU)
def test_kuangliu_network_has_its_counts(depth: str) -> None:
    blocks, block, parameters = KUANGLIU[depth]
    spec = cifar_spec(blocks, shortcut="projection", widths=(64, 128, 256, 512), block=block)
    found = counts(spec)
    assert (found[0], found[2]) == (parameters, int(depth))
    if depth == "18":
        assert found[1] == 555_422_720
