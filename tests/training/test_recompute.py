"""Stages that are computed again for their gradients: the same bits, in less memory."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from resnet_builder.builder import build
from resnet_builder.errors import Stopped
from resnet_builder.model import ResNet
from resnet_builder.recomputing import recomputing
from tests.networks import cifar_spec, random_images
from tests.training.recipes import CLASSES
from tests.training.runs import after, experiment, outcome, train

NETWORKS: dict[str, dict[str, Any]] = {
    "basic": {"block": {"type": "basic", "dropout": 0.3}, "drop_path": 0.3, "attention": "eca"},
    "bottleneck": {"block": "bottleneck", "shortcut": "projection", "norm": "instance_norm"},
    "preact": {"block": "preact_basic", "stem": {"type": "conv3x3", "channels": 4, "bare": True}},
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        "ema": {"decay": 0.9},
        "clip_norm": 1.0,
        "accumulate": 2,
        "freeze": ["stem", "layer1"],
        "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
    },
}


def network(**model: Any) -> ResNet:
    return build(cifar_spec(2, widths=(4, 6), classes=CLASSES, **model), seed=0)


def kept_bytes(model: nn.Module) -> int:
    """Count what a forward pass keeps of activations, for 4 images of 16 x 16."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(random_images(4, 3, 16, 16))
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_recomputes_comes_to_the_same_bits(
    model: dict[str, Any], recipe: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    """Weights, average, running statistics and their counters, momentum, metrics."""
    for name, stages in (("kept", []), ("again", "all")):
        spec = experiment(
            epochs=2, activation_checkpointing=stages, run={"precision": precision}, **recipe
        )
        train(tmp_path / name, spec, model=network(**model))
    kept, again = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert kept["checkpoint"] == again["checkpoint"]
    assert kept["rows"] == again["rows"]


def test_a_run_may_be_resumed_with_other_stages_recomputed(tmp_path: Path) -> None:
    train(tmp_path / "kept", experiment(), model=network())
    with pytest.raises(Stopped):
        train(tmp_path / "again", experiment(), model=network(), should_stop=after(5))
    train(tmp_path / "again", experiment(activation_checkpointing=["layer2"]), model=network())
    kept, again = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert kept["checkpoint"] == again["checkpoint"]


def test_what_lies_inside_the_blocks_of_a_stage_is_not_kept() -> None:
    """Of a block of a stage, one tensor is left of five: its input."""
    model = network().train()
    pixels = 4 * 4 * 16 * 16  # floats of 4 bytes, 4 images
    everything = kept_bytes(model)
    first, second = (kept_bytes(recomputing(model, [name])) for name in ("layer1", "layer2"))
    both = kept_bytes(recomputing(model, "all"))
    inside = 3 * 4 * pixels  # conv1, its activation, conv2; 4 channels
    statistics = 2 * 2 * 4 * 4  # mean and deviation of two norms
    assert everything - first == 2 * (inside + statistics)
    assert second < everything
    assert everything - both == (everything - first) + (everything - second)


def test_a_network_is_its_own_when_nothing_is_recomputed() -> None:
    model = network()
    assert recomputing(model, ()) is model


def test_tensors_are_shared_with_the_network() -> None:
    model = network()
    wrapped = recomputing(model, ["layer2"])
    assert list(wrapped.parameters()) == list(model.parameters())
    assert copy.deepcopy(wrapped)(random_images(2, 3, 8, 8)).shape == (2, CLASSES)


def test_buffers_are_put_back_where_computing_again_fails() -> None:
    model = network().train()
    own = dict(model.named_buffers())
    output = recomputing(model, ["layer1"])(random_images(2, 3, 8, 8))
    model.get_submodule("layer1.0.bn1").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output.sum().backward()
    assert all(buffer is own[name] for name, buffer in model.named_buffers())


@pytest.mark.ci
def test_a_compiled_network_recomputes_too() -> None:
    """It counts no batch twice in its statistics either."""
    found = []
    for is_compiled in (False, True):
        model = build(cifar_spec(1, widths=(4,), classes=CLASSES), seed=0).train()
        forward = recomputing(model, "all")
        compute = torch.compile(forward, dynamic=False) if is_compiled else forward
        compute(random_images(4, 3, 8, 8)).sum().backward()
        gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
        found.append({**gradients, **dict(model.named_buffers())})
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
