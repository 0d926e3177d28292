"""Optimizer of a recipe: its parameter groups, its learning rate, its state by parameter name."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_builder.errors import CheckpointError
from resnet_builder.model import sections
from resnet_builder.spec.recipe import Adam, AdamW, OptimizerSpec, Sgd
from resnet_builder.spec.recipe import Muon as MuonSpec
from resnet_builder.training.muon import Muon
from resnet_builder.training.openmp import update_in_one_thread

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)

_MULTIPLIER = "lr_multiplier"
"""Key of a parameter group: its learning rate, relative to that of the schedule."""


def build_optimizer(
    model: nn.Module,
    spec: OptimizerSpec,
    *,
    no_weight_decay: Collection[str],
    fused: bool,
    head_lr_multiplier: float = 1.0,
) -> Optimizer:
    """Build the optimizer of the parameters that need gradients.

    Args:
        model: The network, on its device and in its memory format.
        spec: Type and options of the optimizer.
        no_weight_decay: Kinds of parameters without weight decay: ``norm``, ``bias``.
        fused: Whether one kernel updates all weights.
        head_lr_multiplier: Learning rate of the head, relative to that of all other layers.
    """
    conv_weights = _stage_conv_weights(model) if isinstance(spec, MuonSpec) else {}
    groups = _parameter_groups(
        model,
        spec.aux.weight_decay if isinstance(spec, MuonSpec) else spec.weight_decay,
        no_weight_decay=no_weight_decay,
        head_lr_multiplier=head_lr_multiplier,
        excluded=frozenset(conv_weights),
    )
    built: Optimizer
    match spec:
        case Sgd(lr=lr, momentum=momentum, nesterov=nesterov):
            built = torch.optim.SGD(
                groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused
            )
        case Adam(lr=lr, betas=betas, eps=eps):
            built = torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        case AdamW(lr=lr, betas=betas, eps=eps):
            built = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        case MuonSpec():  # its matrix products are for all threads
            return _build_muon(spec, conv_weights, groups, fused=fused)
    if fused:
        update_in_one_thread(built)
    return built


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the next update; groups multiply it by their own multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_MULTIPLIER]


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state of an optimizer by ``<parameter>/<name>``. The tensors are not copied."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def restore_optimizer(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore the state that :func:`optimizer_state` returned.

    The state of parameters that have been frozen since is dropped. Tensors in the shape of their
    parameter get its device and memory format: fused kernels read both in memory order.

    Raises:
        CheckpointError: A tensor is of no parameter of the network, or has another shape.
    """
    parameters = dict(model.named_parameters())
    order = [p for group in optimizer.param_groups for p in group["params"]]
    index = {parameter: number for number, parameter in enumerate(order)}
    entries: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for full_name, value in state.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or value.shape not in {parameter.shape, torch.Size()}:
            raise CheckpointError(
                f"the checkpoint's '{full_name}' is of no parameter of the network"
            )
        if parameter in index:
            if value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                value = like.copy_(value)
            entries[index[parameter]][key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(entries), "param_groups": groups})


def _build_muon(
    spec: MuonSpec, conv_weights: dict[Tensor, int], groups: list[dict[str, Any]], *, fused: bool
) -> Optimizer:
    # The schedule sets Muon's rate; that of the auxiliary SGD is a multiple of it.
    for group in groups:
        group[_MULTIPLIER] *= spec.aux.lr / spec.lr
        group |= {"momentum": spec.aux.momentum, "nesterov": spec.aux.nesterov}
    orthogonalized = {
        "params": list(conv_weights),
        "orthogonalize": True,
        "momentum": spec.momentum,
        "weight_decay": spec.weight_decay,
        _MULTIPLIER: 1.0,
    }
    muon = Muon([orthogonalized, *groups], conv_groups=conv_weights, fused=fused)
    set_lr(muon, spec.lr)
    return muon


def _stage_conv_weights(model: nn.Module) -> dict[Tensor, int]:
    """Return the weights of the stages' convolutions that are trained, with their groups."""
    layers = [
        layer
        for section, names in sections(model).items()
        if section not in {"stem", "head"}
        for name in names
        for layer in model.get_submodule(name).modules()
    ]
    return {
        layer.weight: layer.groups
        for layer in layers
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad
    }


def _parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_weight_decay: Collection[str],
    head_lr_multiplier: float,
    excluded: Collection[Tensor],
) -> list[dict[str, Any]]:
    """Group the parameters that share their weight decay and their learning rate."""
    head = {
        parameter
        for layer in sections(model)["head"]
        for parameter in model.get_submodule(layer).parameters()
    }
    members: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter, kinds in _trained_parameters(model):
        if parameter in excluded:
            continue
        decay = 0.0 if kinds & set(no_weight_decay) else weight_decay
        multiplier = head_lr_multiplier if parameter in head else 1.0
        members[decay, multiplier].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, _MULTIPLIER: multiplier}
        for (decay, multiplier), parameters in members.items()
    ]


def _trained_parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, set[str]]]:
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
