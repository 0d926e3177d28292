"""The optimizer: its parameter groups, its rate, and its state by parameter name."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_builder.errors import CheckpointError
from resnet_builder.model import sections
from resnet_builder.spec.recipe import AdamW, OptimizerSpec, Sgd
from resnet_builder.spec.recipe import Muon as MuonSpec
from resnet_builder.training.muon import Muon

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


_MULTIPLIER = "lr_multiplier"
"""What a parameter group calls its learning rate over the scheduled one."""


def build_optimizer(
    model: nn.Module,
    spec: OptimizerSpec,
    *,
    no_weight_decay: Collection[str],
    fused: bool,
    head_lr_multiplier: float = 1.0,
) -> Optimizer:
    """Make an optimizer for the parameters of ``model`` that need gradients.

    Args:
        model: The network, on its device and in its memory format.
        spec: Which optimizer, and its options.
        no_weight_decay: Parameters without weight decay, as ``train.no_weight_decay`` lists them.
        fused: Whether one kernel updates all weights.
        head_lr_multiplier: The head's learning rate over that of all else.
    """
    kernels = _kernels(model) if isinstance(spec, MuonSpec) else {}
    aux = spec.aux if isinstance(spec, MuonSpec) else spec
    groups = _groups(
        model,
        aux.weight_decay,
        no_weight_decay=no_weight_decay,
        head_lr_multiplier=head_lr_multiplier,
        but=frozenset(kernels),
    )
    match spec:
        case Sgd(lr=lr, momentum=momentum, nesterov=nesterov):
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case AdamW(lr=lr, betas=betas, eps=eps):
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        case MuonSpec():
            return _muon(spec, kernels, groups, fused=fused)


def state_copies(spec: OptimizerSpec) -> int:
    """Return how many numbers an optimizer remembers for each that it changes."""
    match spec:
        case Sgd(momentum=momentum):
            return int(momentum > 0)
        case AdamW():
            return 2
        case MuonSpec():
            return 1


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the next update; a group's own multiplier comes on top."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_MULTIPLIER]


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return an optimizer's state as ``<parameter>/<what>``; the tensors are its own."""
    return {
        f"{name}/{what}": value
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def restore_optimizer(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that :func:`optimizer_state` returned.

    State of parameters that it does not change, because they have been frozen since, is dropped.
    Tensors of a parameter's shape get its device and memory format: fused kernels walk through
    both in the order they lie in memory.

    Raises:
        CheckpointError: There is state of no parameter of the network's, or of another shape.
    """
    parameters = dict(model.named_parameters())
    order = [p for group in optimizer.param_groups for p in group["params"]]
    index = {parameter: number for number, parameter in enumerate(order)}
    entries: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        name, _, what = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or value.shape not in {parameter.shape, torch.Size()}:
            raise CheckpointError(f"the checkpoint's '{key}' is of no parameter of the network")
        if parameter in index:
            entries[index[parameter]][what] = _like(value, parameter)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(entries), "param_groups": groups})


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _muon(
    spec: MuonSpec, kernels: dict[Tensor, int], groups: list[dict[str, Any]], *, fused: bool
) -> Optimizer:
    """Make the optimizer of two kinds; the auxiliary rate is a multiple of Muon's."""
    for group in groups:
        group[_MULTIPLIER] *= spec.aux.lr / spec.lr
        group |= {"momentum": spec.aux.momentum, "nesterov": spec.aux.nesterov}
    orthogonal = {
        "params": list(kernels),
        "kernels": True,
        "momentum": spec.momentum,
        "weight_decay": spec.weight_decay,
        _MULTIPLIER: 1.0,
    }
    made = Muon([orthogonal, *groups], divisions=kernels, fused=fused)
    set_rate(made, spec.lr)
    return made


def _kernels(model: nn.Module) -> dict[Tensor, int]:
    """Return the kernels of the stages' convolutions that are to be trained, and their groups."""
    names = [
        name
        for section, layers in sections(model).items()
        if section not in {"stem", "head"}
        for name in layers
    ]
    layers = [layer for name in names for layer in model.get_submodule(name).modules()]
    return {
        layer.weight: layer.groups
        for layer in layers
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad
    }


def _groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_weight_decay: Collection[str],
    head_lr_multiplier: float,
    but: Collection[Tensor],
) -> list[dict[str, Any]]:
    """Put parameters together that share their weight decay and their learning rate."""
    head = frozenset[nn.Parameter]() if head_lr_multiplier == 1 else _head_parameters(model)
    members: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter, kinds in _parameters(model):
        if parameter in but:
            continue
        decay = 0.0 if kinds & set(no_weight_decay) else weight_decay
        multiplier = head_lr_multiplier if parameter in head else 1.0
        members[decay, multiplier].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, _MULTIPLIER: multiplier}
        for (decay, multiplier), parameters in members.items()
    ]


def _head_parameters(model: nn.Module) -> frozenset[nn.Parameter]:
    layers = map(model.get_submodule, sections(model)["head"])
    return frozenset(parameter for layer in layers for parameter in layer.parameters())


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, set[str]]]:
    """Yield the parameters to train, each with its kinds: ``norm``, ``bias``, both or neither."""
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                kinds = {"bias"} if name == "bias" else set()
                # A lone vector scales channels as a norm does, in whatever layer it stands.
                if isinstance(module, _NORMS) or (parameter.ndim < 2 and not kinds):
                    kinds.add("norm")
                yield parameter, kinds
