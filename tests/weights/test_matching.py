"""Finding a place for each of a file's tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.weights.layouts import LAYOUTS, Layout, recognise
from resnet_builder.weights.matching import Difference, match
from tests.networks import built, cifar_spec, randomise
from tests.weights.others import SPECS, read_facts

TINY = cifar_spec(1, widths=(4,))


def randomised(spec: Any = TINY) -> Any:
    network = built(spec)
    randomise(network)
    return network


def with_bias(network: nn.Module, convolution: str, bias: Tensor) -> dict[str, Tensor]:
    return {**network.state_dict(), f"{convolution}.bias": bias}


def test_layouts_have_different_names() -> None:
    names = [layout.name for layout in LAYOUTS]
    assert len(set(names)) == len(names) == 11


def test_stages_and_blocks_are_renumbered() -> None:
    layout = Layout(
        "theirs",
        {"s{stage}.b{block}.n{number}": ("absent", "layer{stage}.{block}.bn{number}")},
        first_stage=0,
        first_block=1,
        prefix="net.",
    )
    assert layout.translate("s2.b10.n3", {"layer3.9.bn3"}) == "layer3.9.bn3"
    assert layout.translate("net.s2.b10.n3", {"layer3.9.bn3"}) == "layer3.9.bn3"
    assert layout.translate("s2.b10.n3", {"layer3.10.bn3"}) is None
    assert layout.translate("s2.b10.n3.conv", {"layer3.9.bn3"}) is None
    assert layout.translate("fc", {"fc"}) == "fc"
    assert layout.translate("linear", {"fc"}) is None


def test_own_names_are_taken_for_torchvision_s() -> None:
    layers = ["conv1", "layer1.0.anything", "fc"]
    assert recognise(layers, layers).name == "torchvision"


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
    "shape",
    [(4, 4, 1, 1), (4, 4, 3), (4, 36), (36, 4)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_other_shapes_of_the_same_size_do_not_fit(shape: tuple[int, ...]) -> None:
    network = randomised()
    name = "layer1.0.conv1.weight"
    found = match({**network.state_dict(), name: torch.ones(shape)}, network)
    theirs = " x ".join(map(str, shape))
    assert found.mismatched == [Difference(name, "4 x 4 x 3 x 3", theirs)]
    assert name not in found.tensors


def test_whole_numbers_do_not_stand_for_real_ones() -> None:
    network = randomised()
    found = match({**network.state_dict(), "bn1.weight": torch.ones(4, dtype=torch.int8)}, network)
    assert [str(one) for one in found.mismatched] == [
        "bn1.weight: 4 in the network, 4 of int8 in the file"
    ]


def test_of_two_tensors_for_one_place_the_second_is_unexpected() -> None:
    network = randomised()
    theirs = dict(network.state_dict())
    theirs["linear.weight"] = theirs.pop("fc.weight")
    theirs["linear.bias"] = theirs.pop("fc.bias")
    theirs["fc.bias"] = torch.ones(10)
    found = match(theirs, network)
    assert found.sources["fc.bias"] == "linear.bias"
    assert found.unexpected == [Difference("fc.bias", None, "10")]


def test_biased_convolution_gives_the_same_through_the_norm_s_mean() -> None:
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


class Deciding(nn.Module):
    """A layer around another that looks at its input's numbers, which no tracer can follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        return self.inner(x) if x.sum() > 0 else x


def test_bias_is_not_folded_in_a_network_that_cannot_be_followed() -> None:
    network = randomised()
    network.relu = Deciding(nn.ReLU())
    found = match(with_bias(network, "conv1", torch.ones(4)), network)
    assert (found.unfoldable, found.folded) == (["conv1.bias"], {})


def test_bias_whose_mean_is_missing_is_unexpected() -> None:
    network = randomised()
    theirs = with_bias(network, "conv1", torch.ones(4))
    del theirs["bn1.running_mean"]
    found = match(theirs, network)
    assert found.missing == [Difference("bn1.running_mean", "4", None)]
    assert found.unexpected == [Difference("conv1.bias", None, "4")]


def test_mmpretrain_s_names_are_known_without_the_backbone_s_prefix() -> None:
    name = "mmpretrain-resnet18_cifar"
    theirs = {key.removeprefix("backbone."): one for key, one in read_facts(name).tensors().items()}
    found = match(theirs, built(SPECS[name]))
    assert found.layout.name == "mmpretrain"
    assert len(found.tensors) == len(theirs)
