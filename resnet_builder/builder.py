"""Builder: from a spec to a checked experiment, and to a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_builder import checks, dry_run
from resnet_builder.blocks.init import init_weights, seeded
from resnet_builder.blocks.interfaces import ShortcutFactory, Stem, missing_attribute
from resnet_builder.blocks.shortcuts import changes_shape
from resnet_builder.device import pick_device
from resnet_builder.errors import (
    DataError,
    MissingDataError,
    PartError,
    Problem,
    SpecError,
    UsageError,
)
from resnet_builder.experiment import Experiment
from resnet_builder.model import Features, ResNet, count_parameters
from resnet_builder.parts import (
    STAGE_PARTS,
    PlacedPart,
    PlacedPartError,
    describe_data,
    is_preactivated,
    model_part,
    resolve,
    resolve_data,
    resolve_model,
    resolve_run,
    resolve_train,
    stage_part,
)
from resnet_builder.plugins import import_plugins
from resnet_builder.spec.diagnostics import Positions
from resnet_builder.spec.load import Draft, read_draft
from resnet_builder.spec.schema import ModelSpec, Spec
from resnet_builder.trackers import check_packages
from resnet_builder.weights.pretrained import load_pretrained

ASSUMED_CLASSES = 10
"""Classes of a network that is checked without the data that tell their number."""

Source = str | Path | Mapping[str, object] | Draft
"""Path, name of a bundled spec, mapping, or draft, which is not read again."""


@dataclass(frozen=True, slots=True)
class CheckedSpec:
    """Spec that was checked in full.

    Attributes:
        problems: Everything that is wrong with the spec, in file order.
        spec: Resolved spec, if nothing is wrong.
        network: Network on the meta device, if it can be built.
        positions: Positions of the spec's values.
        macs: Multiply-adds for one image, if they were counted.
        data_error: Reason why the data cannot be used, if they are there and nothing else is wrong;
            or :class:`MissingDataError`, if the spec was checked without them.
        assumed_classes: Number of classes that stands for the one that only the data tell.
        notices: Notices for the user, one line each.
    """

    problems: tuple[Problem, ...]
    spec: Spec | None
    network: ResNet | None
    positions: Positions
    macs: int | None
    data_error: DataError | None
    assumed_classes: int | None = None
    notices: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Counts of the network by their keys of ``expect``, as far as they are known."""
        if self.network is None:
            return {}
        counts = {"parameters": count_parameters(self.network), "depth": self.network.depth}
        return counts if self.macs is None else {**counts, "macs": self.macs}

    def experiment(self) -> Experiment:
        """Return the experiment, whose data need not be there.

        Raises:
            SpecError: Everything that is wrong with the spec.
            UsageError: The spec has no ``data`` or no ``train``.
        """
        if self.spec is None or self.network is None:
            raise SpecError(self.problems)
        return Experiment(self.spec, self.network, self.positions)


def check_source(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    with_forward: bool = False,
    with_weights: bool = False,
    with_data: bool = False,
    data_dir: Path | None = None,
    processes: int = 1,
) -> CheckedSpec:
    """Read a spec and check it in full; problems are returned, not raised.

    Args:
        source: Path, name of a bundled spec, mapping, or draft, which has its overrides already.
        overrides: ``path.to.key=value``, as ``--set``.
        plugins: Plugins that may be imported.
        with_forward: Whether to run the network on meta too: one image, which counts multiply-adds,
            and a training step at every size that the recipe feeds.
        with_weights: Whether to look for the file of pretrained weights too.
        with_data: Whether to look at the data too, as far as they are there: classes, and number of
            images. No image is read.
        data_dir: Folder of datasets, as for :func:`data.splits.load_data`.
        processes: Number of processes that are to divide each batch.

    Raises:
        SpecError: There is nothing to check: no file, no YAML, no consent to a plugin.
        StorageError: A file cannot be read.
    """
    draft = source if isinstance(source, Draft) else read_draft(source, overrides=overrides)
    try:
        imported = import_plugins(draft.plugins or (), plugins, draft.positions)
    except SpecError as error:
        # An unknown name may be one of the plugin's.
        known = [one for one in checks.part_problems(draft) if one.code != "unknown-name"]
        problems = [*draft.problems, *error.errors, *known]
        raise SpecError(draft.positions.ordered(problems)) from error

    # Problems of names and options first: nothing can be made with a part that is wrong.
    problems = list(checks.part_problems(draft))
    wrong = {problem.path.partition(".")[0] for problem in problems}
    info, model, network, macs, assumed = None, None, None, None, None
    notices: list[str] = []
    data_error: DataError | None = None
    if "data" not in wrong:
        try:
            data, info, data_error = describe_data(
                draft.data, draft.model, data_dir, with_data=with_data
            )
            draft = replace(draft, data=data)
            problems += checks.data_problems(draft, info)
            notices += checks.known_recipe_notices(draft, info)
        except PlacedPartError as error:
            problems.append(checks.part_problem(error, draft.positions))
        except SpecError as error:
            problems += checks.placed(error.errors, draft.positions)
    if (
        info is not None
        and draft.model is not None
        and not draft.is_wrong("data")
        and "model" not in wrong
    ):
        if draft.model.num_classes == "auto" and info.num_classes is None:
            assumed = ASSUMED_CLASSES
            notices.append(
                "model.num_classes: only the data tell it, and they are not there; "
                f"{assumed} are assumed"
            )
            info = replace(info, num_classes=assumed)
            if data_error is None:
                problems.append(checks.missing_classes(draft))
        model = resolve_model(draft.model, info)
        problems += checks.model_problems(model, draft.positions)
        try:
            network = build_on_meta(model)
        except PlacedPartError as error:
            problems.append(checks.part_problem(error, draft.positions))
    if network is not None and model is not None:
        problems += checks.geometry_problems(network, model, draft)
        if with_forward:
            macs, found = dry_run.forward_problems(network, model, draft)
            problems += found or dry_run.training_problems(network, model, draft, processes)
        counted = draft if assumed is None else replace(draft, expect=None)
        problems += checks.network_problems(network, macs, counted, processes)
    problems += checks.fine_tuning_problems(draft)
    if with_weights:
        problems += checks.weights_problems(draft)

    problems += draft.problems
    if problems and data_error is not None and not isinstance(data_error, MissingDataError):
        path = ("data", "dataset")
        message = "; ".join(line.strip() for line in data_error.args)
        message = message.removeprefix("data.dataset: ")
        problems.append(draft.positions.problem("mismatch", path, message))
    ordered = draft.positions.ordered(problems)
    spec = None
    if draft.spec is not None and model is not None and not ordered:
        data = None if draft.data is None else resolve_data(draft.data)
        train = None if draft.spec.train is None else resolve_train(draft.spec.train)
        run = resolve_run(draft.spec.run)
        update = {"model": model, "data": data, "train": train, "run": run, "plugins": imported}
        spec = draft.spec.model_copy(update=update)
    return CheckedSpec(
        ordered, spec, network, draft.positions, macs, data_error, assumed, tuple(notices)
    )


def load_experiment(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    with_weights: bool = True,
    with_data: bool = False,
    data_dir: Path | None = None,
    processes: int = 1,
) -> Experiment:
    """Read a spec that is to be trained, and check it in full.

    The arguments are those of :func:`check_source`. A run with a checkpoint needs no pretrained
    weights any more, so ``with_weights`` is false there.

    Raises:
        DataError: The data is missing or unusable; otherwise the spec is sound.
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read.
        UsageError: The spec has no ``data`` or no ``train``, or a tracker's package is missing.
    """
    checked = check_source(
        source,
        overrides=overrides,
        plugins=plugins,
        with_forward=True,
        with_weights=with_weights,
        with_data=with_data,
        data_dir=data_dir,
        processes=processes,
    )
    experiment = checked.experiment()
    check_packages(experiment.run.log)
    if checked.data_error is not None:
        raise checked.data_error
    return experiment


def read_spec(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    with_weights: bool = False,
) -> Spec:
    """Read a spec, check it in full, and write out its defaults.

    The arguments are those of :func:`check_source`.

    Returns:
        Resolved spec, with or without data and a recipe.

    Raises:
        DataError: Only the data tell the number of classes, and they are missing or unusable.
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read.
    """
    checked = check_source(source, overrides=overrides, plugins=plugins, with_weights=with_weights)
    if checked.spec is None:
        raise SpecError(checked.problems)
    if checked.assumed_classes is not None and checked.data_error is not None:
        raise checked.data_error
    return checked.spec


def build_from_spec(
    source: str | Path | Mapping[str, object],
    *,
    device: str = "cpu",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    plugins: Sequence[str] = (),
    features: Sequence[str] | None = None,
    output_stride: int | None = None,
) -> ResNet | Features:
    """Read a spec, check it in full, and build its network as :func:`build` does.

    Args:
        source: Path, name of a bundled spec, or mapping.
        device: Device, as for :func:`build`.
        seed: Seed of the first weights, as for :func:`build`.
        overrides: ``path.to.key=value``, as ``--set``.
        fragments: Fragments to lay over the spec, as ``--with``.
        plugins: Plugins that may be imported.
        features: Names of stages, as ``["layer2", "layer4"]``, whose outputs are returned instead
            of logits.
        output_stride: Total stride of the last stage. Strides beyond it are replaced with
            dilation; the weights stay the same.

    Returns:
        Network, or its backbone if ``features`` are given.

    Raises:
        CheckpointError: The pretrained weights are damaged, or of another network.
        DataError: The pretrained weights cannot be downloaded, or the data that tell the number
            of classes are missing.
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read.
        UsageError: There is no such device or stage, or the network's strides do not reach
            ``output_stride``.
    """
    draft = read_draft(source, overrides=overrides, fragments=fragments)
    spec = read_spec(draft, plugins=plugins, with_weights=True)
    network = _build(spec.model, device, seed, pretrained=True, output_stride=output_stride)
    return network if features is None else Features(network, features)


def build(
    source: Experiment | Spec,
    *,
    device: str = "cpu",
    seed: int | None = None,
    pretrained: bool = True,
) -> ResNet:
    """Build a network, draw its first weights, and load the pretrained ones that its spec names.

    Args:
        source: Experiment, or spec, resolved or not.
        device: Torch device, or ``"auto"``: CUDA, then MPS, then CPU.
        seed: Seed of the first weights: they are the same on every device, and no global state
            changes. ``None`` draws from torch's global generator.
        pretrained: Whether to load the weights that ``model.weights`` names; not needed where
            other weights are loaded afterwards.

    Raises:
        CheckpointError: The pretrained weights are missing, damaged, or of another network.
        DataError: The pretrained weights cannot be downloaded.
        SpecError: The network is not what the spec expects.
        PartError: Options or shapes do not fit together.
        RegistryError: A part is not registered.
        StorageError: A file cannot be read.
        UsageError: There is no such device.
    """
    if isinstance(source, Experiment):  # checked already
        return _build(source.model, device, seed, pretrained=pretrained)
    spec = resolve(source)
    network = _build(spec.model, device, seed, pretrained=pretrained)
    if spec.expect is not None:
        unexpected = checks.unexpected(network, spec.expect)
        if problems := [Problem("expect", f"expect.{key}", text) for key, text in unexpected]:
            raise SpecError(problems)
    return network


def build_on_meta(model: ModelSpec) -> ResNet:
    """Build a network on the meta device: every layer and shape, but no memory for weights.

    Args:
        model: Section ``model`` of a resolved spec.

    Raises:
        PlacedPartError: Options or shapes do not fit together.
    """
    with torch.device("meta"):
        network = _construct(model)
    if model.zero_init_residual:
        _zero_residuals(network)  # raises where that cannot be
    return network


def _build(
    model: ModelSpec,
    device: str,
    seed: int | None,
    *,
    pretrained: bool,
    output_stride: int | None = None,
) -> ResNet:
    place = pick_device(device)
    # Weights are drawn on the CPU: a seed gives the same weights on every device.
    with seeded(seed):
        # The constructors draw weights too, which are all drawn anew: their draws do not count.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            network = _construct(model, output_stride)
        init_weights(network, **model.init.model_dump())
    if model.zero_init_residual:
        _zero_residuals(network)
    if pretrained and model.weights is not None:
        load_pretrained(network, model.weights)
    return network if place.type == "cpu" else network.to(place)


def _construct(model: ModelSpec, output_stride: int | None = None) -> ResNet:
    """Make all layers of a network, stem to head, on torch's default device.

    Strides beyond ``output_stride`` are replaced with dilation, which keeps every output pixel and
    puts new ones between (Chen et al. 2017, section 3.1, https://arxiv.org/abs/1706.05587).
    """
    factories = {key: model_part(model, key).make for key in ("norm", "activation", "antialias")}
    placed_stem = model_part(model, "stem")
    with placed_stem.blamed():
        stem: Stem = placed_stem.make(model.in_channels, **factories)
        layers, channels, stride = dict(stem.layers), stem.out_channels, stem.stride
    strides, spacing = {"stem": stride}, 1  # spacing: product of the strides that are replaced
    for number, stage in enumerate(model.stages):
        previous_spacing = spacing
        if output_stride is not None and stride * stage.stride > output_stride:
            spacing *= stage.stride
        else:
            stride *= stage.stride
        blocks = _build_stage(model, number, channels, factories, previous_spacing, spacing)
        layers[f"layer{number + 1}"] = blocks
        strides[f"layer{number + 1}"] = stride
        last_block: Any = blocks[-1]
        channels = last_block.out_channels
    if output_stride not in {None, stride}:
        reached = accumulate((stage.stride for stage in model.stages), mul, initial=strides["stem"])
        raise UsageError(
            f"output_stride cannot be {output_stride}: the network's strides reach "
            f"{', '.join(map(str, sorted(set(reached))))}"
        )

    head = model_part(model, "head")
    with head.blamed():
        last_layers = dict(head.make(channels, model.num_logits, **factories))
    for name in last_layers:
        if name in layers:
            cause = PartError(f"its layer '{name}' has the name of one before it")
            raise PlacedPartError(cause, head.path)
    return ResNet(layers | last_layers, strides)


def _build_stage(
    model: ModelSpec,
    number: int,
    in_channels: int,
    factories: Mapping[str, Callable[..., Any]],
    previous_spacing: int,
    spacing: int,
) -> nn.Sequential:
    """Make the blocks of a stage: only the first one strides and changes the width."""
    stage = model.stages[number]
    block, shortcut, attention = (stage_part(model, number, key) for key in STAGE_PARTS)
    previous_dilation = previous_spacing * (model.stages[number - 1].dilation if number else 1)
    dilation = spacing * stage.dilation
    if dilation != 1 and not block.accepts >= {"previous_dilation", "dilation"}:
        missing = "it has no parameters `previous_dilation` and `dilation`"
        cause = PartError(f"block '{block.part.type}' cannot be dilated: {missing}")
        raise PlacedPartError(cause, ("model", "stages", number, "dilation"))
    is_replaced = spacing != previous_spacing  # dilation in place of the stage's stride
    # A pre-activated block adds bare sums, so its shortcut has no norm.
    shortcut_norm = nn.Identity if is_preactivated(block.part) else factories["norm"]
    needed = ["out_channels", "zero_residual"] if model.zero_init_residual else ["out_channels"]

    blocks: list[Any] = []
    for index in range(stage.blocks):
        first = index == 0
        made = block.make(
            in_channels,
            stage.channels,
            stride=stage.stride if first and not is_replaced else 1,
            # Layers up to the one that strides belong to the stage before.
            previous_dilation=previous_dilation if first else dilation,
            dilation=dilation,
            begins_stage=first,
            shortcut=_shortcut_factory(
                shortcut,
                norm=shortcut_norm,
                replaced_stride=stage.stride if first and is_replaced else 1,
                dilation=previous_spacing,
            ),
            attention=attention.make,
            drop_path=_drop_path_rate(model, number, index),
            **factories,
        )
        if message := missing_attribute(made, block.part.type, *needed):
            raise PlacedPartError(PartError(message), block.path)
        blocks.append(made)
        in_channels = made.out_channels
    return nn.Sequential(*blocks)


def _shortcut_factory(shortcut: PlacedPart, **contract: object) -> ShortcutFactory:
    def make(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
        made: nn.Module | None = shortcut.make(in_channels, out_channels, stride, **contract)
        # A plugin's mistake, which would otherwise fail in the first sum with torch's message.
        if isinstance(made, nn.Identity) and changes_shape(in_channels, out_channels, stride):
            raise PartError(
                f"shortcut '{shortcut.part.type}' hands on {in_channels} channels at stride 1, "
                f"where the block gives {out_channels} at stride {stride}"
            )
        return made

    return make


def _drop_path_rate(model: ModelSpec, stage: int, block: int) -> float:
    """Drop-path probability of a block: it rises linearly from 0 at the network's first block.

    Huang et al. 2016, section 3, https://arxiv.org/abs/1603.09382.
    """
    counts = [stage.blocks for stage in model.stages]
    number, last = sum(counts[:stage]) + block, sum(counts) - 1
    return model.drop_path * number / last if last else model.drop_path


def _zero_residuals(network: ResNet) -> None:
    block: Any
    for stage in network.stages:
        for block in stage:
            try:
                block.zero_residual()
            except PartError as error:
                raise PlacedPartError(error, ("model", "zero_init_residual")) from error
