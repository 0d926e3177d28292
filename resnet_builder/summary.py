"""Summary of a network: shapes, parameters, MACs, receptive field, depth, activation memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_builder.blocks.antialias import Blur
from resnet_builder.builder import build_on_meta
from resnet_builder.memory import activation_memory
from resnet_builder.model import ResNet, count_parameters, on_residual_path, sections
from resnet_builder.parts import resolve
from resnet_builder.spec.schema import Spec


@dataclass(frozen=True, slots=True)
class Row:
    """Row of a summary: one layer, or a group of layers: the stem, a stage, the head.

    Attributes:
        name: Name in the state dict.
        kind: Class of the layer, or content of the group: ``"5 x basic"``.
        output: Shape of the output for one image, without the batch.
        parameters: Number of parameters.
        macs: Multiply-adds of convolutions and linear layers for one image.
        receptive_field: Side of the square of pixels that one output pixel depends on along the
            residual path; ``None`` once all pixels are pooled.
        depth: Number of convolutions and linear layers on the residual path.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    depth: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a network.

    Attributes:
        name: Name of the spec.
        image: Shape of an input image, ``(C, H, W)``.
        rows: Rows of the stem, the stages and the head.
        layers: Rows of the layers, in the order of computation.
        parameters: Number of parameters.
        macs: Multiply-adds of convolutions and linear layers for one image.
        depth: Depth as in the names of He et al. 2015.
        depth_arithmetic: Depth as a sum: ``"1 + 10 + 10 + 10 + 1 = 32"``.
        activation_bytes: Bytes that a training step in fp32 saves for backward, per image.
    """

    name: str
    image: tuple[int, int, int]
    rows: tuple[Row, ...]
    layers: tuple[Row, ...]
    parameters: int
    macs: int
    depth: int
    depth_arithmetic: str
    activation_bytes: int


def summarize(spec: Spec) -> Summary:
    """Summarize a spec's network, on the meta device.

    Raises:
        PartError: Options or shapes do not fit together.
        RegistryError: A part is not registered.
    """
    model = resolve(spec).model
    network = build_on_meta(model)
    image = model.image_shape
    layers = tuple(_trace(network, image))
    kinds = {
        f"layer{number + 1}": f"{stage.blocks} x {(stage.block or model.block).type}"
        for number, stage in enumerate(model.stages)
    }
    depths = (1, *network.stage_depths, 1)
    # Two images: batch norm refuses to train on one pixel of one image.
    activations = activation_memory(network.train(), (2, *image))
    return Summary(
        name=spec.name,
        image=image,
        rows=tuple(_groups(network, layers, kinds)),
        layers=layers,
        parameters=count_parameters(network),
        macs=sum(layer.macs for layer in layers),
        depth=network.depth,
        depth_arithmetic=f"{' + '.join(map(str, depths))} = {sum(depths)}",
        activation_bytes=activations.saved // 2,
    )


def _trace(network: ResNet, image: tuple[int, int, int]) -> Iterator[Row]:
    """Run one image through the network on meta, and yield a row for each layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    named = {name: module for name, module in network.named_modules() if _is_layer(module)}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
        for name, module in named.items()
    ]
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *image, device="meta"))
    for hook in hooks:
        hook.remove()
    flops = counter.get_flop_counts()
    field, jump = 1, 1
    stem_is_counted = False  # a stem counts as one layer, however many convolutions it has
    for name, shape in shapes.items():
        module = named[name]
        on_path = all(on_residual_path(step) for step in name.split("."))
        if on_path:
            field, jump = _receptive_field(module, field, jump)
        counts = on_path and isinstance(module, nn.Conv2d | nn.Linear)
        if counts and isinstance(module, nn.Conv2d) and not name.startswith("layer"):
            counts, stem_is_counted = not stem_is_counted, True
        macs = sum(flops.get(f"{type(network).__name__}.{name}", {}).values()) // 2
        yield Row(
            name=name,
            kind=type(module).__name__,
            output=shape[1:],
            parameters=count_parameters(module),
            macs=macs,
            receptive_field=field if len(shape) == 4 and shape[-2:] != (1, 1) else None,
            depth=int(counts),
        )


def _is_layer(module: nn.Module) -> bool:
    """Whether a module computes by itself; identities do not count."""
    return not any(module.children()) and not isinstance(module, nn.Identity)


def _receptive_field(module: nn.Module, field: int, jump: int) -> tuple[int, int]:
    """Receptive field after one more layer; ``jump`` is the distance of neighbours in pixels."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | Blur):
        return field, jump
    kernel, stride = _side(module.kernel_size), _side(module.stride)
    dilation = _side(getattr(module, "dilation", 1))
    return field + (kernel - 1) * dilation * jump, jump * stride


def _side(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _groups(network: ResNet, layers: tuple[Row, ...], kinds: dict[str, str]) -> Iterator[Row]:
    """Yield the sums over the layers of the stem, of each stage, and of the head."""
    depths = dict(zip(kinds, network.stage_depths, strict=True))
    for name, members in sections(network).items():
        group = [layer for layer in layers if layer.name.split(".", 1)[0] in members]
        yield Row(
            name=name,
            kind=kinds.get(name, ", ".join(members)),
            output=group[-1].output,
            parameters=sum(layer.parameters for layer in group),
            macs=sum(layer.macs for layer in group),
            receptive_field=group[-1].receptive_field,
            depth=depths.get(name, 1),
        )
