"""What a forward pass keeps, against what is known of layers."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.activations import Kept, activation_memory
from resnet_builder.builder import build_on_meta
from resnet_builder.model import ResNet
from resnet_builder.parts import resolve_model
from resnet_builder.training.finetune import freeze
from tests.networks import cifar_spec

SHAPE = (4, 3, 32, 32)
PIXELS = 4 * 32 * 32


def network(blocks: int = 2, **changes: Any) -> ResNet:
    made = build_on_meta(resolve_model(cifar_spec(blocks, **changes).model, None))
    made.train()
    return made


def small() -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True))


def test_a_convolution_keeps_its_input_a_norm_its_own_and_a_relu_its_output() -> None:
    statistics = [8 * 4, 8 * 4]
    kept = activation_memory(small(), SHAPE)
    assert kept.sizes == [4 * 3 * PIXELS, 4 * 8 * PIXELS, *statistics, 4 * 8 * PIXELS]
    assert kept.largest == 4 * 8 * PIXELS


def test_in_bf16_images_take_half_and_a_copy_of_the_weights_is_kept() -> None:
    sizes = activation_memory(small(), SHAPE, bf16=True).sizes
    assert sizes[:3] == [2 * 3 * PIXELS, 2 * 3 * 8, 2 * 8 * PIXELS]
    assert sizes[-1] == 2 * 8 * PIXELS


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic"])
def test_blocks_that_are_alike_keep_what_they_keep_one_by_one(block: str, bf16: bool) -> None:
    """A plain sequence of the same layers is followed through all of its blocks."""
    whole = network(5, block=block, drop_path=0.2)
    one_by_one = nn.Sequential(OrderedDict(whole.named_children()))
    found, expected = (activation_memory(net, SHAPE, bf16=bf16) for net in (whole, one_by_one))
    assert found.total == pytest.approx(expected.total, rel=1e-4)
    assert found.peak == pytest.approx(expected.peak, rel=1e-4)
    assert len(found.sizes) == len(expected.sizes)


def test_two_blocks_of_a_stage_are_followed_however_many_there_are() -> None:
    net, followed = network(40), list[str]()
    for name, block in net.named_modules():
        if name.count(".") == 1:
            block.register_forward_hook(lambda *_, name=name: followed.append(name))
    activation_memory(net, SHAPE)
    assert followed == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]


def test_following_leaves_the_network_as_it_was() -> None:
    net = network(5)
    names = [name for name, _ in net.named_modules()]
    activation_memory(net, SHAPE)
    assert [name for name, _ in net.named_modules()] == names
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_frozen_stages_keep_nothing() -> None:
    """What is kept then is of the head alone: 64 features and the answers of 4 images."""
    net = network()
    freeze(net, ["stem", "layer1", "layer2", "layer3"])
    kept = activation_memory(net, SHAPE)
    assert kept.total == 4 * 4 * 64
    assert kept.peak == 2 * 4 * 16 * PIXELS  # the first stage's input and output


def test_of_blocks_that_are_computed_again_the_inputs_are_kept() -> None:
    plain = activation_memory(network(3), SHAPE)
    again = activation_memory(network(3), SHAPE, recomputed=["layer1"])
    image = 4 * 16 * PIXELS
    # A basic block keeps the inputs of two norms and the outputs of two activations.
    assert plain.total - again.total == pytest.approx(3 * (4 - 1) * image, rel=1e-3)
    assert again.again == pytest.approx(4 * image, rel=1e-3)


def test_a_peak_is_what_is_kept_and_the_gradients_of_one_layer() -> None:
    assert Kept(sizes=[10, 30, 5]).peak == 10 + 30 + 2 * 30
    assert Kept(sizes=[100] * 10 + [1]).peak == 10 * 100 + 2 * 100
    assert Kept(sizes=[2], largest=50).peak == 2 * 50
    assert Kept().peak == 0


class Anchored(nn.Module):
    """A part that holds a tensor which is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.scale = torch.ones(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def test_a_part_that_no_stand_in_goes_together_with_is_followed_in_fp32() -> None:
    with torch.device("meta"):
        net = Anchored()
    kept = activation_memory(net, SHAPE, bf16=True)
    assert kept.total == 4 * (3 * PIXELS + 4)
