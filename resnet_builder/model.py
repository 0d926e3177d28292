"""The network: named layers in torchvision's order."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_builder.blocks.interfaces import ATTENTION_ATTRIBUTE, SHORTCUT_ATTRIBUTE


class ResNet(nn.Sequential):
    """A residual network: ``conv1, bn1, relu[, maxpool], layer1 ... layerN, avgpool, flatten, fc``.

    Names and order are torchvision's, so state dicts go from one to the other unchanged. A slice
    is a plain ``nn.Sequential``: ``model[:-1]`` gives features instead of logits.

    Args:
        layers: The layers by name, in order.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, num_classes)``; H and W need not be equal.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict(layers))

    def __getitem__(self, index: Any) -> Any:
        """Return one layer, or a slice as a plain ``nn.Sequential``."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """The stages, first to last."""
        return tuple(layer for name, layer in self.named_children() if _is_stage(layer, name))

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """The number of convolutions on the residual path of each stage."""
        return tuple(sum(residual_convolutions(block) for block in stage) for stage in self.stages)

    @property
    def depth(self) -> int:
        """Convolutions on the residual path, one for the stem, one for the classifier.

        Counted as in the names of He et al. 2015: shortcuts, attention and further convolutions
        of the stem are left out.
        """
        return 1 + sum(self.stage_depths) + 1


def sections(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name a network's layers as specs do: ``stem``, each stage by its own name, ``head``.

    Returns:
        The names of the layers of each section, in order.
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
    """Tell whether a block's submodule of this name is on its residual path."""
    return name.split(".", 1)[0] not in {SHORTCUT_ATTRIBUTE, ATTENTION_ATTRIBUTE}


def residual_convolutions(block: nn.Module) -> int:
    """Count the convolutions on a block's residual path."""
    return sum(
        isinstance(module, nn.Conv2d) and on_residual_path(name)
        for name, module in block.named_modules()
    )


def state_dict_mismatch(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """Compare the state dict of a network with another; say which tensor differs first, and how."""
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (_shape(tensors.get(name)) for tensors in (ours, theirs))
        if here != there:
            return f"'{name}' has {there} there, {here} here"
    return None


def _shape(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else f"shape {list(tensor.shape)}"


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, in_channels: int, image_size: int) -> int:
    """Count the multiply-adds of convolutions and linear layers for one image, without computing.

    Args:
        model: The network, on the meta device; its training mode is left as it was.
        in_channels: Channels of an image.
        image_size: Height and width of an image.
    """
    image = torch.empty(1, in_channels, image_size, image_size, device="meta")
    was_training = model.training
    model.eval()
    with (
        alike_left_out(model) as alike,
        _norms_skipped(model),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(image)
    model.train(was_training)
    flops = counter.get_flop_counts()
    left_out = sum(
        (count - 1) * sum(flops.get(f"{type(model).__name__}.{name}", {}).values())
        for name, count in alike.items()
    )
    return (int(counter.get_total_flops()) + left_out) // 2


@contextmanager
def alike_left_out(model: nn.Module) -> Iterator[dict[str, int]]:
    """Leave all blocks of a stage but its first two out: the others are like the second.

    They differ in weights, and in how often drop path drops them; not in what they compute.

    Args:
        model: The network; one that was not built here is left as it is.

    Yields:
        The name of each block that stands for others, and for how many, itself included.
    """
    named = model.named_children() if isinstance(model, ResNet) else ()
    stages = {name: layer for name, layer in named if _is_stage(layer, name) and len(layer) > 2}
    whole = {name: stage._modules for name, stage in stages.items()}
    for stage in stages.values():
        stage._modules = dict(islice(stage._modules.items(), 2))
    try:
        yield {f"{name}.1": len(blocks) - 1 for name, blocks in whole.items()}
    finally:
        for name, stage in stages.items():
            stage._modules = whole[name]


@contextmanager
def _norms_skipped(model: nn.Module) -> Iterator[None]:
    """Go around batch norms: they change no shape, multiply nothing, and on meta take longest."""
    norms = [layer for layer in model.modules() if type(layer) is nn.BatchNorm2d]
    for norm in norms:
        norm.__dict__["forward"] = _unchanged
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _unchanged(x: Tensor) -> Tensor:
    return x
