"""Dry run of a network on the meta device: shapes, and what only a training step refuses."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from resnet_builder.data.preprocess import covering_size
from resnet_builder.errors import Problem, SpecPath, counted
from resnet_builder.model import ResNet, count_macs, distinct_blocks, sections
from resnet_builder.parts import training_shape
from resnet_builder.registry import outside_error
from resnet_builder.spec.load import Draft
from resnet_builder.spec.schema import ModelSpec


def forward_problems(
    network: ResNet, model: ModelSpec, draft: Draft
) -> tuple[int | None, list[Problem]]:
    """Run one image through a network on meta, in evaluation mode.

    Returns:
        Multiply-adds, unless the forward pass fails; problems.
    """
    try:
        with _traced(network) as calls:
            return count_macs(network, model.image_shape), []
    except Exception as error:  # raised by torch, or by code from outside
        message = _failure(error, calls, "a forward pass")
        return None, [draft.positions.problem("shape", _place(calls), message)]


def training_problems(
    network: ResNet, model: ModelSpec, draft: Draft, processes: int
) -> Iterator[Problem]:
    """Make a training step on meta at every size that the recipe feeds.

    Norms refuse in training what they take in evaluation: one value a channel, for example, which
    is one image at a time that strides have shrunk to one pixel.

    Args:
        network: Network on the meta device.
        model: Resolved section ``model``.
        draft: Spec, with a recipe or without one.
        processes: Number of processes that divide each batch.
    """
    train = draft.train
    if train is None:
        return
    batch = ("train", "batch_size")
    if train.batch_size % (train.accumulate * processes):
        micro_batches = f" in {train.accumulate} micro-batches each" if train.accumulate > 1 else ""
        yield draft.positions.problem(
            "mismatch",
            batch,
            f"{train.batch_size} images cannot be divided among {processes} "
            f"processes{micro_batches}; give a multiple of {train.accumulate * processes}",
        )
        return
    images = train.batch_size // (train.accumulate * processes)
    if train.sync_norm:
        images *= processes  # their statistics are those of all processes
    channels, *own = training_shape(model, draft.data)
    sizes: dict[tuple[int, int], SpecPath] = {(own[0], own[1]): batch}
    for number, part in enumerate(train.progressive_resizing):
        size = covering_size(part.size, *own)
        sizes.setdefault(size, ("train", "progressive_resizing", number, "size"))
    for (height, width), path in sizes.items():
        try:
            with _traced(network) as calls:
                _step_on_meta(network, (images, channels, height, width), train.freeze)
        except Exception as error:  # raised by torch, or by code from outside
            if [height, width] == own and not (calls and calls[-1].is_norm):
                path = _place(calls)
            pixels = f"{height} pixels a side" if height == width else f"{height}x{width} pixels"
            message = _failure(error, calls, f"a training step at {pixels}")
            yield draft.positions.problem("shape", path, message)


def _step_on_meta(network: ResNet, shape: tuple[int, int, int, int], freeze: Sequence[str]) -> None:
    was_training = network.training
    network.train()
    for section in freeze:
        for layer in sections(network).get(section, ()):
            network.get_submodule(layer).eval()
    try:
        output = torch.empty(shape, device="meta")
        for _, block, _ in distinct_blocks(network):
            output = block(output)
        torch.autograd.grad(output.sum(), list(network.parameters()), allow_unused=True)
    finally:
        network.train(was_training)


@dataclass(frozen=True, slots=True)
class _Call:
    """Layer of a network that is being computed: its name in the network, and its input's shape."""

    layer: nn.Module
    name: str
    shape: tuple[int, ...]

    @property
    def is_norm(self) -> bool:
        return isinstance(self.layer, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm)


@contextmanager
def _traced(network: nn.Module) -> Iterator[list[_Call]]:
    """Context with the stack of the layers being computed; an error leaves it as it is."""
    names = {module: name for name, module in network.named_modules()}
    calls: list[_Call] = []
    thread = get_ident()  # the hooks see every network, also one that another thread trains

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if get_ident() == thread:
            calls.append(_Call(module, names.get(module, ""), tuple(inputs[0].shape)))

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        if get_ident() == thread:
            calls.pop()

    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
        yield calls


def _place(calls: Sequence[_Call]) -> SpecPath:
    """Path of what a spec says of the layer that fails."""
    if calls and calls[-1].is_norm:
        return ("model", "norm")
    stage = re.match(r"layer(\d+)\.", calls[0].name) if calls else None
    return ("model", "stages", int(stage[1]) - 1) if stage else ("model",)


def _failure(error: Exception, calls: Sequence[_Call], what: str) -> str:
    """Describe a pass through a network that fails."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if found := outside_error(error):
        hint = "; it must also compute on torch's meta device, which has shapes and no values"
        return f"{what} fails in {found}{hint if ' meta ' in found else ''}"
    if not calls:
        return f"{what} fails: {reason}"
    call = calls[-1]
    if not (call.is_norm and reason.startswith("Expected more than 1")):
        return f"{what} fails in layer '{call.name}': {reason}"
    images, _, height, width = call.shape
    advice = "keep more pixels (fewer strides, larger images), or use another norm"
    if isinstance(call.layer, nn.BatchNorm2d):
        advice = (
            "compute more images at a time (a larger batch_size, a smaller accumulate, fewer "
            "processes), keep more pixels (fewer strides, larger images), or use "
            "`norm: group_norm`"
        )
    return (
        f"layer '{call.name}' ({type(call.layer).__name__}) cannot normalise a single value: it "
        f"gets {counted(images, 'image')} of {height}x{width} pixels at a time; {advice}"
    )
