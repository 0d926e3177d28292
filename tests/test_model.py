"""ResNet: names, slices, copies and depth; its features and output strides."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder import Features, build_from_spec
from resnet_builder.errors import UsageError
from resnet_builder.model import fuse_conv_bn
from tests.networks import built, cifar_spec, random_images, randomise


@pytest.fixture
def network() -> Any:
    return built(cifar_spec(2), seed=0).eval()


def test_layers_have_torchvision_s_names_and_a_slice_gives_features(network: Any) -> None:
    names = [name for name, _ in network.named_children()]
    assert " ".join(names) == "conv1 bn1 relu layer1 layer2 layer3 avgpool flatten fc"
    assert network.layer3[-1] is network[5][1]
    images = random_images(2, 3, 32, 32)
    features = network[:-1]
    assert type(features) is nn.Sequential
    assert torch.equal(network.fc(features(images)), network(images))


def test_copies_compute_the_same(network: Any) -> None:
    """akamaster's lambdas could not be pickled."""
    images = random_images(2, 3, 32, 32)
    wanted = network(images)
    loaded = built(cifar_spec(2), seed=1).eval()
    loaded.load_state_dict(network.state_dict())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert torch.equal(twin(images), wanted)


SCRIPTED: list[dict[str, Any]] = [
    {"shortcut": {"type": "pad", "subsample": "average"}},
    {"shortcut": "none", "activation": "gelu", "norm": "frozen_batch_norm"},
    {"block": "bottleneck", "shortcut": "average_projection", "antialias": "blur"},
    {"block": "preact_basic", "attention": "eca", "drop_path": 0.2},
    {"block": "preact_bottleneck", "shortcut": "projection", "attention": {"type": "se"}},
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("model", SCRIPTED)
@pytest.mark.parametrize("asked", [{}, {"features": ["layer1", "layer2"], "output_stride": 1}])
def test_torch_script_computes_the_same(model: dict[str, Any], asked: dict[str, Any]) -> None:
    spec = cifar_spec(2, widths=(16, 32), **model).model_dump(exclude_none=True)
    network: Any = build_from_spec(spec, seed=0, **asked).eval()
    images = random_images(2, 3, 9, 8)
    torch.testing.assert_close(torch.jit.script(network)(images), network(images))


# Norms that are fused, of two blocks in each of two stages, the stem included.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "basic": ({}, 9),
    "projected": ({"shortcut": "projection_all"}, 13),
    "bottleneck": ({"block": "bottleneck", "shortcut": "projection"}, 15),
    "pre-activated": ({"block": "preact_basic"}, 5),
    "deep": ({"stem": "deep", "shortcut": "average_projection"}, 13),
    "blurred": ({"antialias": "blur", "attention": "eca"}, 9),
}


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_network_gives_the_same_logits_with_fewer_layers(name: str) -> None:
    model, count = NETWORKS[name]
    network = built(cifar_spec(2, widths=(16, 32), **model))
    randomise(network)
    before = copy.deepcopy(network.state_dict())
    images = random_images(2, 3, 33, 31)
    twin = fuse_conv_bn(network)
    assert network.training
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in before.items())
    with torch.no_grad():
        wanted = network.eval()(images)
        found = twin(images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert norms(network) - norms(twin) == count


class Tangled(nn.Module):
    """Network with two convolutions and one norm, which meet in some way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cannot be traced":
            return self.bn(self.conv1(x)) if x.mean() > 0 else x
        if self.kind == "one norm twice":
            return self.bn(self.conv2(self.bn(self.conv1(x))))
        x = self.conv1(x)  # feeds more than its norm
        return x + self.bn(x)


@pytest.mark.parametrize("kind", ["cannot be traced", "one norm twice", "forked"])
def test_norm_that_is_not_of_one_convolution_alone_is_not_fused(kind: str) -> None:
    network = Tangled(kind)
    assert fuse_conv_bn(network) is network


@pytest.mark.parametrize("norm", ["group_norm", "instance_norm", "frozen_batch_norm"])
def test_other_norms_are_not_fused(norm: str) -> None:
    network = built(cifar_spec(1, widths=(32, 64), norm=norm))
    assert fuse_conv_bn(network) is network


SMALL: dict[str, Any] = {
    "name": "small",
    "model": {
        "num_classes": 10,
        "stem": {"type": "conv7x7_maxpool", "channels": 8},
        "block": "basic",
        "shortcut": "projection",
        "stages": [
            {"channels": 8, "blocks": 2},
            {"channels": 16, "blocks": 2, "stride": 2},
            {"channels": 32, "blocks": 2, "stride": 2},
            {"channels": 32, "blocks": 2, "stride": 2},
        ],
    },
}


def small(**model: Any) -> dict[str, Any]:
    return {**SMALL, "model": {**SMALL["model"], **model}}


def test_features_are_the_network_s_own_with_their_widths_and_strides() -> None:
    network: Any = build_from_spec(small(), seed=0).eval()
    backbone = build_from_spec(small(), seed=1, features=["layer3", "layer1"]).eval()
    assert isinstance(backbone, Features)
    assert " ".join(backbone) == "conv1 bn1 relu maxpool layer1 layer2 layer3"
    assert backbone.channels == {"layer1": 8, "layer3": 32}
    assert backbone.strides == {"layer1": 4, "layer3": 16}
    missing, unexpected = backbone.load_state_dict(network.state_dict(), strict=False)
    assert missing == []
    assert {key.split(".")[0] for key in unexpected} == {"layer4", "fc"}
    images = random_images(2, 3, 65, 96)
    with torch.no_grad():
        outputs = backbone(images)
        assert list(outputs) == ["layer1", "layer3"]
        assert torch.equal(outputs["layer1"], network[:5](images))
        assert torch.equal(outputs["layer3"], network[:7](images))
    assert outputs["layer3"].shape == (2, 32, 5, 6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer5"], "no stage is named 'layer5'; there are layer1, layer2, layer3, layer4"),
        (["fc"], "no stage is named 'fc'"),
        ([], "name at least one stage: layer1, layer2, layer3, layer4"),
        ("layer1", r"give a list of stages, as \['layer1'\]"),
    ],
)
def test_features_refuse_what_is_no_stage(names: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_from_spec(small(), features=names)


DILATED = [
    {**stage, "dilation": dilation}
    for stage, dilation in zip(SMALL["model"]["stages"], (1, 3, 1, 2), strict=True)
]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"block": "bottleneck"},
    {"block": {"type": "bottleneck", "stride_in": "conv1x1"}},
    {"block": "preact_basic", "stem": {"type": "conv7x7_maxpool", "channels": 8, "bare": True}},
    {"block": "preact_bottleneck", "attention": "none"},
    {"shortcut": "projection_all"},
    {"shortcut": "pad"},
    {"shortcut": {"type": "pad", "position": "end", "subsample": "average"}},
    {"shortcut": "average_projection", "stem": "deep"},
    {"block": "bottleneck", "shortcut": "average_projection", "stages": DILATED},
    {"block": {"type": "preact_bottleneck", "stride_in": "conv1x1"}, "stages": DILATED},
]


def randomised(spec: dict[str, Any], **asked: Any) -> Any:
    network = build_from_spec(spec, features=["layer2", "layer4"], **asked)
    randomise(network)
    return network.eval()


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("model", VARIANTS)
def test_dilation_gives_the_same_outputs_and_new_ones_between(
    model: dict[str, Any], output_stride: int
) -> None:
    spec = small(**model)
    strided, dilated = randomised(spec), randomised(spec, output_stride=output_stride)
    assert dilated.strides == {"layer2": 8, "layer4": output_stride}
    images = random_images(1, 3, 64, 96)
    with torch.no_grad():
        wanted, found = strided(images), dilated(images)
    every = 32 // output_stride
    assert found["layer4"].shape[-1] == 96 // output_stride
    close(found["layer4"][..., ::every, ::every], wanted["layer4"])
    close(found["layer2"], wanted["layer2"])


def close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
def test_dilation_of_stages_is_what_an_output_stride_makes_of_their_strides(block: str) -> None:
    stages = [
        {**stage, "stride": stride, "dilation": dilation}
        for stage, stride, dilation in zip(
            SMALL["model"]["stages"], (1, 2, 1, 1), (1, 1, 2, 4), strict=True
        )
    ]
    ours = build_from_spec(small(block=block, stages=stages, shortcut="projection_all"))
    theirs = build_from_spec(small(block=block, shortcut="projection_all"), output_stride=8)
    assert str(ours) == str(theirs)


def test_dilation_changes_no_weight_and_no_logits_shape() -> None:
    strided = build_from_spec(small(), seed=0)
    dilated = build_from_spec(small(), seed=0, output_stride=8)
    weights = dilated.state_dict()
    assert weights.keys() == strided.state_dict().keys()
    assert all(torch.equal(weights[key], w) for key, w in strided.state_dict().items())
    assert dilated.eval()(random_images(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("output_stride", [2, 12, 64])
def test_an_output_stride_that_is_not_reached_is_refused(output_stride: int) -> None:
    message = f"output_stride cannot be {output_stride}: the network's strides reach 4, 8, 16, 32"
    with pytest.raises(UsageError, match=message):
        build_from_spec(small(), output_stride=output_stride)


def test_a_cifar_network_is_a_backbone_too() -> None:
    spec = cifar_spec(1).model_dump(exclude_none=True)
    backbone = build_from_spec(spec, features=["layer1", "layer3"], output_stride=1)
    assert backbone.strides == {"layer1": 1, "layer3": 1}
    assert backbone(random_images(2, 3, 8, 8))["layer3"].shape == (2, 64, 8, 8)
