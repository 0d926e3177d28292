"""Bugs in networks: blocks, shortcuts, heads and first weights."""

import ast
import inspect
import pickle
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from resnet_builder.blocks import BLOCKS, SHORTCUTS
from resnet_builder.blocks.basic import BasicBlock
from resnet_builder.blocks.bottleneck import BottleneckBlock
from resnet_builder.blocks.interfaces import NormFactory
from resnet_builder.blocks.shortcuts import PadShortcut, pad, projection, projection_all
from resnet_builder.builder import build, read_spec
from resnet_builder.errors import RegistryError
from resnet_builder.model import count_parameters
from resnet_builder.registry import Registry
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.schema import Spec
from tests.known_bugs.bugs import bug, refused, works
from tests.networks import cifar_spec

Build = Callable[[Spec], Any]
Shortcut = Callable[..., nn.Module | None]

IMAGES = torch.ones(2, 3, 32, 32)


def network_with(shortcut: Shortcut, blocks: int = 1, **model: Any) -> Any:
    """Build a network whose shortcuts are made by this."""
    with SHORTCUTS.temporary("tested", shortcut):
        return build(cifar_spec(blocks, shortcut="tested", **model), seed=0)


def altered(alter: Callable[[Any], object]) -> Build:
    """Build as we do, then break the network in this way."""

    def build_altered(spec: Spec) -> Any:
        network = build(spec, seed=0)
        alter(network)
        return network

    return build_altered


def seeded(spec: Spec) -> Any:
    """Build as we do."""
    return build(spec, seed=0)


def misnamed_projection(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory
) -> nn.Module:
    """Name a class in ``super()`` that there is not."""

    class ConvProjection(nn.Module):
        def __init__(self) -> None:
            super(ResA, self).__init__()  # type: ignore[name-defined]  # noqa: F821

    return ConvProjection()


@bug(
    "kellerjordan-1",
    "option B ends in a NameError",
    ours=projection,
    planted=misnamed_projection,
)
def check_projection_can_be_built(shortcut: Shortcut) -> None:
    assert works(lambda: network_with(shortcut)(IMAGES)).shape == (2, 10)


def biased_projection(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory
) -> nn.Module:
    """Project with a bias and without a norm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Conv2d(in_channels, out_channels, 1, stride)


@bug(
    "kellerjordan-2",
    "the projection has a bias and no norm",
    ours=projection,
    planted=biased_projection,
)
def check_projection_is_the_paper_s(shortcut: Shortcut) -> None:
    network = network_with(shortcut, blocks=3)
    assert count_parameters(network) == 272_474
    conv, norm = network.layer2[0].downsample
    assert conv.bias is None
    assert isinstance(norm, nn.BatchNorm2d)


def averaged_and_padded(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Pool and pad, where the paper's option C projects."""
    return pad(in_channels, out_channels, stride, position="end", subsample="average")


@bug(
    "kellerjordan-3",
    "what is called option C has no projections",
    ours=projection_all,
    planted=averaged_and_padded,
)
def check_option_c_projects_in_every_block(shortcut: Shortcut) -> None:
    network = network_with(shortcut, blocks=3)
    assert count_parameters(network) == 283_962
    for stage in network.stages:
        assert all(isinstance(block.downsample[0], nn.Conv2d) for block in stage)


def lenient(spec: Spec) -> Any:
    """Leave the shortcut out of a block whose option is not known."""

    class Unset(BasicBlock):
        def __init__(self, *arguments: Any, **contract: Any) -> None:
            super().__init__(*arguments, **contract)
            del self.downsample

    known = spec.model.shortcut.type in SHORTCUTS
    with BLOCKS.temporary("basic", BasicBlock if known else Unset):
        return build(spec if known else cifar_spec(1))


def identity_instead(spec: Spec) -> Any:
    """Take an identity for what is not known."""
    with SHORTCUTS.temporary(spec.model.shortcut.type, lambda *_: nn.Identity()):
        return build(spec)


@bug(
    "kellerjordan-4",
    "an unknown option fails in the first forward pass",
    ours=seeded,
    planted=lenient,
)
@bug(
    "akamaster-12a",
    "an unknown option is an identity, which fits only some blocks",
    ours=seeded,
    planted=identity_instead,
)
def check_unknown_shortcut_is_refused_when_built(build: Build) -> None:
    assert isinstance(refused(lambda: build(cifar_spec(1, shortcut="z"))), RegistryError)


def projected_by_width(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory
) -> nn.Module:
    """Project only where the width changes."""
    if in_channels == out_channels:
        return nn.Identity()
    return projection_all(in_channels, out_channels, stride, norm=norm)


@bug(
    "kellerjordan-5",
    "the shortcut projects only where the width changes",
    ours=projection,
    planted=projected_by_width,
)
def check_shortcut_follows_a_stride_alone(shortcut: Shortcut) -> None:
    network = works(lambda: network_with(shortcut, widths=(16, 16, 16)))
    assert works(lambda: network(IMAGES)).shape == (2, 10)


def drop_in_first_blocks_alone(network: Any) -> None:
    """Drop half of the first block's residual, and nothing of the others'."""
    for stage in network.stages:
        for number, block in enumerate(stage):
            block.dropout = nn.Dropout(0.5) if number == 0 else nn.Identity()


@bug(
    "kellerjordan-6",
    "dropout reaches the first block of a stage only, at a rate that is fixed",
    ours=seeded,
    planted=altered(drop_in_first_blocks_alone),
)
def check_dropout_is_in_every_block(build: Build) -> None:
    network = build(cifar_spec(2, block={"type": "basic", "dropout": 0.25}))
    rates = [getattr(block.dropout, "p", 0) for stage in network.stages for block in stage]
    assert rates == [0.25] * 6


class BiasedBlock(BasicBlock):
    """Convolutions with biases, though a norm follows each."""

    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, contract["stride"], padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)


@bug(
    "kellerjordan-7",
    "convolutions have biases that the norms after them undo",
    ours=BasicBlock,
    planted=BiasedBlock,
)
def check_block_has_no_parameters_without_effect(block: Any) -> None:
    def bound(in_channels: int, channels: int, *, stride: int, shortcut: Any) -> nn.Module:
        made: nn.Module = block(in_channels, channels, stride=stride, shortcut=shortcut)
        return made

    with BLOCKS.temporary("tested", bound):
        network = build(cifar_spec(9, block="tested"))
    assert count_parameters(network) == 853_018


def reset_convolutions(network: Any) -> None:
    """Leave convolutions as PyTorch makes them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()


@bug(
    "kellerjordan-8",
    "convolutions have PyTorch's first weights, not He's",
    ours=seeded,
    planted=altered(reset_convolutions),
)
def check_convolutions_have_he_s_deviation(build: Build) -> None:
    weight = build(cifar_spec(1)).layer3[0].conv2.weight
    expected = (2 / (9 * 64)) ** 0.5
    assert abs(weight.std().item() - expected) < 0.05 * expected


def pool_by(pool: nn.Module) -> Build:
    """Pool in this way, whatever comes."""
    return altered(lambda network: setattr(network, "avgpool", pool))


class WidthPool(nn.Module):
    """Average over squares as wide as the image, which need not be as high."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[3])


@bug("kellerjordan-9", "pools 8x8 pixels", ours=seeded, planted=pool_by(nn.AvgPool2d(8)))
@bug("kuangliu-2", "pools 4x4 pixels", ours=seeded, planted=pool_by(nn.AvgPool2d(4)))
@bug("akamaster-16", "pools squares", ours=seeded, planted=pool_by(WidthPool()))
def check_any_image_and_any_number_of_classes_will_do(build: Build) -> None:
    network = build(cifar_spec(1, classes=7))
    for size in ((32, 32), (40, 40), (64, 32), (33, 17)):
        assert works(partial(network, torch.ones(2, 3, *size))).shape == (2, 7)


class Padded(nn.Module):
    """Pad before subsampling, and only behind."""

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 0, 0, 0, 0, self.added)), 1, self.stride)


def padded_first(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return Padded(out_channels - in_channels, stride)


class Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that is computed."""

    size = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.numel())
        return result


@bug(
    "kellerjordan-10",
    "pads before it subsamples, four times the work, and on one side",
    ours=pad,
    planted=padded_first,
)
def check_pad_computes_no_pixel_in_vain(shortcut: Shortcut) -> None:
    module, x = shortcut(16, 32, 2), torch.ones(1, 16, 8, 8)
    assert module is not None
    with Largest() as largest:
        y = module(x)
    assert largest.size == y.numel()
    assert y.sum((0, 2, 3)).tolist() == [0] * 8 + [16] * 16 + [0] * 8


def load_with_a_default_depth(source: Any) -> Spec:
    """Take seven blocks in each stage where none are given."""
    model = {"stages": [{"channels": 16, "blocks": 7}], **source["model"]}
    return load_spec({**source, "model": model})


@bug(
    "kellerjordan-11",
    "the depth has two defaults, which differ",
    ours=load_spec,
    planted=load_with_a_default_depth,
)
def check_depth_has_no_default(load: Callable[[Any], Spec]) -> None:
    model = {"num_classes": 10, "stem": "conv3x3", "block": "basic", "shortcut": "pad"}
    assert "model.stages: is missing" in str(refused(lambda: load({"model": model})))


def build_without_options(spec: Spec) -> Any:
    """Pass on neither the shortcut's options nor the number of classes."""
    return seeded(cifar_spec(1, shortcut=spec.model.shortcut.type))


@bug(
    "akamaster-12b",
    "the block's option and the number of classes cannot be given",
    ours=seeded,
    planted=build_without_options,
)
def check_options_and_classes_arrive(build: Build) -> None:
    network = build(cifar_spec(1, shortcut={"type": "pad", "position": "end"}, classes=7))
    assert network.layer2[0].downsample.zeros == (0, 16)
    assert network.fc.out_features == 7


def padded_by_quarters(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Pad a quarter of the width on each side, and take every second pixel."""
    return PadShortcut(2, out_channels // 4, out_channels // 4)


@bug(
    "akamaster-13",
    "option A is for a doubled width and a stride of 2 only",
    ours=pad,
    planted=padded_by_quarters,
)
def check_pad_is_for_any_width_and_stride(shortcut: Shortcut) -> None:
    for out_channels, stride in ((32, 2), (40, 1), (17, 3)):
        module = shortcut(16, out_channels, stride)
        assert module is not None
        side = -(-8 // stride)
        assert module(torch.ones(1, 16, 8, 8)).shape == (1, out_channels, side, side)


class LambdaLayer(nn.Module):
    """Call a function that cannot be pickled."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def padded_by_lambda(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    added = (out_channels - in_channels) // 2
    return LambdaLayer(lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added, added)))


@bug(
    "akamaster-14",
    "the shortcut is a lambda, so that no network can be saved whole",
    ours=pad,
    planted=padded_by_lambda,
)
def check_network_can_be_pickled(shortcut: Shortcut) -> None:
    network = network_with(shortcut).eval()
    copy = works(lambda: pickle.loads(pickle.dumps(network)))
    assert torch.equal(copy(IMAGES), network(IMAGES))


@bug(
    "akamaster-15",
    "the classifier is initialised as if it were a convolution before a relu",
    ours=seeded,
    planted=altered(lambda network: nn.init.kaiming_normal_(network.fc.weight)),
)
def check_classifier_is_as_pytorch_makes_it(build: Build) -> None:
    network = build(cifar_spec(1))
    bound = 64**-0.5
    for values in (network.fc.weight, network.fc.bias):
        assert values.abs().max() <= bound
    assert abs(network.fc.weight.std().item() - bound / 3**0.5) < 0.1 * bound


def wide_by_name(name: str) -> int:
    """Count the network that kuangliu calls by the paper's name: 64 to 512 wide, stem 3x3."""
    widths = (64, 128, 256, 512)
    return count_parameters(build(cifar_spec(2, shortcut="projection", widths=widths)))


def ours_by_name(name: str) -> int:
    return count_parameters(build(read_spec(name)))


@bug(
    "kuangliu-1",
    "ResNet-18 is neither the paper's for CIFAR nor its for ImageNet",
    ours=ours_by_name,
    planted=wide_by_name,
)
def check_name_is_that_of_the_paper_s_network(count: Callable[[str], int]) -> None:
    assert count("resnet20") == 269_722
    assert count("resnet18") == 11_689_512
    assert count("resnet18_cifar") == 11_173_962


def leave_the_end_bare(network: Any) -> None:
    """Pool sums that nothing has normalised."""
    names = [name for name, _ in network.named_children()]
    for name in names[names.index("layer3") + 1 : names.index("avgpool")]:
        setattr(network, name, nn.Identity())


@bug(
    "kuangliu-3",
    "nothing normalises the last sum of pre-activated blocks",
    ours=seeded,
    planted=altered(leave_the_end_bare),
)
def check_last_sum_is_normalised_and_rectified(build: Build) -> None:
    stem = {"type": "conv3x3", "channels": 16, "bare": True}
    network = build(cifar_spec(1, block="preact_basic", stem=stem, shortcut="projection"))
    names = [name for name, _ in network.named_children()]
    last = names.index("layer3")
    sums = network[: last + 1](IMAGES)
    pooled = network[: names.index("avgpool")](IMAGES)
    assert sums.min() < 0
    assert pooled.min() == 0
    assert (pooled - F.relu(F.batch_norm(sums, None, None, training=True))).abs().max() < 1e-5


class NarrowResNext(BottleneckBlock):
    """Give twice the inner width, whatever that is."""

    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.out_channels = 2 * self.conv2.out_channels
        self.conv3 = nn.Conv2d(self.conv2.out_channels, self.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.downsample = contract["shortcut"](in_channels, self.out_channels, contract["stride"])


@bug(
    "kuangliu-4a",
    "a ResNeXt's output grows with its groups",
    ours=BottleneckBlock,
    planted=NarrowResNext,
)
def check_output_does_not_grow_with_the_groups(block: Any) -> None:
    for groups in (1, 2, 8, 16):
        made = block(
            64, 64, stride=1, shortcut=lambda *_: nn.Identity(), groups=groups, width_per_group=64
        )
        assert made.conv2.groups == groups
        assert made.out_channels == made.conv3.out_channels == 256


def first_convolution_1x1(name: str) -> Any:
    return load_spec(name, overrides=["model.stem.type=conv1x1"])


@bug(
    "kuangliu-4b",
    "a ResNeXt's first convolution sees one pixel",
    ours=load_spec,
    planted=first_convolution_1x1,
)
def check_first_convolution_of_resnext_sees_3x3(load: Callable[[str], Spec]) -> None:
    assert load("resnext29_8x64d").model.stem.type == "conv3x3"


class Asking(BasicBlock):
    """Ask in each pass whether there is a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "downsample"):
            residual += self.downsample(x)  # type: ignore[misc]
        return self.relu(residual)


@bug(
    "kuangliu-5",
    "blocks ask for attributes while they compute, so that no compiler can follow",
    ours=[BLOCKS.get(name) for name in BLOCKS.names()],
    planted=[Asking],
)
def check_blocks_ask_for_no_attributes(blocks: list[Any]) -> None:
    assert blocks
    for block in blocks:
        code = ast.parse(textwrap.dedent(inspect.getsource(block.forward)))
        called = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        assert not called & {"hasattr", "getattr", "locals", "globals"}


class Overwriting(Registry[Any]):
    """Let the last part of a name win, as with ``from module import *``."""

    def register(self, name: str) -> Callable[[Any], Any]:
        self._parts.pop(name, None)
        return super().register(name)


@bug(
    "kuangliu-6",
    "classes of one name replace each other, as modules are imported by *",
    ours=Registry,
    planted=Overwriting,
)
def check_name_is_registered_once(make: Callable[[str], Registry[Any]]) -> None:
    parts = make("block")
    parts.register("basic")(BasicBlock)
    refused(lambda: parts.register("basic")(BottleneckBlock))
    assert parts.get("basic") is BasicBlock


def initialise_what_is_true(network: Any) -> None:
    """Ask whether a tensor is true."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias:
                nn.init.constant_(module.bias, 0)


@bug(
    "kuangliu-14",
    "weights are initialised by a function that fails, and that nobody calls",
    ours=seeded,
    planted=altered(initialise_what_is_true),
)
def check_convolution_with_a_bias_is_initialised(build: Build) -> None:
    with BLOCKS.temporary("tested", BiasedBlock):
        network = works(lambda: build(cifar_spec(1, block="tested")))
    weight = network.layer3[0].conv2.weight
    assert abs(weight.std().item() - (2 / (9 * 64)) ** 0.5) < 0.005
