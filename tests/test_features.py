"""Networks as backbones: their stages' outputs, and dilation in place of strides."""

from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_builder import Features, build_from_spec
from resnet_builder.errors import UsageError
from tests.networks import cifar_spec, random_images, randomise

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


def test_features_are_the_stages_outputs_with_their_widths_and_strides() -> None:
    backbone = build_from_spec("resnet50", seed=0, features=["layer4", "layer2"])
    assert isinstance(backbone, Features)
    assert backbone.channels == {"layer2": 512, "layer4": 2048}
    assert backbone.strides == {"layer2": 8, "layer4": 32}
    with torch.no_grad():
        outputs = backbone.eval()(random_images(1, 3, 65, 96))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "layer2": (1, 512, 9, 12),
        "layer4": (1, 2048, 3, 3),
    }


def test_features_equal_the_network_s_own() -> None:
    network: Any = build_from_spec(small(), seed=0).eval()
    backbone = build_from_spec(small(), seed=0, features=["layer1", "layer3"]).eval()
    images = random_images(2, 3, 32, 48)
    outputs = backbone(images)
    assert torch.equal(outputs["layer1"], network[:5](images))
    assert torch.equal(outputs["layer3"], network[:7](images))


def test_features_hold_nothing_behind_the_last_stage_asked_for() -> None:
    backbone = build_from_spec(small(), features=["layer2"])
    assert list(backbone) == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]


def test_features_take_the_network_s_weights() -> None:
    network = build_from_spec(small(), seed=0)
    backbone = build_from_spec(small(), seed=1, features=["layer4"])
    missing, unexpected = backbone.load_state_dict(network.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["fc.weight", "fc.bias"])


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
