"""Conversion of weights: matching, folding, the report and the refusals; all or nothing."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from resnet_builder import build_from_spec, load_weights
from resnet_builder.errors import CheckpointError, UsageError, counted
from resnet_builder.spec.schema import Spec
from resnet_builder.weights.channels import adapt_statistics
from tests.networks import built, cifar_spec, imagenet_spec, random_images, randomise
from tests.weights.others import read_network

RESNET8 = cifar_spec(1, shortcut="projection")
TINY = cifar_spec(1, widths=(4,))


def randomised(spec: Spec, seed: int = 0) -> Any:
    network = built(spec)
    randomise(network, seed)
    return network


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def refusal(network: nn.Module, path: Path, theirs: Any = None, **options: bool) -> list[str]:
    """Return the lines of the error for a file that is not for a network, which stays the same."""
    if theirs is not None:
        torch.save(theirs, path)
    before = state(network)
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, path, **options)
    assert_equal(state(network), before)
    return str(caught.value).splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def test_weights_go_from_torchvision_to_ours_and_back_unchanged(path: Path) -> None:
    theirs = torchvision.models.resnet18()
    randomise(theirs)
    torch.save(theirs.state_dict(), path)
    ours = built(imagenet_spec((2, 2, 2, 2), "basic"))
    report = load_weights(ours, path)
    assert (report.layout, len(report.matched), report.renamed) == ("torchvision", 122, {})
    assert_equal(state(ours), state(theirs))
    again = torchvision.models.resnet18()
    again.load_state_dict(ours.state_dict())
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), theirs.eval()(images))


def test_old_file_in_wrappers_is_read_and_what_it_lacks_is_told(path: Path) -> None:
    theirs = read_network("akamaster-resnet20").tensors()
    old = {
        f"module.{name}": tensor
        for name, tensor in theirs.items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": old, "best_prec1": 91.7}, path)
    network = build_from_spec("resnet20")
    report = load_weights(network, path)
    assert (report.layout, report.wrappers) == ("akamaster", ("state_dict", "module."))
    assert report.ignored == ("best_prec1",)
    assert report.renamed == {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
    assert len(report.matched) == 95
    assert len(report.uncounted) == 19
    assert "bn1.num_batches_tracked" in report.uncounted
    assert torch.equal(network.state_dict()["fc.bias"], theirs["linear.bias"])


def test_other_network_is_refused_with_the_first_differences_of_both_sides(path: Path) -> None:
    theirs = randomised(cifar_spec(2, widths=(8, 16, 32))).state_dict()
    first, *lines = refusal(built(RESNET8), path, theirs)
    assert first == f"{path}: these tensors are not the network's (by torchvision's names):"
    assert lines[:2] == [
        "  conv1.weight: 16 x 3 x 3 x 3 in the network, 8 x 3 x 3 x 3 in the file",
        "  bn1.weight: 16 in the network, 8 in the file",
    ]
    assert lines[5:] == [
        "  layer1.1.conv1.weight: nothing in the network, 8 x 8 x 3 x 3 in the file",
        "  layer1.1.bn1.weight: nothing in the network, 8 in the file",
        "  layer1.1.bn1.bias: nothing in the network, 8 in the file",
        "  layer1.1.bn1.running_mean: nothing in the network, 8 in the file",
        "  layer1.1.bn1.running_var: nothing in the network, 8 in the file",
        "  and 72 more",
    ]


@pytest.mark.parametrize("classes", [10, 100])
def test_new_head_is_the_networks_own(classes: int, path: Path) -> None:
    theirs = randomised(cifar_spec(1, shortcut="projection", classes=classes), seed=1)
    torch.save(theirs.state_dict(), path)
    network = randomised(RESNET8)
    before = state(network)
    report = load_weights(network, path, new_head=True)
    assert report.fresh == ["fc.weight", "fc.bias"]
    after = state(network)
    for name, tensor in theirs.state_dict().items():
        wanted = before[name] if name.startswith("fc.") else tensor
        assert torch.equal(after[name], wanted), name


def test_new_head_needs_a_head_and_weights_a_network_with_memory(path: Path) -> None:
    network = randomised(RESNET8)
    torch.save(network.state_dict(), path)
    with pytest.raises(UsageError, match="the network has no `fc`"):
        load_weights(network[:-1], path, new_head=True)
    with pytest.raises(UsageError, match="no memory"):
        load_weights(built(RESNET8).to("meta"), path)


def test_memory_format_and_precision_are_the_networks(path: Path) -> None:
    wanted = randomised(RESNET8, seed=1).state_dict()
    torch.save(wanted, path)
    network = randomised(RESNET8).to(torch.bfloat16).to(memory_format=torch.channels_last)
    weight = network.layer1[0].conv1.weight
    load_weights(network, str(path))
    assert network.layer1[0].conv1.weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, wanted["layer1.0.conv1.weight"].bfloat16())


def test_linear_layers_and_1x1_convolutions_stand_for_each_other(path: Path) -> None:
    network = randomised(cifar_spec(1, widths=(16,), attention="se"))
    wanted = state(network)
    names = ["layer1.0.se.fc1.weight", "layer1.0.se.fc2.weight", "fc.weight"]
    theirs = {**wanted, "fc.weight": wanted["fc.weight"][..., None, None]}
    theirs |= {name: wanted[name].flatten(1) for name in names[:2]}
    torch.save(theirs, path)
    randomise(network, seed=1)
    assert load_weights(network, path).reshaped == names
    assert_equal(state(network), wanted)


@pytest.mark.parametrize(
    ("name", "other", "difference"),
    [
        ("fc.bias", torch.ones(9), "10 in the network, 9 in the file"),
        (
            "layer1.0.conv1.weight",
            torch.ones(4, 4, 1, 1),
            "4 x 4 x 3 x 3 in the network, 4 x 4 x 1 x 1 in the file",
        ),
        (
            "layer1.0.conv1.weight",
            torch.ones(4, 36),
            "4 x 4 x 3 x 3 in the network, 4 x 36 in the file",
        ),
        (
            "bn1.weight",
            torch.ones(4, dtype=torch.int8),
            "4 in the network, 4 of int8 in the file",
        ),
    ],
)
def test_tensor_of_another_shape_or_kind_is_refused(
    name: str, other: Tensor, difference: str, path: Path
) -> None:
    network = randomised(TINY)
    theirs = {**state(network), name: other}
    lines = refusal(network, path, theirs, allow_missing=True, allow_unexpected=True)
    assert lines[1] == f"  {name}: {difference}"


def test_of_two_tensors_for_one_place_the_second_is_unexpected(path: Path) -> None:
    network = randomised(TINY)
    theirs = state(network)
    theirs["linear.weight"], theirs["linear.bias"] = theirs.pop("fc.weight"), theirs.pop("fc.bias")
    theirs["fc.bias"] = torch.ones(10)
    torch.save(theirs, path)
    report = load_weights(network, path, allow_unexpected=True)
    assert report.renamed["linear.bias"] == "fc.bias"
    assert report.unexpected == ["fc.bias"]


# Other classes, other names, other networks.

HEADS: dict[str, dict[str, str]] = {
    "a dropout before it": {"fc.1": "fc"},
    "classifier": {"classifier": "fc"},
    "last_linear": {"last_linear": "fc"},
    "head": {"head": "fc"},
    "deeper": {"head.layers.classifier.3": "fc"},
    "beside an encoder": {"encoder.": "", "classifier.1": "fc"},
    "in an encoder": {"encoder.": "", "encoder.x": "fc"},
}
"""Names of a head in other programs, and what else is renamed."""


def rename(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Give layers of ours their other names; ``""`` stands for all others."""
    found = {}
    for key, tensor in tensors.items():
        layer, _, tensor_name = key.rpartition(".")
        theirs = next((name for name, ours in names.items() if ours == layer), None)
        other = next((prefix for prefix, ours in names.items() if ours == ""), "")
        found[f"{theirs}.{tensor_name}" if theirs else f"{other}{key}"] = tensor
    return found


@pytest.mark.parametrize("order", ["of the network", "of the alphabet"])
@pytest.mark.parametrize("name", HEADS)
def test_head_of_any_name_is_found_or_left_out_for_a_new_one(
    name: str, order: str, path: Path
) -> None:
    wanted = state(randomised(RESNET8, seed=1))
    theirs = rename(wanted, HEADS[name])
    if order == "of the alphabet":
        theirs = dict(sorted(theirs.items()))
    torch.save(theirs, path)
    network = randomised(RESNET8)
    own = network.fc.weight.clone()
    report = load_weights(network, path, new_head=True)
    assert report.fresh == ["fc.weight", "fc.bias"]
    assert torch.equal(network.fc.weight, own)
    report = load_weights(network, path)
    assert "fc.weight" in report.renamed.values()
    assert_equal(state(network), wanted)


def test_head_of_several_layers_is_left_out_for_a_new_one(path: Path) -> None:
    network = randomised(RESNET8)
    theirs = state(network)
    del theirs["fc.weight"], theirs["fc.bias"]
    theirs |= {"head.0.weight": torch.ones(32, 64), "head.0.bias": torch.ones(32)}
    theirs |= {"head.1.weight": torch.ones(32), "head.1.running_mean": torch.ones(32)}
    theirs |= {"head.3.weight": torch.ones(5, 32), "head.3.bias": torch.ones(5)}
    lines = refusal(network, path, theirs)
    assert lines[1] == "  fc.weight: 10 x 64 in the network, 5 x 32 in the file (head.3.weight)"
    assert "  head.0.weight: nothing in the network, 32 x 64 in the file" in lines
    assert load_weights(network, path, new_head=True).unexpected == []


def test_other_classes_are_refused_and_the_way_round_is_named(path: Path) -> None:
    theirs = state(randomised(cifar_spec(1, shortcut="projection", classes=100)))
    assert refusal(built(RESNET8), path, rename(theirs, {"classifier": "fc"})) == [
        f"{path}: these tensors are not the network's (by torchvision's names):",
        "  fc.weight: 10 x 64 in the network, 100 x 64 in the file (classifier.weight)",
        "  fc.bias: 10 in the network, 100 in the file (classifier.bias)",
        "for other classes than the file's, take a new head: --new-head, new_head=True, or "
        "`new_head: true` in `model.weights`",
    ]


def test_file_without_a_head_needs_a_new_one(path: Path) -> None:
    network = randomised(RESNET8)
    theirs = {name: one for name, one in state(network).items() if not name.startswith("fc.")}
    lines = refusal(network, path, theirs)
    assert lines[1] == "  fc.weight: 10 x 64 in the network, nothing in the file"
    assert "take a new head: --new-head" in lines[-1]
    assert load_weights(network, path, new_head=True).missing == []


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (4, 3)])
def test_other_channels_are_refused_and_named(theirs: int, ours: int, path: Path) -> None:
    model: dict[str, Any] = {"widths": (4,), "stem": {"type": "conv3x3", "channels": 4}}
    given = state(built(cifar_spec(1, in_channels=theirs, **model)))
    lines = refusal(built(cifar_spec(1, in_channels=ours, **model)), path, given)
    assert lines[-1] == (
        f"the file is for images of {counted(theirs, 'channel')}: set model.in_channels={theirs}"
        + (" and add `to_rgb` to data.preprocess," if theirs == 3 else ",")
        + " or adapt the first convolution: --adapt-channels, adapt_channels=True, or "
        "`adapt_channels: true` in `model.weights`"
    )


def test_other_channels_and_other_classes_are_named_together(path: Path) -> None:
    model: dict[str, Any] = {"widths": (4,), "stem": {"type": "conv3x3", "channels": 4}}
    given = state(built(cifar_spec(1, classes=1000, **model)))
    lines = refusal(built(cifar_spec(1, in_channels=1, **model)), path, given)
    assert "to_rgb" in lines[-2]
    assert "take a new head" in lines[-1]


@pytest.mark.parametrize("stem", ["conv3x3", "conv1x1", "conv7x7_maxpool", "deep"])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 4), (3, 2), (1, 3), (4, 3)])
def test_first_convolution_is_adapted_to_other_channels(
    stem: str, before: int, after: int, path: Path
) -> None:
    model: dict[str, Any] = {"widths": (4,), "stem": {"type": stem, "channels": 4}}
    theirs = randomised(cifar_spec(1, in_channels=before, **model)).eval()
    ours = built(cifar_spec(1, in_channels=after, **model)).eval()
    torch.save(state(theirs), path)
    report = load_weights(ours, path, adapt_channels=True)
    (name,) = report.adapted
    assert name == ("conv1.0.weight" if stem == "deep" else "conv1.weight")
    assert ours.state_dict()[name].shape[1] == after
    if before == 3:
        wanted = timm.models.adapt_input_conv(after, theirs.state_dict()[name])
        torch.testing.assert_close(ours.state_dict()[name], wanted)
    # Images whose channels are equal have the same logits as before.
    grey = torch.randn(2, 1, 32, 32)
    if after == 1 or after % before == 0:
        with torch.no_grad():
            logits, wanted = (
                ours(grey.expand(-1, after, -1, -1)),
                theirs(grey.expand(-1, before, -1, -1)),
            )
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    assert load_weights(theirs, path, adapt_channels=True).adapted == []


@pytest.mark.parametrize("before", [1, 3, 4])
def test_statistics_are_adapted_like_the_weights(before: int) -> None:
    values = (0.2, 0.4, 0.6, 0.8)[:before]
    equal = [pytest.approx((0.5,) * channels) for channels in (1, 2, 3, 4)]
    assert [adapt_statistics((0.5,) * before, channels) for channels in (1, 2, 3, 4)] == equal
    assert adapt_statistics(values, 5)[:before] == values
    if before == 3:
        assert adapt_statistics(values, 1) == pytest.approx(
            (0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6,)
        )


def junk() -> dict[str, Tensor]:
    return {f"blocks.{n}.conv.weight": torch.ones(8, 8, 3, 3) for n in range(9)}


@pytest.mark.parametrize(
    "theirs",
    [
        junk(),
        {**junk(), "head.weight": torch.ones(10, 64), "head.bias": torch.ones(10)},
        {"fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)},
        {"bn1.weight": torch.ones(16), "bn1.num_batches_tracked": torch.tensor(3)},
        {**junk(), "conv1.weight": torch.ones(16, 3, 3, 3)},
        {"layer1.0.conv1.bias": torch.ones(16)},
    ],
    ids=["other names", "a head", "a head alone", "a norm alone", "one layer of ten", "a bias"],
)
@pytest.mark.parametrize("new_head", [True, False])
def test_file_in_which_next_to_nothing_matches_is_refused_whatever_is_allowed(
    theirs: dict[str, Tensor], new_head: bool, path: Path
) -> None:
    options = {"allow_missing": True, "allow_unexpected": True, "new_head": new_head}
    lines = refusal(built(RESNET8), path, theirs, **options)
    assert lines[0].startswith(f"{path}: it holds other weights, or names of no known codebase")


def test_names_of_no_known_codebase_are_told_with_the_networks(path: Path) -> None:
    theirs = {**junk(), "conv1.weight": torch.ones(4, 3, 3, 3), "scale": torch.ones(1)}
    lines = refusal(built(TINY), path, theirs)
    assert lines == [
        f"{path}: it holds other weights, or names of no known codebase; by torchvision's names, "
        "the nearest, 1 of its 11 layers have a place in the network",
        "  in the file, without a place: blocks.*.conv (9), scale",
        "  in the network: layer*.*.conv* (2), layer*.*.bn* (2), conv*, bn*, fc",
        "docs/reference/checkpoints.md lists the codebases and their names",
    ]


@pytest.mark.parametrize(("theirs", "ours"), [(1, 3), (3, 1)], ids=["shallower", "deeper"])
def test_some_layers_of_another_depth_are_taken_if_that_is_allowed(
    theirs: int, ours: int, path: Path
) -> None:
    given = state(randomised(cifar_spec(theirs), seed=1))
    torch.save(given, path)
    network = randomised(cifar_spec(ours))
    report = load_weights(network, path, allow_missing=True, allow_unexpected=True)
    assert bool(report.missing) == (theirs < ours)
    assert bool(report.unexpected) == (theirs > ours)
    assert torch.equal(network.layer3[0].conv1.weight, given["layer3.0.conv1.weight"])


# Biases of convolutions.


def test_biased_convolution_gives_the_same_through_the_norms_mean(path: Path) -> None:
    spec = cifar_spec(1, widths=(4, 8), shortcut="projection")
    network, biased = randomised(spec), randomised(spec)
    biased.layer2[0].downsample[0].bias = nn.Parameter(torch.randn(8))
    torch.save(biased.state_dict(), path)
    report = load_weights(network, path)
    assert report.folded == {"layer2.0.downsample.0.bias": "layer2.0.downsample.1.running_mean"}
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), biased.eval()(images))


def test_biases_fold_into_every_norm_of_a_deep_stem_and_into_frozen_ones(path: Path) -> None:
    network = randomised(
        cifar_spec(1, widths=(4,), stem={"type": "deep", "channels": 4}, norm="frozen_batch_norm")
    )
    theirs = state(network)
    for number, width in ((0, 32), (3, 32), (6, 4)):
        theirs[f"conv1.{number}.bias"] = torch.ones(width)
    theirs["conv1.1.num_batches_tracked"] = torch.tensor(7)
    torch.save(theirs, path)
    report = load_weights(network, path)
    assert report.folded == {
        "conv1.0.bias": "conv1.1.running_mean",
        "conv1.3.bias": "conv1.4.running_mean",
        "conv1.6.bias": "bn1.running_mean",
    }
    assert report.uncounted == ["conv1.1.num_batches_tracked"]


@pytest.mark.parametrize(
    ("model", "biases"),
    [
        # The output of these two goes to more than a norm.
        (
            {
                "stem": {"type": "conv3x3", "channels": 4, "bare": True},
                "block": "preact_basic",
            },
            ("conv1.bias", "layer1.0.conv2.bias"),
        ),
        (
            {"norm": {"type": "group_norm", "groups": 4}},
            ("conv1.bias", "layer1.0.conv1.bias", "layer1.0.conv2.bias"),
        ),
    ],
    ids=["preact", "group_norm"],
)
def test_bias_that_no_batch_norm_can_take_in_is_refused(
    model: dict[str, Any], biases: tuple[str, ...], path: Path
) -> None:
    network = randomised(cifar_spec(1, widths=(4,), **model))
    all_biases = ("conv1.bias", "layer1.0.conv1.bias", "layer1.0.conv2.bias")
    theirs = {**state(network), **dict.fromkeys(all_biases, torch.ones(4))}
    (line,) = refusal(network, path, theirs, allow_unexpected=True)
    assert line == (
        f"{path}: no part has a biased convolution, and no batch norm follows that could take in "
        f"the bias of {', '.join(biases)}"
    )


def test_bias_whose_mean_is_missing_is_unexpected(path: Path) -> None:
    network = randomised(TINY)
    theirs = {**state(network), "conv1.bias": torch.ones(4)}
    del theirs["bn1.running_mean"]
    assert refusal(network, path, theirs)[1:] == [
        "  bn1.running_mean: 4 in the network, nothing in the file",
        "  conv1.bias: nothing in the network, 4 in the file",
        "`resnet-build import` with --allow-missing and --allow-unexpected converts the file all "
        "the same; the network then computes something else than the file's did",
    ]
