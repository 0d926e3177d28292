"""Summary of a network: shapes, parameters, MACs, receptive field, depth, blocks, memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from resnet_builder.blocks.antialias import Blur
from resnet_builder.blocks.interfaces import ATTENTION_ATTRIBUTE, SHORTCUT_ATTRIBUTE
from resnet_builder.builder import build_on_meta
from resnet_builder.memory import activation_memory
from resnet_builder.model import ResNet, count_parameters, on_residual_path, sections
from resnet_builder.parts import resolve
from resnet_builder.spec.schema import ModelSpec, Spec


@dataclass(frozen=True, slots=True)
class Row:
    """Row of a summary: one layer, or a group of layers: the stem, a stage, the head.

    Attributes:
        name: Name in the state dict.
        kind: Class of the layer, or content of the group: ``"5 x basic"``.
        label: Text of the layer in a drawing: ``"3x3 conv, 64, /2"``; of a group, its kind.
        output: Shape of the output for one image, without the batch.
        parameters: Number of parameters.
        macs: Multiply-adds of convolutions and linear layers for one image.
        receptive_field: Side of the square of pixels that one output pixel depends on along the
            residual path; ``None`` once all pixels are pooled.
        depth: Number of convolutions and linear layers on the residual path.
    """

    name: str
    kind: str
    label: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    depth: int


SUM = "+"
"""Step of a block that adds the shortcut."""


@dataclass(frozen=True, slots=True)
class BlockRow:
    """Block of a stage, as one image goes through it.

    Attributes:
        name: Name in the state dict: ``"layer1.0"``.
        kind: Registered name.
        input: Shape of the input for one image, without the batch.
        output: Shape of the output.
        path: Steps outside the shortcut, in order: layers by their names in the block, attention
            by its registered name, functions, and the sum as :data:`SUM`.
        shortcut: ``"identity"``, the registered name of another shortcut, or ``None`` for none.
        shortcut_from: Number of steps before the shortcut begins; 0 is the input of the block.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    path: tuple[str, ...]
    shortcut: str | None
    shortcut_from: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a network.

    Attributes:
        name: Name of the spec.
        image: Shape of an input image, ``(C, H, W)``.
        rows: Rows of the stem, the stages and the head.
        layers: Rows of the layers, in the order of computation.
        blocks: Blocks of all stages, in order.
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
    blocks: tuple[BlockRow, ...]
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
    traced = _Trace(network)
    flops = traced.run(image)
    layers = tuple(_layers(network, traced.shapes, flops))
    blocks = tuple(_blocks(model, traced))
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
        rows=tuple(_groups(network, layers, blocks, kinds)),
        layers=layers,
        blocks=blocks,
        parameters=count_parameters(network),
        macs=sum(layer.macs for layer in layers),
        depth=network.depth,
        depth_arithmetic=f"{' + '.join(map(str, depths))} = {sum(depths)}",
        activation_bytes=activations.saved // 2,
    )


class _Trace(TorchDispatchMode):
    """Record of what one image goes through: layers, and the steps of each block.

    Sums and activations that a block computes by itself are no layers, so torch's own operations
    are watched, too.

    Attributes:
        shapes: Shapes of the layers' outputs, with the batch, by name.
        blocks: Records of the blocks, by name.
    """

    def __init__(self, network: ResNet) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.blocks: dict[str, _BlockTrace] = {}
        self._block: _BlockTrace | None = None  # the one that is computed
        self._nested = 0  # layers and side paths that are computed: their insides are no steps

    def run(self, image: tuple[int, int, int]) -> dict[str, Any]:
        """Run one image through the network on meta, and return the FLOPs of each module."""
        self.network.eval()
        hooks = [
            hook
            for name, module in self.network.named_modules()
            for hook in self._hooks(name, module)
        ]
        with FlopCounterMode(display=False) as counter, torch.no_grad(), self:
            self.network(torch.empty(1, *image, device="meta"))
        for hook in hooks:
            hook.remove()
        return counter.get_flop_counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, and record it if it is a step of a block."""
        output = func(*args, **(kwargs or {}))
        if self._block is not None and not self._nested:
            name = func.overloadpacket.__name__.removesuffix("_")
            tensors = [one for one in args[:2] if isinstance(one, Tensor) and one.dim() == 4]
            if name == "add" and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
                self._block.steps.append((SUM, output))
            elif name in _FUNCTIONS and tensors:
                self._block.steps.append((_FUNCTIONS[name], output))
        return output

    def _hooks(self, name: str, module: nn.Module) -> Iterator[Any]:
        stage, _, inside = name.partition(".")
        number, _, attribute = inside.partition(".")
        if stage.startswith("layer") and number.isdecimal() and not attribute:
            yield module.register_forward_pre_hook(
                lambda module, inputs: self._begin_block(name, module, inputs[0])
            )
            yield module.register_forward_hook(
                lambda module, _, output: self._end_block(name, module, output)
            )
        elif _is_layer(module) or attribute in {SHORTCUT_ATTRIBUTE, ATTENTION_ATTRIBUTE}:
            yield module.register_forward_pre_hook(lambda _, inputs: self._enter(attribute, inputs))
            yield module.register_forward_hook(
                lambda module, _, output: self._leave(name, attribute, module, output)
            )

    def _begin_block(self, name: str, block: nn.Module, x: Tensor) -> None:
        self._block = self.blocks[name] = _BlockTrace(block, x)

    def _end_block(self, name: str, block: nn.Module, output: Tensor) -> None:
        if _is_layer(block):
            self.shapes[name] = tuple(output.shape)
        self.blocks[name].output = output
        self._block = None

    def _enter(self, attribute: str, inputs: tuple[Any, ...]) -> None:
        self._nested += 1
        if attribute == SHORTCUT_ATTRIBUTE and self._block is not None and inputs:
            self._block.begin_shortcut(inputs[0])

    def _leave(self, name: str, attribute: str, module: nn.Module, output: Any) -> None:
        self._nested -= 1
        if _is_layer(module):
            self.shapes[name] = tuple(output.shape)  # the last time that it is used
        is_step = self._block is not None and attribute != SHORTCUT_ATTRIBUTE
        if is_step and not self._nested and not isinstance(module, nn.Identity):
            self._block.steps.append((attribute, output))  # type: ignore[union-attr]


# Functions that are shown as steps of a block, beside its layers.
_FUNCTIONS = {
    "cat": "concatenate",
    "gelu": "GELU",
    "leaky_relu": "leaky ReLU",
    "mul": "multiply",
    "relu": "ReLU",
    "silu": "SiLU",
}


class _BlockTrace:
    """Record of a block. The tensors are kept to tell where its shortcut begins."""

    def __init__(self, block: nn.Module, x: Tensor) -> None:
        self.block = block
        self.input = x
        self.output = x
        self.steps: list[tuple[str, Tensor]] = []
        self.shortcut_from = 0

    def begin_shortcut(self, x: Tensor) -> None:
        """Note after how many steps the shortcut begins: those that made its input."""
        made = [number for number, (_, output) in enumerate(self.steps, 1) if output is x]
        self.shortcut_from = made[-1] if made and x is not self.input else 0


def _blocks(model: ModelSpec, traced: _Trace) -> Iterator[BlockRow]:
    """Yield the blocks with the registered names of their parts."""
    for name, found in traced.blocks.items():
        stage = model.stages[int(name.partition(".")[0].removeprefix("layer")) - 1]
        block = (stage.block or model.block).type
        attention = (stage.attention or model.attention).type
        path = [attention if step == ATTENTION_ATTRIBUTE else step for step, _ in found.steps]
        last_sum = max((number for number, step in enumerate(path) if step == SUM), default=None)
        path = ["add" if step == SUM else step for step in path]
        shortcut: str | None = (stage.shortcut or model.shortcut).type
        # A block that keeps its shortcut elsewhere shows it by its sum.
        skip = getattr(
            found.block, SHORTCUT_ATTRIBUTE, found.steps if last_sum is not None else None
        )
        shapes = tuple(found.input.shape[1:]), tuple(found.output.shape[1:])
        if skip is None:
            shortcut = None
        elif last_sum is None:
            path.append(SUM)
        else:
            path[last_sum] = SUM
        if isinstance(skip, nn.Identity) or (isinstance(skip, list) and shapes[0] == shapes[1]):
            shortcut = "identity"
        yield BlockRow(name, block, *shapes, tuple(path), shortcut, found.shortcut_from)


def _layers(
    network: ResNet, shapes: dict[str, tuple[int, ...]], flops: dict[str, Any]
) -> Iterator[Row]:
    """Yield a row for each layer."""
    named = dict(network.named_modules())
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
            label=_label(module),
            output=shape[1:],
            parameters=count_parameters(module),
            macs=macs,
            receptive_field=field if len(shape) == 4 and shape[-2:] != (1, 1) else None,
            depth=int(counts),
        )


def _is_layer(module: nn.Module) -> bool:
    """Whether a module computes by itself; identities do not count."""
    return not any(module.children()) and not isinstance(module, nn.Identity)


def _label(module: nn.Module) -> str:
    """Text of a layer in a drawing, as in He et al. 2015, figure 3: ``"3x3 conv, 64, /2"``."""
    if isinstance(module, nn.Linear):
        return f"fc {module.out_features}"
    name = type(module).__name__.removesuffix("2d")
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name).split()
    text = " ".join(word.lower() if word[1:].islower() else word for word in words)
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | Blur):
        return text
    size, stride = module.kernel_size, module.stride
    sides = size if isinstance(size, tuple) else (size, size)
    parts = [f"{'x'.join(map(str, sides))} {text}"]
    if isinstance(module, nn.Conv2d):
        parts += [str(module.out_channels)]
        parts += [f"{module.groups} groups"] if module.groups != 1 else []
        parts += [f"dilation {_side(module.dilation)}"] if _side(module.dilation) != 1 else []
    return ", ".join([*parts, f"/{_side(stride)}"] if _side(stride) != 1 else parts)


def _receptive_field(module: nn.Module, field: int, jump: int) -> tuple[int, int]:
    """Receptive field after one more layer; ``jump`` is the distance of neighbours in pixels."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | Blur):
        return field, jump
    kernel, stride = _side(module.kernel_size), _side(module.stride)
    dilation = _side(getattr(module, "dilation", 1))
    return field + (kernel - 1) * dilation * jump, jump * stride


def _side(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _groups(
    network: ResNet,
    layers: tuple[Row, ...],
    blocks: tuple[BlockRow, ...],
    kinds: dict[str, str],
) -> Iterator[Row]:
    """Yield the sums over the layers of the stem, of each stage, and of the head."""
    outputs = {block.name.partition(".")[0]: block.output for block in blocks}  # of the last one
    depths = dict(zip(kinds, network.stage_depths, strict=True))
    for name, members in sections(network).items():
        group = [layer for layer in layers if layer.name.split(".", 1)[0] in members]
        on_path = [one for one in group if all(map(on_residual_path, one.name.split(".")))]
        kind = kinds.get(name, ", ".join(members))
        yield Row(
            name=name,
            kind=kind,
            label=kind,
            output=outputs.get(name, group[-1].output),
            parameters=sum(layer.parameters for layer in group),
            macs=sum(layer.macs for layer in group),
            receptive_field=on_path[-1].receptive_field,
            depth=depths.get(name, 1),
        )
