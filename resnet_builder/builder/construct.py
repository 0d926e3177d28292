"""From a checked spec to a network: its layers, then its weights."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from typing import cast

import torch
from torch import nn

from resnet_builder.blocks.init import Scheme, empty_from_meta, initialise, is_unwritten
from resnet_builder.blocks.interfaces import (
    ACTIVATIONS,
    ANTIALIAS_FILTERS,
    ATTENTIONS,
    BLOCKS,
    HEADS,
    NORMS,
    SHORTCUTS,
    STEMS,
    Block,
)
from resnet_builder.blocks.shortcuts import changes_shape
from resnet_builder.builder.grid import Grid, stage_grids
from resnet_builder.builder.moulds import mould_of
from resnet_builder.builder.parts import bind, is_preactivated
from resnet_builder.errors import PartError
from resnet_builder.model import ResNet
from resnet_builder.spec.schema import DefaultInit, FanInit, ModelSpec, NormalInit, StageSpec


class MisplacedPartError(PartError):
    """A part that could not be made, and the path in the spec where it stands."""

    def __init__(self, cause: PartError, path: tuple[str | int, ...]) -> None:
        super().__init__(str(cause), code=cause.code, option=cause.option)
        self.path = path


def construct_on_meta(model: ModelSpec, *, output_stride: int | None = None) -> ResNet:
    """Build a network's layers without memory for their weights.

    Args:
        model: Resolved: with its input's channels.
        output_stride: Of the last stage; dilation stands in for strides beyond it.

    Raises:
        PartError: Options or shapes do not go together.
        UsageError: The network's strides do not reach ``output_stride``.
    """
    network = _construct(model, output_stride, device="meta")
    if model.zero_init_residual:
        with _place("model", "zero_init_residual"):
            for stage in network.stages:
                cast(Block, stage[0]).zero_residual()  # raises where it cannot be
    return network


def construct_ordinarily(model: ModelSpec, *, output_stride: int | None = None) -> ResNet:
    """Build a network on the CPU by its layers' own constructors, which also initialise it.

    Raises:
        PartError: Options or shapes do not go together.
        UsageError: The network's strides do not reach ``output_stride``.
    """
    return _construct(model, output_stride, device="cpu")


def give_weights(
    network: ResNet, model: ModelSpec, *, seed: int | None, output_stride: int | None = None
) -> ResNet:
    """Give a network built on meta its first weights, each drawn once.

    A network with a tensor that neither the scheme nor its module's ``reset_parameters`` writes
    (a computed buffer, say) is built again in the ordinary way, so that the tensor survives.

    Args:
        network: From :func:`construct_on_meta`; used up.
        model: The spec it was built from.
        seed: Of a generator of its own; ``None`` draws from torch's global one.
        output_stride: That it was built with.

    Returns:
        The network, on the CPU.
    """
    scheme = _scheme(model)
    with _seeded(seed):
        foreign = empty_from_meta(network)
        initialise(network, scheme)
        if any(is_unwritten(module) for module in foreign):
            network = construct_ordinarily(model, output_stride=output_stride)
            initialise(network, scheme)
    if model.zero_init_residual:
        for block in _blocks(network):
            block.zero_residual()
    return network


def network_grids(model: ModelSpec, output_stride: int | None = None) -> list[Grid]:
    """Return the grid of each stage of a network.

    Args:
        model: Resolved: with its input's channels.
        output_stride: Of the last stage; dilation stands in for strides beyond it.

    Raises:
        UsageError: The network's strides do not reach ``output_stride``.
    """
    stem = bind(STEMS, model.stem, norm=_no_layer, activation=_no_layer)(model.in_channels)
    return stage_grids(stem.stride, model.stages, output_stride)


def _construct(model: ModelSpec, output_stride: int | None, *, device: str) -> ResNet:
    assert model.in_channels is not None, "the spec is resolved"
    layer_makers: dict[str, Callable[..., nn.Module]] = {
        "norm": partial(_make_at, ("model", "norm"), bind(NORMS, model.norm)),
        "activation": bind(ACTIVATIONS, model.activation),
        "antialias": bind(ANTIALIAS_FILTERS, model.antialias),
    }
    with _place("model", "stem"), torch.device(device):
        stem = bind(STEMS, model.stem, **layer_makers)(model.in_channels)
    layers = dict(stem.layers)
    channels = stem.out_channels
    rates = iter(drop_path_rates(model))
    grids = stage_grids(stem.stride, model.stages, output_stride)
    for number, (stage, grid) in enumerate(zip(model.stages, grids, strict=True)):
        attention = _attention_maker(model, stage, number)
        make = _block_maker(model, stage, grid, attention=attention, **layer_makers)
        stage_rates = list(islice(rates, stage.blocks))
        with _place("model", "stages", number):
            blocks = _stage(make, channels, stage, stage_rates, device=device)
        layers[f"layer{number + 1}"] = nn.Sequential(*blocks)
        channels = blocks[-1].out_channels
    with _place("model", "head"), torch.device(device):
        head = bind(HEADS, model.head, **layer_makers)(channels, model.num_classes)
        if taken := layers.keys() & head.keys():
            raise PartError(f"its layer '{min(taken)}' has the name of one before it")
    return ResNet({**layers, **head})


def _make_at(
    path: tuple[str | int, ...], make: Callable[..., nn.Module], *arguments: int
) -> nn.Module:
    """Make a part; what is wrong with it is wrong at its own place, whichever part asks for it."""
    with _place(*path):
        return make(*arguments)


def _attention_maker(model: ModelSpec, stage: StageSpec, number: int) -> Callable[..., nn.Module]:
    if stage.attention is None:
        return partial(_make_at, ("model", "attention"), bind(ATTENTIONS, model.attention))
    path = ("model", "stages", number, "attention")
    return partial(_make_at, path, bind(ATTENTIONS, stage.attention))


def _make_shortcut(
    name: str,
    make: Callable[..., nn.Module | None],
    in_channels: int,
    out_channels: int,
    stride: int,
) -> nn.Module | None:
    """Make a shortcut; an identity where the shape changes would fail in the first sum."""
    shortcut = make(in_channels, out_channels, stride)
    if isinstance(shortcut, nn.Identity) and changes_shape(in_channels, out_channels, stride):
        raise PartError(
            f"shortcut '{name}' hands on {in_channels} channels at stride 1, where the block "
            f"gives {out_channels} at stride {stride}"
        )
    return shortcut


def drop_path_rates(model: ModelSpec) -> list[float]:
    """Return each block's drop-path probability: linear from 0 (Huang et al. 2016, section 3)."""
    count = sum(stage.blocks for stage in model.stages)
    if count == 1:
        return [model.drop_path]
    return [model.drop_path * number / (count - 1) for number in range(count)]


def _block_maker(
    model: ModelSpec, stage: StageSpec, grid: Grid, **layer_makers: Callable[..., nn.Module]
) -> Callable[..., nn.Module]:
    """Return what makes a stage's blocks; its arguments are what differs between them."""
    block = stage.block or model.block
    accepted = BLOCKS.accepts(block.type)
    if grid.dilation != 1 and not accepted >= {"first_dilation", "dilation"}:
        raise PartError(f"block '{block.type}' takes no dilation, which `output_stride` needs")
    shortcut_norm = _no_layer if is_preactivated(block) else layer_makers["norm"]
    shortcut = stage.shortcut or model.shortcut
    made = bind(
        BLOCKS,
        block,
        **layer_makers,
        dilation=grid.dilation,
    )

    def make(in_channels: int, channels: int, *, begins: bool, drop_path: float) -> nn.Module:
        undone = grid.undone_stride if begins else 1
        differing = {
            "first_dilation": grid.first_dilation if begins else grid.dilation,
            "begins_stage": begins,
            "drop_path": drop_path,
        }
        return made(
            in_channels,
            channels,
            stride=grid.stride if begins else 1,
            shortcut=partial(
                _make_shortcut,
                shortcut.type,
                bind(
                    SHORTCUTS,
                    shortcut,
                    norm=shortcut_norm,
                    undone_stride=undone,
                    dilation=grid.first_dilation,
                ),
            ),
            **{key: value for key, value in differing.items() if key in accepted},
        )

    return make


def _no_layer(*args: int) -> nn.Module:
    """Stand in for a layer that is not there, or that nobody asks for."""
    return nn.Identity()


def _stage(
    make: Callable[..., nn.Module],
    in_channels: int,
    stage: StageSpec,
    rates: list[float],
    *,
    device: str,
) -> list[nn.Module]:
    """Make a stage's blocks; only the first strides and changes the width."""
    with torch.device(device):
        first = make(in_channels, stage.channels, begins=True, drop_path=rates[0])
    blocks = [first]
    for rate, run in groupby(rates[1:]):
        make_next = partial(make, first.out_channels, stage.channels, begins=False, drop_path=rate)
        blocks += _alike(make_next, len(list(run)), device)
    return blocks


def _alike(make: Callable[[], nn.Module], count: int, device: str) -> list[nn.Module]:
    """Make blocks that differ in nothing but their weights.

    On meta there are no weights yet, and unpickling copies of the first is many times faster
    than constructors.
    """
    with torch.device(device):
        first = make()
        mould = mould_of(first) if device == "meta" and count > 1 else None
        if mould is None:
            return [first, *(make() for _ in range(count - 1))]
    return [first, *(mould.cast() for _ in range(count - 1))]


@contextmanager
def _place(*path: str | int) -> Iterator[None]:
    """Let errors of a part say where in the spec it stands."""
    try:
        yield
    except MisplacedPartError:
        raise  # by a part inside, which knows its place better
    except PartError as error:
        raise MisplacedPartError(error, path) from error


def _scheme(model: ModelSpec) -> Scheme | None:
    init = model.init
    if isinstance(init, DefaultInit):
        return None
    if isinstance(init, NormalInit):
        return partial(nn.init.normal_, std=init.std)
    if isinstance(init, FanInit):
        return partial(getattr(nn.init, f"{init.type}_"), mode=init.mode, nonlinearity="relu")
    return getattr(nn.init, f"{init.type}_")


def _blocks(network: ResNet) -> Iterator[Block]:
    for stage in network.stages:
        yield from cast(Iterable[Block], stage)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from a generator of our own, leaving torch's global ones as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_in_32_bits(seed))
        yield


def _in_32_bits(seed: int) -> int:
    """Fold a seed: torch's CPU generator looks at the low 32 bits only."""
    return (seed ^ (seed >> 32) * 0x9E3779B1) & 0xFFFFFFFF


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: it would walk ten thousand new modules again and again.

    Afterwards it takes them for old: freezing and thawing moves what there is to the oldest
    generation, without a walk.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if gc.get_freeze_count() == 0:  # else the caller keeps something frozen
                gc.freeze()
                gc.unfreeze()
            gc.enable()
