"""Networks whose layers are operations of our own, for training and for evaluation."""

from operator import add, getitem
from typing import Literal

from torch import fx, nn

from resnet_builder.blocks.shortcuts import PadShortcut
from resnet_builder.cpu.inference import InferenceConv2d, InParts, operation_for
from resnet_builder.cpu.library import kernel_support
from resnet_builder.cpu.norm import FusedNorm, fusible
from resnet_builder.cpu.shortcut import CopiedShortcut, copies
from resnet_builder.cpu.training import TrainingConv2d, operations_for
from resnet_builder.model import LayerTracer
from resnet_builder.recomputing import Recomputed

Modules = dict[str, nn.Module]

_READERS = frozenset(
    {
        nn.Conv2d,
        TrainingConv2d,
        nn.AvgPool2d,
        nn.MaxPool2d,
        PadShortcut,
        CopiedShortcut,
        FusedNorm,
    }
)
"""Layers that leave what they are given as it is."""

_KNOWN = ("torch.nn.", "resnet_builder.blocks.", "resnet_builder.model", Recomputed.__module__)
"""Where modules come from that do the same each time they are called."""


def accelerate(
    network: nn.Module, *, training: bool, precision: Literal["fp32", "bf16"]
) -> nn.Module:
    """Return a network that computes the same with CPU kernels, or the network itself.

    Its parameters and buffers are those of ``network``, which is left as it was. A network on
    another device, or on a machine without kernels, is returned as it is.

    Args:
        network: In training mode; or in evaluation mode with its norms fused into its
            convolutions.
        training: Whether it is to be trained, and not evaluated.
        precision: Precision of the convolutions.
    """
    parameter = next(network.parameters(), None)
    if parameter is None or kernel_support(parameter.device).instructions is None:
        return network
    if training:
        return _with_training_kernels(network)
    return _with_inference_kernels(network, bf16=precision == "bf16")


def _with_training_kernels(network: nn.Module) -> nn.Module:
    """Return what trains a network in less time, or the network itself.

    A batch norm and the sum and the ReLU right behind it become one operation; convolutions get
    faster ones, where there are. Parts that have hooks are computed as they are, and so are
    those from outside, which may do something else each time they are called.

    Args:
        network: In training mode, on the CPU; it is left as it was, and its tensors are shared.
    """
    followed = _Followed(network)
    if network in followed.whole:
        return network
    graph, layers = followed.graph(), followed.layers
    for number, node in enumerate(list(graph.nodes)):
        norm = _layer(node, layers)
        if fusible(norm):
            relu = _fuse(graph, node, layers, f"fused{number}")
            layers[f"fused{number}"] = FusedNorm(norm, relu=relu)
    for name, layer in layers.items():
        operations = operations_for(layer)
        if operations is not None:
            assert isinstance(layer, nn.Conv2d), "operations_for() asks for it"
            layers[name] = TrainingConv2d(layer, operations)
        elif copies(layer):
            layers[name] = CopiedShortcut(layer)
    for node in list(graph.nodes):
        _hand_out_twice(graph, node, layers)
    for name, layer in layers.items():
        if isinstance(layer, Recomputed):
            layers[name] = Recomputed(_with_training_kernels(layer.block))
    return followed.assembled(graph)


def _with_inference_kernels(network: nn.Module, *, bf16: bool = False) -> nn.Module:
    """Return what evaluates a network in less time, or the network itself.

    A convolution and the sum and the ReLU right behind it become one operation, and so does a
    shortcut that pads channels. Batches are computed in parts, but for networks with parts from
    outside or hooks, which may want to see them whole.

    Args:
        network: In evaluation mode, on the CPU, with its norms folded into its convolutions; it is
            left as it was, and its tensors are shared.
        bf16: Whether it is evaluated in bf16, and not in fp32.
    """
    followed = _Followed(network)
    found = (operation_for(layer, bf16=bf16) for layer in followed.layers.values())
    if network in followed.whole or not any(found):
        return network
    graph, layers = followed.graph(), followed.layers
    for number, node in enumerate(list(graph.nodes)):
        layer = _layer(node, layers)
        operation = operation_for(layer, bf16=bf16)
        if operation is not None:
            assert isinstance(layer, nn.Conv2d), "operation_for() asks for it"
            relu = _fuse(graph, node, layers, f"fused{number}")
            layers[f"fused{number}"] = InferenceConv2d(layer, operation, relu=relu)
    for name, layer in layers.items():
        if copies(layer):
            layers[name] = CopiedShortcut(layer)
    assembled = followed.assembled(graph)
    return assembled if followed.whole else InParts(assembled, bf16=bf16)


class _Followed:
    """A network as :mod:`torch.fx` follows it, down to its layers.

    Attributes:
        whole: Parts that are computed as they are.
        layers: All others by name; what stands here is called.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._modules = dict(network.named_modules())
        self.whole = {module for module in self._modules.values() if _is_whole(module)}
        self.layers = {n: m for n, m in self._modules.items() if m not in self.whole}

    def graph(self) -> fx.Graph:
        """Return what the network computes, without layers that do nothing."""
        graph = _Tracer(self.whole).trace(self._network)
        _leave_out_identities(graph, self.layers)
        return graph

    def assembled(self, graph: fx.Graph) -> fx.GraphModule:
        """Return what computes a graph of these layers."""
        network = self._network
        tensors = dict((*network.named_parameters(), *network.named_buffers()))
        return fx.GraphModule(
            {**self._modules, **self.layers, **tensors}, graph, type(network).__name__
        )


def _is_whole(module: nn.Module) -> bool:
    """Tell whether a module has to be called as it is."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not type(module).__module__.startswith(_KNOWN) or any(
        getattr(module, name) for name in hooks
    )


class _Tracer(LayerTracer):
    """Follows what a network computes down to its layers, but for parts that are left whole."""

    def __init__(self, whole: set[nn.Module]) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is a layer, or a part that is left whole."""
        return (
            m in self._whole
            or isinstance(m, Recomputed)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _layer(node: fx.Node, layers: Modules) -> nn.Module | None:
    """Return the layer that a node calls, if it does, and if it may be replaced."""
    return layers.get(str(node.target)) if node.op == "call_module" else None


def _leave_out_identities(graph: fx.Graph, layers: Modules) -> None:
    for node in list(graph.nodes):
        if type(_layer(node, layers)) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _fuse(graph: fx.Graph, node: fx.Node, layers: Modules, name: str) -> bool:
    """Call one layer in the place of another and of what is right behind it.

    The layer of this name is given the sum's other term, if a sum is there.

    Returns:
        Whether it has to compute a ReLU, too.
    """
    chain, addends = [node], []
    total = _only_user(chain[-1])
    if total is not None and (addend := _addend(total, chain[-1])) is not None:
        chain.append(total)
        addends.append(addend)
    activation = _only_user(chain[-1])
    relu = activation is not None and type(_layer(activation, layers)) is nn.ReLU
    if activation is not None and relu:
        chain.append(activation)
    with graph.inserting_after(chain[-1]):
        new = graph.call_module(name, (*node.args, *addends))
    chain[-1].replace_all_uses_with(new)
    for replaced in reversed(chain):
        graph.erase_node(replaced)
    return relu


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return all that uses a node, if that is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _addend(total: fx.Node, term: fx.Node) -> fx.Node | None:
    """Return what a sum adds to a term; torch.fx follows ``+=`` as a sum, too."""
    if total.op != "call_function" or total.target is not add:
        return None
    others = [arg for arg in total.args if arg is not term]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _hand_out_twice(graph: fx.Graph, node: fx.Node, layers: Modules) -> None:
    """Let a fused layer add up the gradients of the two that use it, instead of autograd."""
    layer = _layer(node, layers)
    if not isinstance(layer, FusedNorm) or len(node.users) != 2:
        return
    users = list(node.users)
    if not all(type(_layer(user, layers)) in _READERS for user in users):
        return
    layer.twice = True
    for number, user in reversed(list(enumerate(users))):
        with graph.inserting_after(node):
            part = graph.call_function(getitem, (node, number))
        user.replace_input_with(node, part)
