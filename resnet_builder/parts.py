"""Parts that a spec names: registry, place in the spec, options and defaults."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import resnet_builder.blocks
import resnet_builder.data  # noqa: F401 (importing the packages registers the built-in parts)
from resnet_builder.blocks.interfaces import (
    ACTIVATIONS,
    ANTIALIAS_FILTERS,
    ATTENTIONS,
    BLOCKS,
    HEADS,
    NORMS,
    SHORTCUTS,
    STEMS,
)
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS, DatasetInfo
from resnet_builder.data.location import locate_data
from resnet_builder.data.preprocess import default_preprocess, shape_after
from resnet_builder.data.splits import inspect_data
from resnet_builder.errors import (
    DataError,
    PartError,
    Problem,
    ResnetBuilderError,
    SpecError,
    SpecPath,
)
from resnet_builder.losses import LOSSES, Loss
from resnet_builder.registry import Registry, outside_error
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import DataSpec, ModelSpec, RunSpec, Spec, StageSpec
from resnet_builder.spec.section import Part, height_and_width, simplified
from resnet_builder.trackers import TRACKERS

MODEL_PARTS: dict[str, Registry[Any]] = {
    "stem": STEMS,
    "block": BLOCKS,
    "shortcut": SHORTCUTS,
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "attention": ATTENTIONS,
    "antialias": ANTIALIAS_FILTERS,
    "head": HEADS,
}
"""Registry of each key of ``model`` that names a part."""

REGISTRIES: dict[str, Registry[Any]] = {
    **MODEL_PARTS,
    "dataset": DATASETS,
    "augment": AUGMENTATIONS,
    "loss": LOSSES,
    "log": TRACKERS,
}
"""Registry of each key of a spec that names a registered part."""

STAGE_PARTS = ("block", "shortcut", "attention")
"""Keys of parts that a stage may have of its own."""

_ALWAYS_GIVEN = {"stride", "shortcut"}
"""Arguments that every block takes, also one that takes ``**contract``."""

DEFAULT_CHANNELS = 3
DEFAULT_IMAGE_SIZE = 32


class PlacedPartError(PartError):
    """Part that does not fit, with the path of the value to blame.

    Attributes:
        path: Path in the spec: the option's, if the part names one.
    """

    def __init__(self, cause: PartError, path: SpecPath) -> None:
        super().__init__(str(cause), code=cause.code, option=cause.option)
        self.path = path


@dataclass(frozen=True)
class PlacedPart:
    """Part together with its place in the spec, so that its errors point there.

    Attributes:
        registry: Registry that knows the part.
        part: Name and options.
        path: Path where the part is written in the spec.
        used_at: Path to blame if the part as a whole does not fit: the stage of a block or of a
            shortcut. By default the part's own path.
    """

    registry: Registry[Any]
    part: Part
    path: SpecPath
    used_at: SpecPath | None = None

    # Cached, as a stage may make hundreds of blocks from one part.
    @cached_property
    def options(self) -> dict[str, Any]:
        """Every option, defaults included, as the part is called with.

        Raises:
            RegistryError: No part of that name is registered.
            pydantic.ValidationError: An option is unknown, missing or out of range.
        """
        options = self.registry.options(self.part.type).model_validate(self.part.options)
        return {name: getattr(options, name) for name in type(options).model_fields}

    @cached_property
    def accepts(self) -> frozenset[str]:
        """Arguments of the contract that the part's signature names.

        Raises:
            RegistryError: No part of that name is registered.
        """
        return self.registry.accepts(self.part.type)

    def resolved(self) -> Part:
        """Part with every option written out.

        Raises:
            PartError: An option is wrong.
            RegistryError: No part of that name is registered.
        """
        try:
            return Part(type=self.part.type, **self.options)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = f"{self.part.type}: {place}: {first['msg']}"
            raise PartError(message, code="wrong-type") from error

    def make(self, *arguments: object, **contract: object) -> Any:
        """Call the part with its options, and with the contract's arguments that it accepts.

        Raises:
            PlacedPartError: The options and the arguments do not fit together.
        """
        accepted = self.accepts | _ALWAYS_GIVEN
        given = {name: value for name, value in contract.items() if name in accepted}
        try:
            with self.blamed():
                return self.registry.get(self.part.type)(*arguments, **given, **self.options)
        except PlacedPartError:
            raise  # a part inside this one does not fit, and has named its own place
        except PartError as error:
            path = self.path if error.option else self.used_at or self.path
            raise PlacedPartError(error, (*path, error.option) if error.option else path) from error

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Context in which an error of code from outside this package names that code.

        Raises:
            PlacedPartError: The part, or one that it uses, is from outside, and fails.
        """
        try:
            yield
        except ResnetBuilderError:
            raise
        except Exception as error:
            found = outside_error(error, self.registry.get(self.part.type))
            if found is None:
                raise
            cause = PartError(f"'{self.part.type}' fails in {found}", code="plugin")
            raise PlacedPartError(cause, self.path) from error


def placed_part(path: SpecPath, part: Part) -> PlacedPart:
    """Part at its place, by its key alone; the head ``auto`` stands for ``linear``."""
    key = next(step for step in reversed(path) if isinstance(step, str))
    if key == "head" and part.type == "auto":
        part = Part(type="linear", **part.options)
    return PlacedPart(REGISTRIES[key], part, path)


def model_part(model: ModelSpec, key: str) -> PlacedPart:
    """Part that ``model`` names under a key."""
    part = head_of(model) if key == "head" else getattr(model, key)
    return PlacedPart(MODEL_PARTS[key], part, ("model", key))


def stage_part(model: ModelSpec, number: int, key: str) -> PlacedPart:
    """Part that a stage has under a key: its own, or the model's."""
    stage: SpecPath = ("model", "stages", number)
    own = getattr(model.stages[number], key)
    placed = model_part(model, key)
    if own is not None:
        placed = PlacedPart(MODEL_PARTS[key], own, (*stage, key))
    return placed if key == "attention" else replace(placed, used_at=stage)


def model_parts(model: ModelSpec) -> Iterator[PlacedPart]:
    """Yield every part that is named under ``model``."""
    for key in MODEL_PARTS:
        yield model_part(model, key)
    for number, stage in enumerate(model.stages):
        for key in STAGE_PARTS:
            if getattr(stage, key) is not None:
                yield stage_part(model, number, key)


def data_parts(data: DataSpec) -> Iterator[PlacedPart]:
    """Yield every part that is named under ``data``."""
    yield PlacedPart(DATASETS, data.dataset, ("data", "dataset"))
    for number, part in enumerate(data.augment):
        yield PlacedPart(AUGMENTATIONS, part, ("data", "augment", number))


def loss_part(train: TrainSpec) -> PlacedPart:
    """Loss that a recipe names."""
    return PlacedPart(LOSSES, train.loss, ("train", "loss"))


def tracker_parts(run: RunSpec) -> Iterator[PlacedPart]:
    """Yield the trackers of a run."""
    for number, part in enumerate(run.log):
        yield PlacedPart(TRACKERS, part, ("run", "log", number))


def build_loss(train: TrainSpec, info: DatasetInfo) -> Loss:
    """Make the loss of a recipe.

    Args:
        train: Section ``train``.
        info: Description of the training images. Where their labels were not counted yet, each
            class has one image, and as many images have none.

    Raises:
        PlacedPartError: The options do not fit the classes.
    """
    num_classes = info.num_classes or 0
    classes = info.classes or tuple(map(str, range(num_classes)))
    counts, images = info.class_counts, info.training_images
    if counts is None or images is None:
        counts, images = (1,) * num_classes, 2 * num_classes
    named = dict(zip(classes, counts, strict=True))
    loss: Loss = loss_part(train).make(class_counts=named, num_images=images)
    return loss


def training_shape(model: ModelSpec, data: DataSpec | None) -> tuple[int, int, int]:
    """Return the shape of the images that a training feeds, which a first crop may change.

    Args:
        model: Resolved section ``model``.
        data: Section ``data``, whose parts have valid options.
    """
    channels, height, width = model.image_shape
    for part in data.augment[:1] if data is not None else ():
        if part.type == "random_resized_crop":
            size = part.options["size"]
            height, width = height_and_width(size if isinstance(size, int) else tuple(size))
    return channels, height, width


def head_of(model: ModelSpec) -> Part:
    """Head of a network; ``auto`` is the head for the blocks of the last stage."""
    if model.head.type != "auto":
        return model.head
    # Only the last stage counts: stages before it may have blocks of other kinds.
    last = model.stages[-1].block or model.block
    name = "preact_linear" if is_preactivated(last) else "linear"
    return Part(type=name, **model.head.options)


def is_preactivated(block: Part) -> bool:
    """Whether a block's output is a bare sum, which the head normalises."""
    return block.type in BLOCKS and getattr(BLOCKS.get(block.type), "preactivated", False)


def input_info(
    data: DataSpec, inspect: Callable[[DataSpec], DatasetInfo] | None = None
) -> DatasetInfo:
    """Description of a network's input images, as far as it is known before any is read.

    Args:
        data: Section ``data``.
        inspect: Function that describes the dataset as it lies on the disk; by default the
            dataset's options describe it.

    Raises:
        PlacedPartError: The dataset's options do not fit together, or preprocessing its images.
        ResnetBuilderError: As ``inspect`` raises it.
    """
    dataset = next(data_parts(data))
    with dataset.blamed():
        info: DatasetInfo = dataset.make().info if inspect is None else inspect(data)
    channels, size = info.channels, info.image_size
    for number, step in enumerate(data.preprocess or ()):
        try:
            channels, size = shape_after(step, channels, size)
        except PartError as error:
            raise PlacedPartError(error, ("data", "preprocess", number, "size")) from error
    return replace(info, channels=channels, image_size=None if size is None else simplified(size))


def describe_data(
    data: DataSpec | None, model: ModelSpec | None, data_dir: Path | None, *, with_data: bool
) -> tuple[DataSpec | None, DatasetInfo, DataError | None]:
    """Describe a network's input images; by the dataset's options alone, if these tell enough.

    Args:
        data: Section ``data``, if there is one.
        model: Section ``model``, if it is sound.
        data_dir: Data folder that the user gave.
        with_data: Whether to look at the data where the options tell enough, too.

    Returns:
        Section ``data`` with the path of the files, and with what dataset and network decide;
        description; and why the data cannot be looked at, if so.

    Raises:
        PlacedPartError: The dataset's options do not fit together.
        SpecError: The dataset has validation images, and the spec asks for others.
    """
    if data is None:
        return None, DatasetInfo(), None
    info, error = input_info(data), None
    asks_classes = model is not None and model.num_classes == "auto"
    if with_data or (info.num_classes is None and asks_classes):
        try:
            info = input_info(data, partial(inspect_data, data_dir=data_dir))
        except DataError as found:
            error = found
    return apply_data_defaults(locate_data(data, data_dir), model, info), info, error


def resolve(spec: Spec) -> Spec:
    """Write out every default of a spec and every option of every part.

    Raises:
        PartError: A part's options are wrong.
        RegistryError: A part is not registered.
        SpecError: The number of classes is not known without the data.
    """
    info = DatasetInfo() if spec.data is None else input_info(spec.data)
    data = None if spec.data is None else apply_data_defaults(spec.data, spec.model, info)
    update = {
        "model": resolve_model(spec.model, info),
        "data": None if data is None else resolve_data(data),
        "train": None if spec.train is None else resolve_train(spec.train),
        "run": resolve_run(spec.run),
    }
    return spec.model_copy(update=update)


def apply_data_defaults(data: DataSpec, model: ModelSpec | None, info: DatasetInfo) -> DataSpec:
    """Write out what dataset and network decide: preprocessing, and validation images if known.

    Args:
        data: Section ``data``.
        model: Section ``model``, if it is sound.
        info: Description of the dataset.
    """
    update: dict[str, object] = {}
    if data.preprocess is None and info.image_size is not None:
        update["preprocess"] = ()
    elif data.preprocess is None:
        own_size = None if model is None else model.image_size
        update["preprocess"] = default_preprocess(own_size or DEFAULT_IMAGE_SIZE)
    if data.validation == "auto" and info.validation is not None:
        update["validation"] = info.validation
    return data.model_copy(update=update)


def resolve_model(model: ModelSpec, info: DatasetInfo | None = None) -> ModelSpec:
    """Write out a network's defaults.

    Args:
        model: Section ``model``.
        info: Description of the input images, whose classes, channels and size are the defaults.

    Raises:
        SpecError: The number of classes is not known.
    """
    info = info or DatasetInfo()
    num_classes = info.num_classes if model.num_classes == "auto" else model.num_classes
    if num_classes is None:
        message = "is not given, and no dataset that was looked at tells it"
        raise SpecError([Problem("missing-key", "model.num_classes", message)])
    return model.model_copy(
        update={
            **{key: model_part(model, key).resolved() for key in MODEL_PARTS},
            "num_classes": num_classes,
            "in_channels": model.in_channels or info.channels or DEFAULT_CHANNELS,
            "image_size": model.image_size or info.image_size or DEFAULT_IMAGE_SIZE,
            "stages": tuple(_resolve_stage(model, n) for n in range(len(model.stages))),
        }
    )


def _resolve_stage(model: ModelSpec, number: int) -> StageSpec:
    stage = model.stages[number]
    own = [key for key in STAGE_PARTS if getattr(stage, key) is not None]
    return stage.model_copy(update={key: stage_part(model, number, key).resolved() for key in own})


def resolve_data(data: DataSpec) -> DataSpec:
    """Write out the options of the dataset and of the augmentations."""
    dataset, *augment = (placed.resolved() for placed in data_parts(data))
    return data.model_copy(update={"dataset": dataset, "augment": tuple(augment)})


def resolve_train(train: TrainSpec) -> TrainSpec:
    """Write out the options of the loss."""
    return train.model_copy(update={"loss": loss_part(train).resolved()})


def resolve_run(run: RunSpec) -> RunSpec:
    """Write out the options of the trackers."""
    return run.model_copy(update={"log": tuple(part.resolved() for part in tracker_parts(run))})
