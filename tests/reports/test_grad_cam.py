"""Grad-CAM against independent computations: CAM, and differences of logits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_builder.model import ResNet
from resnet_builder.reports.grad_cam import grad_cam
from tests.networks import built, cifar_spec, randomise

NETWORKS: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"block": "bottleneck", "shortcut": "projection"},
    "attention": {"attention": "eca"},
    "preactivated": {"block": "preact_basic", "shortcut": "projection"},
    "no shortcut": {"shortcut": "none"},
}


def network(name: str) -> ResNet:
    model = {"image_size": 12, "in_channels": 3, **NETWORKS[name]}
    made: ResNet = built(cifar_spec(1, widths=(4, 8), classes=3, **model))
    randomise(made)
    return made.double().eval()


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(11, 3, 12, 12, generator=generator, dtype=torch.float64)
    return drawn, torch.arange(11) % 3


def scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


@pytest.mark.parametrize("name", ["basic", "bottleneck", "attention", "no shortcut"])
def test_grad_cam_is_cam_where_pooling_and_a_linear_layer_follow(name: str) -> None:
    """Zhou et al. 2016, equation 2: the classifier's weights are the channels' weights."""
    model, (inputs, classes) = network(name), images()
    maps, logits = grad_cam(model, inputs, classes)
    with torch.no_grad():
        features = model[:-3](inputs)
        expected = torch.einsum("nchw,nc->nhw", features, model[-1].weight[classes]).relu()
        assert torch.allclose(logits, model(inputs))
    assert maps.shape == (11, *features.shape[2:])
    assert torch.allclose(maps, scaled(expected), atol=1e-9)
    assert expected.amax() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_are_weighted_by_the_rise_of_the_logit(name: str) -> None:
    """A norm and a ReLU may stand behind the last stage: differences of logits know it."""
    model, (inputs, classes) = network(name), images()
    maps, _ = grad_cam(model, inputs, classes)
    end = next(place for place, (name, _) in enumerate(model.named_children()) if name == "layer2")
    backbone, head, step = model[: end + 1], model[end + 1 :], 1e-6
    rows = torch.arange(11)
    with torch.no_grad():
        features = backbone(inputs)
        weights = []
        for channel in range(features.shape[1]):
            shift = torch.zeros_like(features)
            shift[:, channel] = step
            rise = head(features + shift) - head(features - shift)
            weights.append(rise[rows, classes] / (2 * step) / features[0, 0].numel())
        raw = torch.einsum("nchw,cn->nhw", features, torch.stack(weights)).relu()
    assert torch.allclose(maps, scaled(raw), atol=1e-5)


def test_network_is_left_as_it_was() -> None:
    model, (inputs, classes) = network("preactivated").train(), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        grad_cam(model, inputs, classes)
    assert all(layer.training for layer in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
