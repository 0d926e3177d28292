"""ResNet: named layers in torchvision's order; sections, counts, backbone, conv + norm fusion."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from resnet_builder.blocks.interfaces import ATTENTION_ATTRIBUTE, SHORTCUT_ATTRIBUTE
from resnet_builder.errors import UsageError, nearest


class ResNet(nn.Sequential):
    """Residual network: ``conv1, bn1, relu[, maxpool], layer1 ... layerN, avgpool, flatten, fc``.

    Names and order are torchvision's, so state dicts go from one to the other unchanged. A slice
    is a plain ``nn.Sequential``: ``model[:-1]`` gives features instead of logits.

    Args:
        layers: Layers by name, in order.
        strides: Total stride behind the stem and behind each stage, by name.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W need not be equal.
    """

    # torch.jit.script compiles properties, too, and knows none of what these do.
    __jit_unused_properties__: ClassVar = ["stages", "stage_depths", "depth"]

    def __init__(self, layers: Mapping[str, nn.Module], strides: Mapping[str, int]) -> None:
        super().__init__(OrderedDict(layers))
        self.strides = dict(strides)

    def __getitem__(self, index: Any) -> Any:
        """Return one layer, or a slice as a plain ``nn.Sequential``."""
        if isinstance(index, slice):  # nn.Sequential would make a ResNet of positional layers
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """Stages, first to last."""
        return tuple(layer for name, layer in self.named_children() if _is_stage(layer, name))

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Number of convolutions on the residual path of each stage."""
        return tuple(sum(residual_convolutions(block) for block in stage) for stage in self.stages)

    @property
    def depth(self) -> int:
        """Depth as in the names of He et al. 2015.

        Number of convolutions on the residual path, plus one for the stem and one for the
        classifier; shortcuts, attention and further convolutions of the stem do not count.
        """
        return 1 + sum(self.stage_depths) + 1


class Normalize(nn.Module):
    """Normalisation of images: ``(x - mean) / std`` of each channel.

    Args:
        mean: Mean of each channel, in units where white is 1.
        std: Standard deviation of each channel, in the same units.

    Shape:
        ``(N, C, H, W)``, floating-point pixels from 0 to 1 or uint8 pixels from 0 to 255, to
        ``(N, C, H, W)`` float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images."""
        if images.dtype == torch.uint8:
            images = images / 255
        elif not images.is_floating_point():
            raise TypeError(f"pixels are floating-point from 0 to 1, or uint8, not {images.dtype}")
        return (images - self.mean) / self.std


class Features(nn.ModuleDict):
    """Backbone: the layers of a network up to the last stage asked for, under the same names.

    State-dict keys are the network's too, so its weights load with ``strict=False``.

    Args:
        network: Network, whose layers are shared, not copied.
        stages: Names of stages whose outputs are returned, as ``layer2``, in any order.

    Attributes:
        channels: Width of each output, by stage.
        strides: Total stride of each output, by stage.

    Shape:
        ``(N, in_channels, H, W)`` to a ``dict`` of ``(N, channels, ceil(H / stride), ceil(W /
        stride))`` by stage, in the network's order.

    Raises:
        UsageError: A name is no stage's, or none is given.
    """

    def __init__(self, network: ResNet, stages: Sequence[str]) -> None:
        known = {name: stage for name, stage in network.named_children() if _is_stage(stage, name)}
        _check_stage_names(stages, known)
        names = [name for name in known if name in stages]
        layers = dict(network.named_children())
        end = list(layers).index(names[-1]) + 1
        super().__init__(dict(islice(layers.items(), end)))
        self.channels: dict[str, int] = {}
        for name in names:
            last_block: Any = known[name][-1]
            self.channels[name] = last_block.out_channels
        self.strides = {name: network.strides[name] for name in names}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the stages' outputs."""
        outputs: dict[str, Tensor] = {}
        for name, layer in self.items():
            images = layer(images)
            if name in self.strides:
                outputs[name] = images
        return outputs


def _check_stage_names(stages: Sequence[str], known: Iterable[str]) -> None:
    if isinstance(stages, str):
        raise UsageError(f"features: give a list of stages, as ['{stages}']")
    if not stages:
        raise UsageError(f"features: name at least one stage: {', '.join(known)}")
    for name in stages:
        if name not in known:
            meant = nearest(name, known)
            hint = f"; did you mean {meant}" if meant else ""
            raise UsageError(
                f"features: no stage is named '{name}'; there are {', '.join(known)}{hint}"
            )


def sections(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Sections of a network, as specs name them: ``stem``, ``layer1`` and so on, ``head``.

    Returns:
        Names of the layers of each section, in order.
    """
    stem: list[str] = []
    head: list[str] = []
    stages: dict[str, tuple[str, ...]] = {}
    for name, layer in network.named_children():
        if _is_stage(layer, name):
            stages[name] = (name,)
        else:
            (head if stages else stem).append(name)
    return {"stem": tuple(stem), **stages, "head": tuple(head)}


def _is_stage(layer: nn.Module, name: str) -> TypeGuard[nn.Sequential]:
    return name.startswith("layer") and isinstance(layer, nn.Sequential)


def on_residual_path(name: str) -> bool:
    """Whether a block's submodule of this name is on its residual path."""
    return name.split(".", 1)[0] not in {SHORTCUT_ATTRIBUTE, ATTENTION_ATTRIBUTE}


def residual_convolutions(block: nn.Module) -> int:
    """Count the convolutions on a block's residual path."""
    return sum(
        isinstance(module, nn.Conv2d) and on_residual_path(name)
        for name, module in block.named_modules()
    )


def state_dict_mismatch(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """Describe the first tensor in which two state dicts differ by name or shape, if any does."""
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (
            f"shape {list(tensors[name].shape)}" if name in tensors else "no tensor"
            for tensors in (ours, theirs)
        )
        if here != there:
            return f"'{name}' has {there} there, {here} here"
    return None


def count_parameters(model: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Count the multiply-adds of convolutions and linear layers for one image.

    Args:
        network: Network on the meta device, so that nothing is computed. Its training mode stays.
        image_shape: Shape ``(C, H, W)`` of an image.
    """
    images = torch.empty(1, *image_shape, device="meta")
    was_training = network.training
    network.eval()  # a batch norm refuses to train on one pixel of one image
    flops = 0
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for _, block, count in distinct_blocks(network):
                before = counter.get_total_flops()
                images = block(images)
                flops += count * (counter.get_total_flops() - before)
    finally:
        network.train(was_training)
    return flops // 2


def distinct_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Layers of a network in order, and of each stage the first two blocks: the rest equal these.

    They differ in their weights and in their drop-path rate, not in shapes. So whoever only asks
    for shapes need not go through 1,202 layers.

    Yields:
        Name of the layer or stage, layer or block, and number of blocks that it stands for.
    """
    for name, layer in network.named_children():
        if _is_stage(layer, name):
            yield name, layer[0], 1
            if len(layer) > 1:
                yield name, layer[1], len(layer) - 1
        else:
            yield name, layer, 1


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """Return a copy of a network for evaluation, its batch norms fused into the convolutions.

    The logits are the same but for rounding. A network that cannot be traced, or has no batch
    norm right behind a convolution, is returned itself.

    Args:
        network: Network on any device; it is left as it was.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return network
    pairs = norms_by_convolution(network)
    if not pairs:
        return network
    fused = copy.deepcopy(network).eval()
    for convolution, norm in pairs.items():
        first, second = fused.get_submodule(convolution), fused.get_submodule(norm)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            fused.set_submodule(convolution, fuse_conv_bn_eval(first, second))
            fused.set_submodule(norm, nn.Identity())
    return fused


def norms_by_convolution(network: nn.Module) -> dict[str, str]:
    """Norms with a running mean that are the only user of a convolution, by its name.

    Layers that a network goes through more than once are left out.
    """
    try:
        graph = LayerTracer().trace(network)
    except Exception:  # a part from outside may ask anything of the proxy that is its input
        return {}
    modules = dict(network.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Conv2d):
            match list(node.users):
                case [fx.Node(op="call_module", target=str(norm))] if isinstance(
                    getattr(modules[norm], "running_mean", None), Tensor
                ):
                    found[str(node.target)] = norm
    return {conv: norm for conv, norm in found.items() if calls[conv] == calls[norm] == 1}


class LayerTracer(fx.Tracer):
    """Tracer that records a network's layers, and goes into none of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a layer."""
        return not any(m.children())
