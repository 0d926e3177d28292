"""Checks of a spec that need its parts: names, options, shapes, counts, fine-tuning, weights.

The first half of checking, types and ranges, is pydantic's (``spec/``). Each function here returns
the problems it finds; :func:`resnet_builder.builder.check_source` calls them in order. What only a
run of the network shows is found by :mod:`resnet_builder.dry_run`.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from resnet_builder.blocks.interfaces import BLOCKS, STEMS
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS, DatasetInfo
from resnet_builder.device import pick_device
from resnet_builder.errors import Problem, RegistryError, SpecPath, counted, nearest
from resnet_builder.model import ResNet, count_parameters
from resnet_builder.parts import (
    DEFAULT_CHANNELS,
    DEFAULT_IMAGE_SIZE,
    PlacedPart,
    PlacedPartError,
    build_loss,
    data_parts,
    loss_part,
    model_parts,
    placed_part,
    tracker_parts,
    training_shape,
)
from resnet_builder.runs.files import storage_errors
from resnet_builder.spec.compose import SET, absolute_path, dataset_at
from resnet_builder.spec.diagnostics import Positions, problems_from
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.load import Draft
from resnet_builder.spec.recipe import (
    CosineRestartsSchedule,
    Interval,
    MultistepSchedule,
    PlateauSchedule,
    StepSchedule,
    TrainSpec,
)
from resnet_builder.spec.schema import (
    DataSpec,
    ExpectSpec,
    ModelSpec,
    Normalize,
    is_file_name,
)
from resnet_builder.spec.section import height_and_width
from resnet_builder.system import open_regular
from resnet_builder.weights.hub import find_weights
from resnet_builder.weights.presets import published_weights

_FOR_FEW_IMAGES = "--with small_data, or --with finetune for pretrained weights"

# A recipe for more images than there are: each is seen more often, or an epoch has fewer steps.
_MOST_EPOCHS = 1_000
_FEWEST_STEPS = 5
_FEW = 64


def part_problems(draft: Draft) -> Iterator[Problem]:
    """Check each part by itself: its name, and its options by its signature."""
    parts = chain(
        model_parts(draft.model) if draft.model is not None else (),
        data_parts(draft.data) if draft.data is not None else (),
        (loss_part(draft.train),) if draft.train is not None else (),
        tracker_parts(draft.run) if draft.run is not None else (),
        (placed_part(path, part) for path, part in draft.parts),
    )
    for placed in parts:
        try:
            placed.options  # noqa: B018 (validates them)
        except RegistryError as error:
            yield draft.positions.problem(
                "unknown-name",
                placed.path,
                str(error),
                at="name",
                allowed=error.allowed,
                suggestion=_dataset_meant(placed, draft.positions) or error.suggestion,
            )
        except ValidationError as error:
            yield from problems_from(
                error,
                draft.positions,
                placed.path,
                placed.registry.options(placed.part.type),
                unknown_key_code="unknown-option",
            )


def _dataset_meant(placed: PlacedPart, positions: Positions) -> str | None:
    """What to write for images at a path that stands in place of the name of a dataset."""
    path, place = placed.part.type, positions.place(placed.path)
    if placed.registry is not DATASETS or not is_file_name(path):
        return None
    is_there = os.path.exists(images := absolute_path(path, place))
    if not is_there and "/" not in path and os.sep not in path:
        return None
    if place.source.name == SET:
        return f"--data {shlex.quote(path)}"
    return dump_value({**dataset_at(images), "path": path})


def data_problems(draft: Draft, info: DatasetInfo) -> Iterator[Problem]:
    """Check that the data section fits together, and that network and recipe fit the data.

    Args:
        draft: Spec.
        info: Description of the network's input images.
    """
    data, positions = draft.data, draft.positions
    if data is None:
        return
    asked = info.channels if draft.model is None else draft.model.in_channels or info.channels
    channels = asked or DEFAULT_CHANNELS
    batch_size = None if draft.train is None else draft.train.batch_size
    size = draft.model.image_size if draft.model is not None else None
    size = size or info.image_size or DEFAULT_IMAGE_SIZE
    yield from _augment_problems(data, channels, size, batch_size, positions)
    if isinstance(data.normalize, Normalize) and len(data.normalize.mean) != channels:
        yield positions.problem(
            "shape",
            ("data", "normalize"),
            f"its mean and std have {counted(len(data.normalize.mean), 'channel')}, the images "
            f"{channels}",
        )
    if draft.model is not None:
        yield from _input_problems(draft.model, data, info, positions)
    if draft.train is not None:
        images = info.training_images
        yield from recipe_problems(
            draft.train,
            positions,
            images=None if images is None else images - data.set_aside(images),
            has_validation=data.validation != 0 or info.own_validation,
        )
        given = None if draft.model is None else draft.model.num_classes
        if info.num_classes is None and isinstance(given, int):
            info = replace(info, num_classes=given)
        yield from label_problems(data, draft.train, positions, info)
    if data.split_seed != 0 and data.validation == 0:
        message = "has no effect without data.validation"
        yield positions.problem("no-effect", ("data", "split_seed"), message, at="key")


def missing_classes(draft: Draft) -> Problem:
    """Problem of a network whose number of classes nothing tells."""
    message = "is missing: there is no dataset that tells it"
    return draft.positions.problem("missing-key", ("model", "num_classes"), message, at="key")


def known_recipe_notices(draft: Draft, info: DatasetInfo) -> Iterator[str]:
    """Yield notices of a recipe before the images are read, if their number is known.

    Args:
        draft: Spec.
        info: Description of the network's input images.
    """
    images = info.training_images
    if draft.train is not None and draft.data is not None and images is not None:
        yield from recipe_notices(draft.train, images - draft.data.set_aside(images))
    if (
        draft.train is not None
        and draft.data is not None
        and draft.data.sampler == "balanced"
        and draft.train.loss.options.get("class_weights") == "balanced"
    ):
        yield (
            "rare classes count twice: data.sampler draws them more often, and "
            "train.loss.class_weights weights them more"
        )


def recipe_notices(train: TrainSpec, images: int | None) -> Iterator[str]:
    """Yield a notice if a recipe was made for many more images than there are.

    Args:
        train: The recipe.
        images: Number of training images, without those set aside for validation.
    """
    if images is None or images < train.batch_size:
        return
    steps_per_epoch = images // train.batch_size
    total = train.in_steps(steps_per_epoch)
    is_too_long = total > _MOST_EPOCHS * steps_per_epoch
    if is_too_long or (steps_per_epoch < _FEWEST_STEPS and train.batch_size > _FEW):
        yield (
            f"{counted(images, 'image')} are few for this recipe: its {counted(total, 'step')} see "
            f"each of them {total // steps_per_epoch:,} times, {counted(steps_per_epoch, 'step')} "
            f"an epoch; for few images there is {_FOR_FEW_IMAGES}"
        )


def recipe_problems(
    train: TrainSpec, positions: Positions, *, images: int | None, has_validation: bool | None
) -> Iterator[Problem]:
    """Check that a recipe fits the data, as far as they are known.

    Args:
        train: The recipe.
        positions: Positions of the spec's values.
        images: Number of training images, without those set aside for validation.
        has_validation: Whether there are validation images.
    """
    if has_validation is False:
        for key, is_asked in (
            ("early_stop", train.early_stop is not None),
            ("monitor", train.monitor is not None),
            ("evaluate_every", train.evaluate_every != Interval(epochs=1)),
            ("schedule", isinstance(train.schedule, PlateauSchedule)),
        ):
            if is_asked:
                name = "plateau" if key == "schedule" else key
                message = f"`{name}` has no effect without data.validation"
                yield positions.problem("no-effect", ("train", key), message)
    if images is None:
        return
    if images < train.batch_size:
        yield positions.problem(
            "mismatch",
            ("train", "batch_size"),
            f"a batch of {counted(train.batch_size, 'image')} is larger than the training set of "
            f"{counted(images, 'image')}; lower train.batch_size"
            + (f", or add {_FOR_FEW_IMAGES}" if train.batch_size > _FEW else ""),
        )
        return
    steps_per_epoch = images // train.batch_size
    total = train.in_steps(steps_per_epoch)
    training = counted(total, "step")
    epoch = f"an epoch of {counted(images, 'image')} has {counted(steps_per_epoch, 'step')}"
    warmup = getattr(train.schedule, "warmup", None)
    warmup_steps = 0 if warmup is None else warmup.in_steps(steps_per_epoch)
    if warmup_steps >= total:
        yield positions.problem(
            "out-of-range",
            ("train", "schedule", "warmup"),
            f"its {counted(warmup_steps, 'step')} leave nothing of the training's {training} "
            f"({epoch}); shorten it or train longer",
        )
    if train.ema is not None and train.ema.every > total:
        yield positions.problem(
            "out-of-range",
            ("train", "ema", "every"),
            f"its {train.ema.every:,} steps are beyond the training's {training} ({epoch}): the "
            "average would stay the initial weights; lower it or train longer",
        )
    for place, step, name in _first_falls(train, steps_per_epoch, warmup_steps):
        if step >= total:
            yield positions.problem(
                "out-of-range",
                ("train", "schedule", *place),
                f"{name} is beyond the training's {training} ({epoch}); lower it or train longer",
            )


def label_problems(
    data: DataSpec, train: TrainSpec, positions: Positions, info: DatasetInfo
) -> Iterator[Problem]:
    """Check that loss and sampler fit the labels, as far as they are known.

    Args:
        data: Section ``data``.
        train: The recipe.
        positions: Positions of the spec's values.
        info: Description of the training images.
    """
    if info.multi_label and data.sampler == "balanced":
        reason = "`balanced` needs images of one label each, and these may have several"
        yield positions.problem("mismatch", ("data", "sampler"), reason)
    names_classes = any(isinstance(value, dict) for value in train.loss.options.values())
    if info.num_classes is None or (names_classes and info.classes is None):
        return
    try:
        loss = build_loss(train, info)
        if info.multi_label and not loss.takes_several_labels:
            reason = f"`{train.loss.type}` is for one label an image, and these may have several"
            advice = "use `binary_cross_entropy` or `sigmoid_focal`"
            yield positions.problem("mismatch", ("train", "loss"), f"{reason}; {advice}")
            return
        labels = torch.tensor([0, info.num_classes - 1])
        one_hot = functional.one_hot(labels, info.num_classes).float()
        with loss_part(train).blamed():
            loss(torch.zeros_like(one_hot), one_hot if info.multi_label else labels)
    except (RegistryError, ValidationError):
        return  # `part_problems` has them
    except PlacedPartError as error:
        yield part_problem(error, positions)


def _first_falls(
    train: TrainSpec, steps_per_epoch: int, warmup_steps: int
) -> Iterator[tuple[SpecPath, int, str]]:
    """Yield what a schedule must reach: key, step, and name for messages."""
    match train.schedule:
        case MultistepSchedule(milestones=milestones, unit=unit):
            in_epochs = (unit or train.unit) == "epochs"
            last = milestones[-1]
            step = max(1, round(last * steps_per_epoch)) if in_epochs else round(last)
            name = f"epoch {last:,} (step {step:,})" if in_epochs else f"step {step:,}"
            yield ("milestones", len(milestones) - 1), step, name
        case StepSchedule(every=every):
            step = every.in_steps(steps_per_epoch)
            yield ("every",), step, f"the first fall, at step {step:,},"
        case CosineRestartsSchedule(first_cycle=cycle):
            step = warmup_steps + cycle.in_steps(steps_per_epoch)
            yield ("first_cycle",), step, f"the first restart, at step {step:,},"
        case PlateauSchedule(patience=patience):
            step = warmup_steps + patience * train.evaluate_every.in_steps(steps_per_epoch)
            yield ("patience",), step, f"the end of the patience, at step {step:,},"


def _input_problems(
    model: ModelSpec, data: DataSpec, info: DatasetInfo, positions: Positions
) -> Iterator[Problem]:
    size = "pixels a side" if isinstance(info.image_size, int) else "[height, width]"
    for key, what, given, fed in (
        ("num_classes", "classes", model.num_classes, info.num_classes),
        ("in_channels", "channels", model.in_channels, info.channels),
        ("image_size", size, model.image_size, info.image_size),
    ):
        if given not in {None, "auto"} and fed is not None and given != fed:
            message = (
                f"must be {dump_value(fed)}, the {what} of {data.dataset.type}, "
                f"not {dump_value(given)}"
            )
            if key == "in_channels" and (given, fed) == (3, 1):
                message += "; or add `to_rgb` to data.preprocess, which makes three channels of one"
            elif key == "image_size":
                message += "; or add `resize` or `center_crop` to data.preprocess"
            yield positions.problem("mismatch", ("model", key), message)


def _augment_problems(
    data: DataSpec,
    channels: int,
    size: int | tuple[int, int],
    batch_size: int | None,
    positions: Positions,
) -> Iterator[Problem]:
    floats_since: str | None = None
    for number, part in enumerate(data.augment):
        path = ("data", "augment", number)
        placed = PlacedPart(AUGMENTATIONS, part, path)
        try:
            with placed.blamed():
                made = placed.make()
                works_on, allowed = made.works_on, getattr(made, "channels", (channels,))
        except PlacedPartError as error:
            yield part_problem(error, positions)
            continue
        if channels not in allowed:
            counts = " or ".join(map(str, allowed))
            yield positions.problem(
                "mismatch",
                path,
                f"`{part.type}` changes images of {counts} channels, not {channels}",
            )
        elif min(height_and_width(size)) < getattr(made, "min_side", 0):
            height, width = height_and_width(size)
            yield positions.problem(
                "mismatch",
                path,
                f"`{part.type}` needs images of at least {made.min_side} pixels a side with these "
                f"options, not {height}x{width} (height x width)",
            )
        elif batch_size == 1 and (getattr(made, "mixes_with", None) or 0) > 0:
            reason = "has no effect: it mixes the images of a batch, and train.batch_size is 1"
            yield positions.problem("no-effect", path, f"`{part.type}` {reason}")
        elif part.type == "random_resized_crop" and number:
            yield positions.problem("exclusive", path, f"`{part.type}` must stand first")
        elif part.type == "random_resized_crop":
            size = made.size
        elif works_on == "pixels" and floats_since is not None:
            yield positions.problem(
                "exclusive",
                path,
                f"`{part.type}` works on 8-bit pixels and must stand before `{floats_since}`",
            )
        elif works_on == "normalised":
            floats_since = floats_since or part.type


def model_problems(model: ModelSpec, positions: Positions) -> Iterator[Problem]:
    """Check the network by what its sections say, before any layer is made.

    Args:
        model: Resolved section ``model``.
        positions: Places of the spec's values.
    """
    yield from _effect_problems(model, positions)
    yield from _plain_problems(model, positions)


def geometry_problems(network: ResNet, model: ModelSpec, draft: Draft) -> Iterator[Problem]:
    """Check that strides leave pixels, at each size of the recipe, and that no filter is idle."""
    stem_is_filtered = "antialias" in STEMS.accepts(model.stem.type) and network.strides["stem"] > 1
    strides = any(stage.stride > 1 for stage in model.stages)
    if model.antialias.type != "none" and not stem_is_filtered and not strides:
        yield draft.positions.problem("no-effect", ("model", "antialias"), "no block strides")
    last = model.stages[-1]
    dilations = {getattr(layer, "dilation", None) for layer in network.stages[-1].modules()}
    if last.blocks == 1 and last.dilation != 1 and (last.dilation, last.dilation) not in dilations:
        yield draft.positions.problem(
            "no-effect",
            ("model", "stages", len(model.stages) - 1, "dilation"),
            "has no effect: the first 3x3 convolution of a stage keeps the dilation of the stage "
            "before, and this stage has no other",
        )
    side = min(model.image_shape[1:])
    smallest = max(network.strides.values())
    if smallest > side:
        sizes = ", ".join(
            f"{name} {-(-side // stride) if stride <= side else 'below 1'}"
            for name, stride in network.strides.items()
        )
        message = f"strides shrink {side} pixels below one: {sizes}"
        yield draft.positions.problem("shape", ("model", "stages"), message)
    side = min(training_shape(model, draft.data)[1:])
    for number, part in enumerate(draft.train.progressive_resizing if draft.train else ()):
        path = ("train", "progressive_resizing", number, "size")
        if part.size >= side:
            yield draft.positions.problem(
                "no-effect",
                path,
                f"{part.size} pixels a side are not fewer than the images' own {side}",
            )
        elif part.size < smallest:
            yield draft.positions.problem(
                "shape",
                path,
                f"strides shrink {part.size} pixels below one; {smallest} or more are needed",
            )


def part_problem(error: PlacedPartError, positions: Positions) -> Problem:
    """Problem of a part that does not fit."""
    return positions.problem(error.code, error.path, str(error))


def placed(problems: Iterable[Problem], positions: Positions) -> list[Problem]:
    """Problems that the data show, at the places of the spec's values."""
    return [
        positions.problem(one.code, tuple(one.path.split(".")), one.message) for one in problems
    ]


def _effect_problems(model: ModelSpec, positions: Positions) -> Iterator[Problem]:
    # A value that has no effect is an error: whoever wrote it expects one.
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


def network_problems(
    network: ResNet, macs: int | None, draft: Draft, processes: int
) -> Iterator[Problem]:
    """Check what the recipe and ``expect`` say of a network that was built.

    Args:
        network: Network on the meta device.
        macs: Multiply-adds for one image, if they were counted.
        draft: Spec, with a recipe or without one.
        processes: Number of processes that are to train.
    """
    if draft.train is not None and draft.train.sync_norm:
        # torch's SyncBatchNorm replaces batch norms only, and computes on CUDA only.
        reason = None
        if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
            reason = "has no effect on a network without batch norms"
        elif draft.run is not None and not draft.run.device.startswith(("auto", "cuda")):
            reason = f"has no effect without CUDA, and `run.device` is '{draft.run.device}'"
        elif draft.run is not None and draft.run.device == "auto" and processes > 1:
            device = pick_device("auto").type
            if device != "cuda":
                reason = f"needs CUDA, and this machine trains on '{device}'; set it to false"
        if reason is not None:
            yield draft.positions.problem("no-effect", ("train", "sync_norm"), reason)
    if draft.expect is not None:
        for key, message in unexpected(network, draft.expect, macs=macs):
            yield draft.positions.problem("expect", ("expect", key), message)


def unexpected(
    network: ResNet, expect: ExpectSpec, *, macs: int | None = None
) -> Iterator[tuple[str, str]]:
    """Compare a network's counts with those that its spec expects.

    Args:
        network: Network, on any device.
        expect: Expected counts.
        macs: Multiply-adds for one image, if they were counted.

    Yields:
        Key of ``expect`` and message, for each count that differs.
    """
    if expect.parameters is not None and (count := count_parameters(network)) != expect.parameters:
        yield "parameters", f"the network has {count:,} parameters, not {expect.parameters:,}"
    if expect.depth is not None and network.depth != expect.depth:
        yield "depth", f"the network is {network.depth} layers deep, not {expect.depth}"
    if macs is not None and expect.macs is not None and macs != expect.macs:
        yield "macs", f"the network takes {macs:,} MACs an image, not {expect.macs:,}"


def fine_tuning_problems(draft: Draft) -> Iterator[Problem]:
    """Check the sections of the network that the recipe names, and that freezing makes sense."""
    model, train, positions = draft.model, draft.train, draft.positions
    if model is None or train is None:
        return
    stages = [f"layer{number + 1}" for number in range(len(model.stages))]
    sections = ["stem", *stages, "head"]
    freeze = ("train", "freeze")
    yield from _name_problems(freeze, "", train.freeze, sections, positions)
    if train.activation_checkpointing != "all":
        path = ("train", "activation_checkpointing")
        yield from _name_problems(path, "stage ", train.activation_checkpointing, stages, positions)

    reason = _freezing_refused(model, train, sections)
    if reason is not None:
        yield positions.problem("exclusive", freeze, reason, at="key")
    if "head" in train.freeze and train.head_lr_multiplier != 1:
        yield positions.problem(
            "no-effect",
            ("train", "head_lr_multiplier"),
            "has no effect on a head that is frozen",
            at="key",
        )


def _name_problems(
    path: tuple[str, str],
    kind: str,
    names: Sequence[str],
    allowed: Sequence[str],
    positions: Positions,
) -> Iterator[Problem]:
    for number, name in enumerate(names):
        if name not in allowed:
            yield positions.problem(
                "unknown-name",
                (*path, number),
                f"the network has no {kind}'{name}'",
                allowed=allowed,
                suggestion=nearest(name, allowed),
            )
        elif name in names[:number]:
            yield positions.problem("no-effect", (*path, number), f"'{name}' is named before")


def _freezing_refused(model: ModelSpec, train: TrainSpec, sections: Sequence[str]) -> str | None:
    if not train.freeze:
        return None
    if set(train.freeze) >= set(sections):
        return "this leaves nothing to train"
    if model.weights is None:
        return (
            "layers that were never trained would stay random: give `model.weights` too "
            "(a file of random weights, if that is meant)"
        )
    if model.weights.new_head and "head" in train.freeze:
        return "a new head would stay random: do not freeze `head`, or take back `new_head`"
    return None


def weights_problems(draft: Draft) -> Iterator[Problem]:
    """Check that the pretrained weights are there; nothing of them is read or downloaded.

    Raises:
        StorageError: The file may not be read.
    """
    if draft.model is None or draft.model.weights is None:
        return
    weights, path = draft.model.weights, ("model", "weights")
    if weights.is_on_hub:
        return  # as with torchvision's, a check downloads nothing
    if weights.published_name is not None:
        published = published_weights()
        if weights.published_name not in published:
            yield draft.positions.problem(
                "unknown-name",
                path,
                f"torchvision has no weights of a ResNet named '{weights.published_name}'",
                at="name",
                allowed=published,
                suggestion=nearest(weights.published_name, published),
            )
        return
    # The file is opened, not read: whether it fits is known only once there is a network to fit.
    file = find_weights(weights.path)
    code, message, suggestion = None, "", None
    with storage_errors("read", file):
        if not file.exists():
            code, message = "unknown-name", "there is no such file"
            suggestion = f"torchvision:{file.name}" if file.name in published_weights() else None
        elif file.is_dir():
            code, message = (
                "wrong-type",
                "this is a directory; a run's weights are its best.safetensors",
            )
        else:
            open_regular(file).close()  # raises where it may not be read
    if code is not None:
        yield draft.positions.problem(
            code, path, f"{weights.path}: {message}", at="name", suggestion=suggestion
        )
