"""Conversion of weights: matching, folding, the report and the refusals; all or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_builder import build_from_spec, load_weights
from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.spec.schema import Spec
from resnet_builder.weights.convert import Difference, match
from tests.networks import built, cifar_spec, imagenet_spec, random_images, randomise
from tests.weights.others import SPECS, read_network

RESNET8 = cifar_spec(1, shortcut="projection")
KELLERJORDAN = "kellerjordan-resnet20-a"
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


def with_bias(network: nn.Module, convolution: str, bias: Tensor) -> dict[str, Tensor]:
    return {**network.state_dict(), f"{convolution}.bias": bias}


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


def test_bias_before_a_batch_norm_is_taken_from_its_mean(path: Path) -> None:
    theirs = read_network(KELLERJORDAN).tensors()
    torch.save(theirs, path)
    network = built(SPECS[KELLERJORDAN])
    report = load_weights(network, path)
    assert len(report.folded) == 19
    assert report.folded["conv1.bias"] == "bn1.running_mean"
    assert report.folded["layers3.2.conv2.bias"] == "layer3.2.bn2.running_mean"
    mean = theirs["norm1.running_mean"] - theirs["conv1.bias"]
    assert torch.equal(network.bn1.running_mean, mean)
    assert torch.equal(network.bn1.running_var, theirs["norm1.running_var"])


def test_other_network_is_refused_with_the_first_differences_of_both_sides(path: Path) -> None:
    torch.save(randomised(cifar_spec(2, widths=(8, 16, 32))).state_dict(), path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(built(RESNET8), path)
    first, *lines = str(caught.value).splitlines()
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


def test_differences_have_their_names_beside_ours(path: Path) -> None:
    torch.save(read_network("pycls-resnet20").tensors(), path)
    message = (
        r"layer3\.0\.conv1\.weight: 128 x 32 x 3 x 3 in the network, "
        r"64 x 32 x 3 x 3 in the file \(s3\.b1\.f\.a\.weight\)"
    )
    with pytest.raises(CheckpointError, match=rf"by pycls's names(.|\n)*{message}"):
        load_weights(built(cifar_spec(3, shortcut="pad", widths=(16, 32, 128))), path)


def test_file_of_something_else_is_told_where_names_are_listed(path: Path) -> None:
    torch.save({"features.0.weight": torch.ones(8, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(built(RESNET8), path)
    last = str(caught.value).splitlines()[-1]
    assert last == "  docs/reference/checkpoints.md lists whose names are understood"


def test_nothing_is_changed_by_a_file_that_does_not_fit(path: Path) -> None:
    tensors = randomised(RESNET8, seed=1).state_dict()
    tensors["fc.bias"] = tensors["fc.bias"][:-1].clone()
    torch.save(tensors, path)
    network = randomised(RESNET8)
    before = state(network)
    with pytest.raises(CheckpointError, match=r"fc\.bias: 10 in the network, 9 in the file"):
        load_weights(network, path)
    assert_equal(state(network), before)


@pytest.mark.parametrize("classes", [10, 100])
def test_new_head_is_the_networks_own(classes: int, path: Path) -> None:
    theirs = randomised(cifar_spec(1, shortcut="projection", classes=classes), seed=1)
    torch.save(theirs.state_dict(), path)
    network = randomised(RESNET8)
    before = state(network)
    report = load_weights(network, path, new_head=True)
    assert report.fresh == ("fc.weight", "fc.bias")
    after = state(network)
    for name, tensor in theirs.state_dict().items():
        wanted = before[name] if name.startswith("fc.") else tensor
        assert torch.equal(after[name], wanted), name


def test_other_classes_are_refused_and_the_flag_is_named(path: Path) -> None:
    torch.save(randomised(cifar_spec(1, shortcut="projection", classes=100)).state_dict(), path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(built(RESNET8), path)
    assert str(caught.value).splitlines() == [
        f"{path}: these tensors are not the network's (by torchvision's names):",
        "  fc.weight: 10 x 64 in the network, 100 x 64 in the file",
        "  fc.bias: 10 in the network, 100 in the file",
        "  --new-head (new_head=True) keeps the network's own head instead",
    ]


def test_new_head_needs_a_head(path: Path) -> None:
    network = randomised(RESNET8)
    torch.save(network.state_dict(), path)
    with pytest.raises(UsageError, match="the network has no `fc`"):
        load_weights(network[:-1], path, new_head=True)


def test_missing_tensors_are_kept_only_if_that_is_allowed(path: Path) -> None:
    tensors = randomised(RESNET8, seed=1).state_dict()
    del tensors["layer2.0.conv1.weight"]
    torch.save(tensors, path)
    network = randomised(RESNET8)
    own = network.layer2[0].conv1.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, path, allow_unexpected=True)
    assert str(caught.value).splitlines()[1:] == [
        "  layer2.0.conv1.weight: 32 x 16 x 3 x 3 in the network, nothing in the file"
    ]
    report = load_weights(network, path, allow_missing=True)
    assert report.missing == ("layer2.0.conv1.weight",)
    assert torch.equal(network.layer2[0].conv1.weight, own)
    assert torch.equal(network.conv1.weight, tensors["conv1.weight"])


def test_unexpected_tensors_are_left_out_only_if_that_is_allowed(path: Path) -> None:
    tensors = randomised(RESNET8, seed=1).state_dict()
    torch.save({**tensors, "aux.weight": torch.ones(2, 3)}, path)
    network = randomised(RESNET8)
    with pytest.raises(CheckpointError, match=r"aux\.weight: nothing in the network"):
        load_weights(network, path, allow_missing=True)
    report = load_weights(network, path, allow_unexpected=True)
    assert report.unexpected == ("aux.weight",)
    assert_equal(state(network), tensors)


def test_bias_that_no_batch_norm_follows_is_refused(path: Path) -> None:
    torch.save(read_network(KELLERJORDAN).tensors(), path)
    spec = cifar_spec(3, shortcut="pad", norm={"type": "group_norm", "groups": 4})
    with pytest.raises(CheckpointError) as caught:
        load_weights(built(spec), path, allow_unexpected=True)
    text = str(caught.value)
    assert "no part has a biased convolution, and no batch norm follows that could take" in text
    assert text.count("conv") - 1 == 19


def test_memory_format_and_precision_are_the_networks(path: Path) -> None:
    wanted = randomised(RESNET8, seed=1).state_dict()
    torch.save(wanted, path)
    network = randomised(RESNET8).to(torch.bfloat16).to(memory_format=torch.channels_last)
    weight = network.layer1[0].conv1.weight
    load_weights(network, str(path))
    assert network.layer1[0].conv1.weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, wanted["layer1.0.conv1.weight"].bfloat16())


def test_network_on_meta_is_refused(path: Path) -> None:
    torch.save(randomised(RESNET8).state_dict(), path)
    with pytest.raises(UsageError, match="no memory"):
        load_weights(built(RESNET8).to("meta"), path)


def test_linear_layers_and_1x1_convolutions_stand_for_each_other() -> None:
    network = randomised(cifar_spec(1, widths=(16,), attention="se"))
    theirs = dict(network.state_dict())
    names = ["layer1.0.se.fc1.weight", "layer1.0.se.fc2.weight", "fc.weight"]
    for name in names[:2]:
        theirs[name] = theirs[name].flatten(1)
    theirs["fc.weight"] = theirs["fc.weight"][..., None, None]
    found = match(theirs, network)
    assert found.reshaped == names
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.tensors[name], tensor)


@pytest.mark.parametrize(
    ("name", "other", "shapes"),
    [
        ("layer1.0.conv1.weight", torch.ones(4, 4, 1, 1), ("4 x 4 x 3 x 3", "4 x 4 x 1 x 1")),
        ("layer1.0.conv1.weight", torch.ones(4, 36), ("4 x 4 x 3 x 3", "4 x 36")),
        ("bn1.weight", torch.ones(4, dtype=torch.int8), ("4", "4 of int8")),
    ],
)
def test_tensor_of_another_shape_or_kind_does_not_fit(
    name: str, other: Tensor, shapes: tuple[str, str]
) -> None:
    network = randomised(TINY)
    found = match({**network.state_dict(), name: other}, network)
    assert found.mismatched == [Difference(name, *shapes)]
    assert name not in found.tensors


def test_of_two_tensors_for_one_place_the_second_is_unexpected() -> None:
    network = randomised(TINY)
    theirs = dict(network.state_dict())
    theirs["linear.weight"] = theirs.pop("fc.weight")
    theirs["linear.bias"] = theirs.pop("fc.bias")
    theirs["fc.bias"] = torch.ones(10)
    found = match(theirs, network)
    assert found.sources["fc.bias"] == "linear.bias"
    assert found.unexpected == [Difference("fc.bias", None, "10")]


def test_biased_convolution_gives_the_same_through_the_norms_mean() -> None:
    network = randomised(cifar_spec(1, widths=(4, 8), shortcut="projection"))
    bias = torch.randn(8)
    found = match(with_bias(network, "layer2.0.downsample.0", bias), network)
    assert found.folded == {"layer2.0.downsample.0.bias": "layer2.0.downsample.1.running_mean"}
    biased = randomised(cifar_spec(1, widths=(4, 8), shortcut="projection"))
    convolution = biased.layer2[0].downsample[0]
    convolution.bias = nn.Parameter(bias)
    network.load_state_dict(found.tensors)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), biased.eval()(images))


def test_biases_fold_into_every_norm_of_a_deep_stem_and_into_frozen_ones() -> None:
    network = randomised(
        cifar_spec(1, widths=(4,), stem={"type": "deep", "channels": 4}, norm="frozen_batch_norm")
    )
    theirs = dict(network.state_dict())
    for number, width in ((0, 32), (3, 32), (6, 4)):
        theirs[f"conv1.{number}.bias"] = torch.ones(width)
    theirs["conv1.1.num_batches_tracked"] = torch.tensor(7)
    found = match(theirs, network)
    assert found.folded == {
        "conv1.0.bias": "conv1.1.running_mean",
        "conv1.3.bias": "conv1.4.running_mean",
        "conv1.6.bias": "bn1.running_mean",
    }
    assert found.uncounted == ["conv1.1.num_batches_tracked"]
    assert found.unexpected == []


def test_bias_is_not_folded_where_its_convolution_feeds_more_than_a_norm() -> None:
    bare = {"type": "conv3x3", "channels": 4, "bare": True}
    network = randomised(cifar_spec(1, widths=(4,), stem=bare, block="preact_basic"))
    theirs = with_bias(network, "conv1", torch.ones(4))
    theirs["layer1.0.conv1.bias"] = torch.ones(4)
    theirs["layer1.0.conv2.bias"] = torch.ones(4)
    found = match(theirs, network)
    assert found.unfoldable == ["conv1.bias", "layer1.0.conv2.bias"]
    assert found.folded == {"layer1.0.conv1.bias": "layer1.0.bn2.running_mean"}


def test_bias_whose_mean_is_missing_is_unexpected() -> None:
    network = randomised(TINY)
    theirs = with_bias(network, "conv1", torch.ones(4))
    del theirs["bn1.running_mean"]
    found = match(theirs, network)
    assert found.missing == [Difference("bn1.running_mean", "4", None)]
    assert found.unexpected == [Difference("conv1.bias", None, "4")]
