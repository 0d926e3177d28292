"""Published counts, exactly (He et al. 2015; closed forms by arithmetic over the layers)."""

import random

import pytest

from resnet_builder.builder import build_on_meta
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.parts import resolve
from resnet_builder.spec.load import load_spec
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
    network = build_on_meta(model)
    return count_parameters(network), count_macs(network, model.image_shape), network.depth


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize(
    "blocks", [pytest.param(one, marks=pytest.mark.slow if one == 200 else []) for one in CIFAR]
)
def test_cifar_network_has_the_published_counts(blocks: int, option: str) -> None:
    which = "ABC".index(option)
    wanted = (CIFAR[blocks][which], CIFAR[blocks][3 + which], 6 * blocks + 2)
    assert counts(cifar_spec(blocks, shortcut=OPTIONS[option])) == wanted


def test_cifar_network_follows_the_closed_forms() -> None:
    draw = random.Random(0)
    for _ in range(4):
        n, classes = draw.randint(1, 8), draw.randint(2, 200)
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
def test_imagenet_network_has_the_published_counts(depth: str, option: str) -> None:
    blocks, block, parameters, macs = IMAGENET[depth]
    found = counts(imagenet_spec(blocks, block, shortcut=OPTIONS[option]))
    assert (found[0], found[2]) == (parameters["ABC".index(option)], int(depth))
    assert found[1] == macs or option != "B"


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


def test_counts_of_another_geometry_are_those_made_by_hand() -> None:
    stem = {"type": "conv", "channels": 8, "kernel_size": 5, "stride": 2}
    stages = [{"channels": 8, "blocks": 2, "dilation": 3}]
    block = {"type": "bottleneck", "expansion": 2}
    spec = cifar_spec(stem=stem, block=block, stages=stages, shortcut="projection")
    # Weights of the convolutions in order, and the scales and shifts of their norms.
    first, second = (8 * 8, 8 * 8 * 9, 8 * 16, 8 * 16), (16 * 8, 8 * 8 * 9, 8 * 16)
    convolutions = 3 * 8 * 25 + sum(first) + sum(second)
    norms = 2 * (8 + 8 + 8 + 16 + 16 + 8 + 8 + 16)
    assert convolutions + norms + 16 * 10 + 10 == 2_674
    assert 16 * 16 * convolutions + 16 * 10 == 596_128
    assert counts(spec) == (2_674, 596_128, 1 + 3 + 3 + 1)


# Of the specs' papers, and by arithmetic where they round: what is changed, parameters, MACs.
DESCENDANTS: list[tuple[str, dict[str, object], int, int | None]] = [
    ("preact110", {"shortcut": "pad"}, 1_727_962, 252_887_680),
    ("preact110", {}, 1_730_522, 253_149_824),
    ("preact110", {"shortcut": "projection_all"}, 1_822_170, None),
    ("preact164", {}, 1_703_258, 247_646_720),
    ("preact164", {"shortcut": "pad"}, 1_661_274, None),
    ("preact164", {"num_classes": 100}, 1_726_388, None),
    ("preact1001", {}, 10_327_706, 1_490_995_712),
    ("preact1001", {"shortcut": "pad"}, 10_285_722, None),
    ("preact1001", {"num_classes": 100}, 10_350_836, None),
    ("wrn16_8", {}, 10_961_370, 1_548_145_664),
    ("wrn16_8", {"num_classes": 100}, 11_007_540, None),
    ("wrn28_10", {}, 36_479_194, 5_243_328_768),
    ("wrn28_10", {"num_classes": 100}, 36_536_884, None),
    ("wrn40_4", {}, 8_949_210, 1_298_582_016),
    ("wrn40_4", {"num_classes": 100}, 8_972_340, None),
    ("resnext29_8x64d", {}, 34_426_698, 5_387_266_048),
    ("resnext29_8x64d", {"num_classes": 100}, 34_518_948, None),
    ("resnext29_16x64d", {}, 68_155_210, 10_688_866_304),
    ("resnext29_16x64d", {"num_classes": 100}, 68_247_460, None),
    ("resnext29_8x64d", {"block.groups": 32, "block.width_per_group": 4}, 4_775_754, None),
    ("seresnet110", {}, 1_742_200, 252_899_776),
    ("seresnet110", {"shortcut": "projection"}, 1_744_952, 253_161_920),
    ("resnext50_32x4d", {}, 25_028_904, 4_230_479_872),
    ("resnext101_32x8d", {}, 88_791_336, 16_414_015_488),
    ("wide_resnet50_2", {}, 68_883_240, 11_398_021_120),
    ("wide_resnet101_2", {}, 126_886_696, 22_753_050_624),
    ("resnet50d", {}, 25_576_264, 4_328_824_832),
    ("resnet101d", {}, 44_568_392, None),
    ("resnet101d", {"stages.1.blocks": 8, "stages.2.blocks": 36}, 60_212_040, None),
    ("resnet18", {"stem": "deep", "shortcut": "average_projection"}, 11_708_744, None),
    ("seresnet50", {}, 28_088_024, None),
]


@pytest.mark.parametrize(("name", "changes", "parameters", "macs"), DESCENDANTS)
def test_descendant_has_the_published_counts(
    name: str, changes: dict[str, object], parameters: int, macs: int | None
) -> None:
    if not changes:  # tests/specs builds each spec, and counts what it expects
        expect = load_spec(name).expect
        assert expect is not None
        assert (expect.parameters, macs or expect.macs) == (parameters, expect.macs)
        return
    # The dataset says how many classes there are; without it the network may have any number.
    overrides = ["data=null", *(f"model.{key}={value}" for key, value in changes.items())]
    spec = load_spec(name, overrides=[*overrides, "train=null"])
    found = counts(spec)
    assert found[:2] == (parameters, macs or found[1])


def test_wide_network_follows_the_closed_form() -> None:
    draw = random.Random(0)
    for _ in range(4):
        n, k, classes = draw.randint(1, 4), draw.randint(2, 8), draw.randint(2, 200)
        spec = cifar_spec(
            n,
            shortcut="projection",
            classes=classes,
            widths=(16 * k, 32 * k, 64 * k),
            stem={"type": "conv3x3", "channels": 16, "bare": True},
            block="preact_basic",
        )
        a = 16 * k
        wanted = 464 + (378 * (n - 1) + 289) * a**2 + (28 * (n - 1) + 188) * a
        wanted += 4 * a * classes + classes
        assert counts(spec)[::2] == (wanted, 6 * n + 2), (n, k, classes)
