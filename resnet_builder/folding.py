"""Convolutions and the norms right behind them, which in evaluation are one layer."""

import copy
from collections import Counter

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

RUNNING_MEAN = "running_mean"


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """Return a copy of a network that computes in evaluation what the network does, in less time.

    Batch norms are multiplied into the convolutions that they follow; the logits are the same but
    for rounding. A network that cannot be followed, or has no such norms, is returned itself.

    Args:
        network: On any device; it is left as it was.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return network
    pairs = norms_by_convolution(network)
    if not pairs:
        return network
    twin = copy.deepcopy(network).eval()
    for convolution, norm in pairs.items():
        first, second = twin.get_submodule(convolution), twin.get_submodule(norm)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            twin.set_submodule(convolution, fuse_conv_bn_eval(first, second))
            twin.set_submodule(norm, nn.Identity())
    return twin


def norms_by_convolution(network: nn.Module) -> dict[str, str]:
    """Return the norms with a running mean that are all that a convolution feeds, by its name.

    Layers that a network goes through more than once are left out.
    """
    try:
        graph = LayerTracer().trace(network)
    except Exception:  # a part from outside may ask anything of what stands in for its input
        return {}
    modules = dict(network.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Conv2d):
            match list(node.users):
                case [fx.Node(op="call_module", target=str(norm))] if _has_mean(modules[norm]):
                    found[str(node.target)] = norm
    return {conv: norm for conv, norm in found.items() if calls[conv] == calls[norm] == 1}


def _has_mean(module: nn.Module) -> bool:
    return isinstance(getattr(module, RUNNING_MEAN, None), Tensor)


class LayerTracer(fx.Tracer):
    """Follows what a network computes down to its layers, and into none of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is a layer."""
        return not any(m.children())
