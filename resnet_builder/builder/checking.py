"""The second half of checking a spec: what needs the parts themselves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import ValidationError
from torch import nn

from resnet_builder.blocks.interfaces import BLOCKS, STEMS
from resnet_builder.builder.construct import (
    MisplacedPartError,
    construct_on_meta,
    network_grids,
)
from resnet_builder.builder.fine_tuning import fine_tuning_problems, weights_problems
from resnet_builder.builder.parts import (
    Path,
    bind,
    data_parts,
    model_parts,
    part_options,
)
from resnet_builder.builder.resolving import (
    DEFAULT_CHANNELS,
    input_info,
    resolve,
    resolve_model,
)
from resnet_builder.data.interfaces import AUGMENTATIONS
from resnet_builder.errors import PartError, Problem, RegistryError
from resnet_builder.model import ResNet, count_macs, count_parameters
from resnet_builder.registry import Registry
from resnet_builder.spec.load import Draft
from resnet_builder.spec.positions import Positions
from resnet_builder.spec.recipe import Interval, TrainSpec
from resnet_builder.spec.schema import DataSpec, ExpectSpec, ModelSpec, Spec
from resnet_builder.spec.section import Part
from resnet_builder.spec.validation import problems_from


@dataclass(frozen=True, slots=True)
class CheckedSpec:
    """A spec after both halves of checking.

    Attributes:
        problems: What is wrong with it, in file order.
        spec: The spec, resolved, if nothing is wrong.
        network: Its network on the meta device, if it could be built.
        macs: Multiply-adds for one image, if they were asked for.
        notices: What the user should know of the spec, one line each.
    """

    problems: tuple[Problem, ...]
    spec: Spec | None
    network: ResNet | None
    macs: int | None = None
    notices: tuple[str, ...] = ()


def check(draft: Draft, *, with_macs: bool = False, with_weights: bool = False) -> CheckedSpec:
    """Check names, options, shapes and expected counts of whatever sections are well-formed.

    Args:
        draft: A spec after the first half of checking.
        with_macs: Also run the network once, on meta, and compare its MACs with ``expect``.
        with_weights: Also check that the weights it starts from are there.

    Raises:
        StorageError: The weights may not be read.
    """
    found = list(_part_problems(draft))
    network, macs = None, None
    if not found:
        found += _data_problems(draft)
        if draft.model is not None and not draft.is_wrong("data"):
            model = resolve_model(draft.model, draft.data)
            network, problems = _build_on_meta(model, draft.positions)
            found += problems
            if draft.train is not None:
                found += _resizing_problems(model, draft.train, draft.positions)
            if network is not None:
                found += _sync_norm_problems(network, draft.train, draft.positions)
                if with_macs:
                    macs, problems = _forward_problems(network, model, draft.positions)
                    found += problems
                found += _expect_problems(network, draft, macs)
    found += fine_tuning_problems(draft)
    if with_weights and draft.model is not None and draft.model.weights is not None:
        found += weights_problems(draft.model.weights, draft.positions)
    everything = draft.positions.ordered([*draft.problems, *found])
    spec = resolve(draft.spec) if draft.spec is not None and not everything else None
    return CheckedSpec(everything, spec, network, macs, draft.notices)


def _part_problems(draft: Draft) -> Iterator[Problem]:
    """Check each part by itself: its name, and its options by its signature."""
    parts = chain(
        model_parts(draft.model) if draft.model is not None else (),
        data_parts(draft.data) if draft.data is not None else (),
    )
    for path, part, registry in parts:
        yield from _option_problems(path, part, registry, draft.positions)


def _option_problems(
    path: Path, part: Part, registry: Registry[Any], positions: Positions
) -> Iterable[Problem]:
    try:
        part_options(registry, part)
    except RegistryError as error:
        return [
            positions.problem(
                "unknown-name",
                path,
                str(error),
                at="name",
                allowed=error.allowed,
                suggestion=error.suggestion,
            )
        ]
    except ValidationError as error:
        return problems_from(
            error, positions, path, registry.options(part.type), unknown_key_code="unknown-option"
        )
    return []


def _build_on_meta(model: ModelSpec, positions: Positions) -> tuple[ResNet | None, list[Problem]]:
    """Build the network without memory, which finds every shape that does not fit."""
    problems = [
        *_size_problems(model, positions),
        *_effect_problems(model, positions),
        *_plain_problems(model, positions),
    ]
    if problems:
        return None, problems
    try:
        return construct_on_meta(model), []
    except MisplacedPartError as error:
        return None, [_part_problem(error, _given_at(error, model), positions)]


def _given_at(error: MisplacedPartError, model: ModelSpec) -> Path:
    """Return where the option that an error names was given: not in the stage, if it inherits."""
    match error.path:
        case ("model", "stages", int(number)) if error.option is not None:
            own = model.stages[number].block is not None
            return (*error.path, "block") if own else ("model", "block")
    return error.path


def _part_problem(error: PartError, path: Path, positions: Positions) -> Problem:
    where = path if error.option is None else (*path, error.option)
    return positions.problem(error.code, where, str(error))


def _size_problems(model: ModelSpec, positions: Positions) -> Iterator[Problem]:
    """Check that the strides leave at least one pixel."""
    assert model.image_size is not None
    grids = network_grids(model)
    if grids[-1].output_stride <= model.image_size:
        return
    shrunk = {"stem": grids[0].output_stride // model.stages[0].stride}
    shrunk |= {f"layer{number}": grid.output_stride for number, grid in enumerate(grids, 1)}
    sizes = (
        f"{name} {-(-model.image_size // total) if total <= model.image_size else 'below 1'}"
        for name, total in shrunk.items()
    )
    yield positions.problem(
        "shape",
        ("model", "stages"),
        f"strides shrink {model.image_size} pixels below one: {', '.join(sizes)}",
    )


def _resizing_problems(
    model: ModelSpec, train: TrainSpec, positions: Positions
) -> Iterator[Problem]:
    """Check that images are made smaller, and that the strides leave at least one pixel."""
    assert model.image_size is not None
    smallest = network_grids(model)[-1].output_stride
    for number, part in enumerate(train.progressive_resizing):
        path = ("train", "progressive_resizing", number, "size")
        if part.size >= model.image_size:
            yield positions.problem(
                "no-effect",
                path,
                f"{part.size} pixels a side are not fewer than the images' own {model.image_size}",
            )
        elif part.size < smallest:
            yield positions.problem(
                "shape",
                path,
                f"strides shrink {part.size} pixels below one; {smallest} or more are needed",
            )


def _effect_problems(model: ModelSpec, positions: Positions) -> Iterator[Problem]:
    """Check that whatever the spec asks of a block, the block takes, and has a use for."""
    if (
        model.antialias.type != "none"
        and "antialias" not in STEMS.accepts(model.stem.type)
        and all(stage.stride == 1 for stage in model.stages)
    ):
        yield positions.problem("no-effect", ("model", "antialias"), "no block strides")
    for number, stage in enumerate(model.stages):
        block = stage.block or model.block
        attention = stage.attention or model.attention
        asked = {
            "norm": model.norm.type != "batch_norm",
            "activation": model.activation.type != "relu",
            "attention": attention.type != "none",
            "antialias": model.antialias.type != "none",
            "drop_path": model.drop_path > 0,
        }
        wanted = {key for key, is_asked in asked.items() if is_asked}
        for key in sorted(wanted - BLOCKS.accepts(block.type)):
            own = key == "attention" and stage.attention is not None
            path = ("model", "stages", number, key) if own else ("model", key)
            yield positions.problem(
                "no-effect", path, f"block '{block.type}' in stages[{number}] takes no `{key}`"
            )


def _plain_problems(model: ModelSpec, positions: Positions) -> Iterator[Problem]:
    """Check that a stage without shortcuts keeps its residual path: it is all there is."""
    shortcuts = [(stage.shortcut or model.shortcut).type for stage in model.stages]
    if "none" not in shortcuts:
        return
    number = shortcuts.index("none")
    for key, is_asked in (
        ("zero_init_residual", model.zero_init_residual),
        ("drop_path", model.drop_path > 0),
    ):
        if is_asked:
            yield positions.problem(
                "exclusive",
                ("model", key),
                f"stages[{number}] has no shortcut, so zeroing its residual path kills the network",
            )


def _data_problems(draft: Draft) -> Iterator[Problem]:
    """Check the data section, and it against the network and the recipe."""
    data, positions = draft.data, draft.positions
    if data is None:
        return
    try:
        facts = input_info(data)
    except PartError as error:
        yield _part_problem(error, ("data", "dataset"), positions)
        return
    asked = facts.channels if draft.model is None else draft.model.in_channels or facts.channels
    yield from _augment_problems(data, asked or DEFAULT_CHANNELS, positions)
    if draft.model is not None:
        model = draft.model
        for key, what, given, fed in (
            ("num_classes", "classes", model.num_classes, facts.num_classes),
            ("in_channels", "channels", model.in_channels, facts.channels),
            ("image_size", "pixels a side", model.image_size, facts.image_size),
        ):
            if given is not None and fed is not None and given != fed:
                yield positions.problem(
                    "mismatch",
                    ("model", key),
                    f"the network is for {given} {what}, {data.dataset.type} has {fed}"
                    + _MENDS.get(key, ""),
                )
    if draft.train is not None and data.validation == 0 and facts.own_validation is False:
        yield from _validation_problems(draft.train, positions)


_MENDS = {
    "in_channels": "; `to_rgb` under data.preprocess makes three of one",
    "image_size": "; `resize` or `center_crop` under data.preprocess changes it",
}


def _augment_problems(data: DataSpec, channels: int, positions: Positions) -> Iterator[Problem]:
    """Make every augmentation, and check that none needs pixels or channels that are not there."""
    floats_since: str | None = None
    for number, part in enumerate(data.augment):
        path = ("data", "augment", number)
        try:
            made = bind(AUGMENTATIONS, part)()
        except PartError as error:
            yield _part_problem(error, path, positions)
            continue
        works_on, allowed = made.works_on, getattr(made, "channels", (channels,))
        if channels not in allowed:
            counts = " or ".join(map(str, allowed))
            yield positions.problem(
                "mismatch",
                path,
                f"`{part.type}` changes images of {counts} channels, not {channels}",
            )
        elif part.type == "random_resized_crop" and number:
            yield positions.problem("exclusive", path, f"`{part.type}` must stand first")
        elif works_on == "pixels" and floats_since is not None:
            yield positions.problem(
                "exclusive",
                path,
                f"`{part.type}` works on 8-bit pixels and must stand before `{floats_since}`",
            )
        elif works_on == "normalised":
            floats_since = floats_since or part.type


def _validation_problems(train: TrainSpec, positions: Positions) -> Iterator[Problem]:
    for key, is_asked in (
        ("early_stop", train.early_stop is not None),
        ("evaluate_every", train.evaluate_every != Interval(epochs=1)),
    ):
        if is_asked:
            yield positions.problem(
                "no-effect", ("train", key), f"`{key}` has no effect without data.validation"
            )


def _sync_norm_problems(
    network: ResNet, train: TrainSpec | None, positions: Positions
) -> Iterator[Problem]:
    if train is None or not train.sync_norm:
        return
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        yield positions.problem(
            "no-effect", ("train", "sync_norm"), "has no effect on a network without batch norms"
        )


def _forward_problems(
    network: ResNet, model: ModelSpec, positions: Positions
) -> tuple[int | None, list[Problem]]:
    """Run one image through the network, on meta, and count its MACs."""
    channels, size, _ = model.image_shape
    try:
        return count_macs(network, channels, size), []
    except (RuntimeError, TypeError, ValueError) as error:  # raised by torch, or by a plugin
        reason = str(error).strip().partition("\n")[0]
        problem = positions.problem("shape", ("model",), f"a forward pass fails: {reason}")
        return None, [problem]


def _expect_problems(network: ResNet, draft: Draft, macs: int | None) -> list[Problem]:
    if draft.expect is None:
        return []
    return [
        draft.positions.problem("expect", ("expect", key), message)
        for key, message in unexpected(network, draft.expect, macs=macs)
    ]


def unexpected(
    network: ResNet, expect: ExpectSpec, *, macs: int | None = None
) -> Iterator[tuple[str, str]]:
    """Compare a network with what its spec expects; yield what differs, by key.

    Args:
        network: The network, on any device.
        expect: The counts expected.
        macs: Of one image, if they were counted.
    """
    if expect.parameters is not None and (count := count_parameters(network)) != expect.parameters:
        yield "parameters", f"the network has {count:,} parameters, not {expect.parameters:,}"
    if expect.depth is not None and network.depth != expect.depth:
        yield "depth", f"the network is {network.depth} layers deep, not {expect.depth}"
    if macs is not None and expect.macs is not None and macs != expect.macs:
        yield "macs", f"the network takes {macs:,} MACs an image, not {expect.macs:,}"
