"""Networks rewritten to call CPU kernels: a :mod:`torch.fx` graph with fused layers."""

from operator import add, getitem

import torch
from torch import Tensor, fx, nn

from resnet_builder.blocks.shortcuts import PadShortcut
from resnet_builder.cpu.convolution import (
    Precision,
    TrainingConv2d,
    WinogradConv2d,
    evaluates_by_winograd,
    training_algorithms,
)
from resnet_builder.cpu.library import kernel_support
from resnet_builder.cpu.norm import FusedBatchNorm, is_fusible
from resnet_builder.cpu.shortcut import CopiedShortcut, is_copyable
from resnet_builder.model import LayerTracer

_KEEP_INPUT = frozenset(
    {
        nn.Conv2d,
        TrainingConv2d,
        nn.AvgPool2d,
        nn.MaxPool2d,
        PadShortcut,
        CopiedShortcut,
        FusedBatchNorm,
    }
)
"""Layers that do not modify their input in place."""

_TRACEABLE = ("torch.nn.", "resnet_builder.blocks.", "resnet_builder.model")
"""Modules that do the same at each call, by where they are defined; a plugin's may not."""

_IMAGES_PER_THREAD = {"fp32": 32, "bf16": 64}
"""CIFAR images whose activations stay in a core's caches; 1.2 x as fast as 128 at once."""


def accelerate(network: nn.Module, *, training: bool, precision: Precision) -> nn.Module:
    """Network that computes the same with CPU kernels, or the network itself.

    A batch norm becomes one operation with the sum and the ReLU behind it, and so does a
    convolution in evaluation; convolutions get faster algorithms where there are any. Modules that
    have hooks are called as they are, and so are those of plugins, which may do something else at
    each call.

    Args:
        network: In training mode; or in evaluation mode with its norms fused into its
            convolutions. It is left as it was, and its parameters and buffers are shared. On
            another device, or on a machine without kernels, it is returned itself.
        training: Whether it is to be trained, and not evaluated.
        precision: Precision of the convolutions.
    """
    parameter = next(network.parameters(), None)
    if parameter is None or kernel_support(parameter.device).instructions is None:
        return network
    return _for_training(network, precision) if training else _for_evaluation(network, precision)


def _for_training(network: nn.Module, precision: Precision) -> nn.Module:
    traced = _Traced(network)
    if network in traced.opaque:
        return network
    graph, layers = traced.graph(), traced.layers
    for number, node in enumerate(list(graph.nodes)):
        norm = _layer(node, layers)
        if is_fusible(norm):
            relu = _fuse(graph, node, layers, f"fused{number}")
            layers[f"fused{number}"] = FusedBatchNorm(norm, relu=relu)
    for name, layer in layers.items():
        algorithms = training_algorithms(layer) if precision == "bf16" else None
        if algorithms is not None:
            assert isinstance(layer, nn.Conv2d)  # training_algorithms() returns None for others
            layers[name] = TrainingConv2d(layer, algorithms)
        elif is_copyable(layer):
            layers[name] = CopiedShortcut(layer)
    for node in list(graph.nodes):
        _return_twice(graph, node, layers)
    return traced.assemble(graph)


def _for_evaluation(network: nn.Module, precision: Precision) -> nn.Module:
    traced = _Traced(network)
    found = any(evaluates_by_winograd(layer, precision) for layer in traced.layers.values())
    if network in traced.opaque or not found:
        return network
    graph, layers = traced.graph(), traced.layers
    for number, node in enumerate(list(graph.nodes)):
        layer = _layer(node, layers)
        if evaluates_by_winograd(layer, precision):
            assert isinstance(layer, nn.Conv2d)
            relu = _fuse(graph, node, layers, f"fused{number}")
            layers[f"fused{number}"] = WinogradConv2d(layer, precision, relu=relu)
    for name, layer in layers.items():
        if is_copyable(layer):
            layers[name] = CopiedShortcut(layer)
    assembled = traced.assemble(graph)
    # Hooks and plugins may want to see batches whole.
    return assembled if traced.opaque else _InParts(assembled, precision)


class _InParts(nn.Module):
    """A network in evaluation that computes a batch in parts, which stay in the caches."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.network = network
        self._images = _IMAGES_PER_THREAD[precision]

    def forward(self, x: Tensor) -> Tensor:
        """Compute all parts."""
        parts = x.split(self._images * torch.get_num_threads())
        return torch.cat([self.network(part) for part in parts])


class _Traced:
    """A network with its modules by name.

    Attributes:
        opaque: Modules that are called as they are.
        layers: All others by name; a graph calls what stands here.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._modules = dict(network.named_modules())
        self.opaque = {module for module in self._modules.values() if _is_opaque(module)}
        self.layers = {n: m for n, m in self._modules.items() if m not in self.opaque}

    def graph(self) -> fx.Graph:
        """Return the network's graph, without identities."""
        graph = _Tracer(self.opaque).trace(self._network)
        for node in list(graph.nodes):
            if type(_layer(node, self.layers)) is nn.Identity:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        return graph

    def assemble(self, graph: fx.Graph) -> fx.GraphModule:
        """Return the module that computes a graph of these layers."""
        network = self._network
        tensors = dict((*network.named_parameters(), *network.named_buffers()))
        return fx.GraphModule(
            {**self._modules, **self.layers, **tensors}, graph, type(network).__name__
        )


def _is_opaque(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not type(module).__module__.startswith(_TRACEABLE) or any(
        getattr(module, name) for name in hooks
    )


class _Tracer(LayerTracer):
    """Tracer that goes down to layers, and leaves opaque modules whole."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a layer, or opaque."""
        return m in self._opaque or super().is_leaf_module(m, module_qualified_name)


def _layer(node: fx.Node, layers: dict[str, nn.Module]) -> nn.Module | None:
    """Return the layer that a node calls, if it calls one that may be replaced."""
    return layers.get(str(node.target)) if node.op == "call_module" else None


def _fuse(graph: fx.Graph, node: fx.Node, layers: dict[str, nn.Module], name: str) -> bool:
    """Let one layer take the place of a node, and of the sum and the ReLU right behind it.

    Args:
        graph: The graph.
        node: A node with one input.
        layers: Layers that the graph calls.
        name: Name of the layer; it is given the node's input, and the addend if there is one.

    Returns:
        Whether the layer has to compute a ReLU, too.
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
    return next(iter(node.users)) if len(node.users) == 1 else None


def _addend(total: fx.Node, term: fx.Node) -> fx.Node | None:
    """Return what a sum adds to a term; torch.fx records ``+=`` as a sum, too."""
    if total.op != "call_function" or total.target is not add:
        return None
    others = [arg for arg in total.args if arg is not term]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _return_twice(graph: fx.Graph, node: fx.Node, layers: dict[str, nn.Module]) -> None:
    """Let a fused norm return its output twice if two layers use it."""
    layer = _layer(node, layers)
    if not isinstance(layer, FusedBatchNorm) or len(node.users) != 2:
        return
    users = list(node.users)
    if not all(type(_layer(user, layers)) in _KEEP_INPUT for user in users):
        return
    layer.returns_twice = True
    for number, user in reversed(list(enumerate(users))):
        with graph.inserting_after(node):
            part = graph.call_function(getitem, (node, number))
        user.replace_input_with(node, part)
