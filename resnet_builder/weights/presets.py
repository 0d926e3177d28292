"""Presets: preprocessing that published weights were made for, as other libraries state it."""

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.runs.files import storage_errors
from resnet_builder.runs.records import first_problem
from resnet_builder.spec.schema import ChannelDeviations, ChannelMeans, Normalize, PreprocessSpec
from resnet_builder.spec.section import Side, Width
from resnet_builder.system import open_regular

_TORCHVISION, _TIMM = "torchvision:", "timm:"

_CONFIG = "config.json"
"""Name of the file that timm and transformers save beside weights."""

_PROCESSOR = "preprocessor_config.json"
"""Name of the file in which transformers says how images are prepared."""

_MAX_BYTES = 2**22  # of a configuration with the names of 20,000 classes

_STEPS = TypeAdapter[tuple[PreprocessSpec, ...]](tuple[PreprocessSpec, ...])


@dataclass(frozen=True, slots=True)
class Preset:
    """Preprocessing that weights were made for.

    Attributes:
        source: Source of this information.
        preprocess: Steps before the normalisation.
        normalize: Mean and standard deviation of each channel.
        image_size: Height and width of an image after the steps.
        classes: Class names in the order of the logits, if they are known.
    """

    source: str
    preprocess: tuple[PreprocessSpec, ...]
    normalize: Normalize
    image_size: tuple[int, int]
    classes: tuple[str, ...] | None = None


def published_weights() -> dict[str, str]:
    """URLs of the weights of ResNets that torchvision publishes, by their names.

    ``DEFAULT`` is left out, because it means other weights in another release.
    """
    from torchvision import models  # slow, and seldom needed

    return {
        f"{type(weights).__name__}.{weights.name}": weights.url
        for name in models.list_models(module=models, include="*resne*")
        for weights in models.get_model_weights(name)
    }


def read_preset(name: str) -> Preset:
    """Read a preset.

    Args:
        name: ``torchvision:ResNet50_Weights.IMAGENET1K_V2``; ``timm:resnet50d.ra2_in1k``, for which
            timm must be installed; or the path of a ``config.json`` that timm saved.

    Raises:
        CheckpointError: The file is damaged, or says something that no step does.
        StorageError: The file cannot be read.
        UsageError: There is no such name, or timm is not installed.
    """
    if name.startswith(_TORCHVISION):
        return _torchvision_preset(name.removeprefix(_TORCHVISION))
    if name.startswith(_TIMM):
        return _timm_preset(name, _installed_timm_config(name.removeprefix(_TIMM)))
    path = Path(name)
    if not path.exists():
        raise UsageError(
            f"there is no file {name}; a preset is a config.json of timm, "
            "torchvision:ResNet50_Weights.IMAGENET1K_V2 or the like, or timm:resnet50d.ra2_in1k or "
            "the like"
        )
    config = _read_config(path)
    if config is None:
        raise CheckpointError(f"{path}: it has no `pretrained_cfg`, so timm did not save it")
    return _timm_preset(str(path), config)


def find_preset(checkpoint: Path) -> Preset | None:
    """Find the preset of a file of weights: from the configuration beside it, or its digest.

    Raises:
        CheckpointError: The configuration says something that no step does.
        StorageError: A file cannot be read.
    """
    return preset_beside(checkpoint) or _recognised_preset(checkpoint)


def preset_beside(checkpoint: Path) -> Preset | None:
    """Preset in the configuration that timm or transformers saved beside weights, if there is one.

    Raises:
        CheckpointError: It says something that no step does.
        StorageError: It cannot be read.
    """
    beside, processor = (checkpoint.with_name(name) for name in (_CONFIG, _PROCESSOR))
    config = _read_config(beside) if beside.is_file() else None
    if config is not None:
        return _timm_preset(str(beside), config)
    return _transformers_preset(processor, beside) if processor.is_file() else None


def _recognised_preset(checkpoint: Path) -> Preset | None:
    """Preset of a file that torchvision publishes, whatever it is called here."""
    with storage_errors("read", checkpoint), open_regular(checkpoint) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for name, url in published_weights().items():
        # torchvision puts the first digits of a file's digest at the end of its name.
        published = re.search(r"-([0-9a-f]{8,})\.", url)
        if published and digest.startswith(published[1]):
            return _torchvision_preset(name)
    return None


def _torchvision_preset(name: str) -> Preset:
    from torchvision import models

    published = published_weights()
    if name not in published:
        known = [one for one in published if one.startswith(f"{name.partition('.')[0]}.")]
        raise UsageError(f"torchvision has no weights of a ResNet named '{name}'{_others(known)}")
    weights: Any = models.get_weight(name)
    transforms = weights.transforms()
    (resized,), (cropped,) = transforms.resize_size, transforms.crop_size
    return Preset(
        source=f"{_TORCHVISION}{name}",
        preprocess=_steps(
            {"type": "resize", "size": resized, "interpolation": transforms.interpolation.value},
            {"type": "center_crop", "size": cropped},
        ),
        normalize=Normalize(mean=tuple(transforms.mean), std=tuple(transforms.std)),
        image_size=(cropped, cropped),
        classes=tuple(weights.meta["categories"]),
    )


def _others(known: Sequence[str]) -> str:
    """Clause of a message about the weights of the same network that there are."""
    return f"; there are {', '.join(known)}" if known else ""


def imagenet_classes() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 classes, in the order of all networks for them."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


# timm.


def _in_order(names: object) -> object:
    """Class names by their numbers, as timm allows them, in the order of the numbers."""
    if isinstance(names, dict):
        return [names.get(str(number), names.get(number)) for number in range(len(names))]
    return names


class _TimmConfig(BaseModel):
    """``pretrained_cfg`` of timm, as far as it says how images are prepared."""

    model_config = ConfigDict(frozen=True)

    # Defaults are those of timm's resolve_data_config.
    input_size: tuple[Width, Side, Side] = (3, 224, 224)
    interpolation: str = "bicubic"
    crop_pct: Annotated[float, Field(gt=0)] = 0.875
    crop_mode: Literal["center", "squash", "border"] = "center"
    mean: ChannelMeans = (0.485, 0.456, 0.406)
    std: ChannelDeviations = (0.229, 0.224, 0.225)
    num_classes: int = 0
    tag: str | None = None
    label_names: Annotated[tuple[str, ...] | None, BeforeValidator(_in_order)] = None


def _installed_timm_config(name: str) -> Mapping[str, Any]:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise UsageError(
            f"timm is not installed, so what it says of {name} is not known: pip install timm, or "
            "give the config.json of the weights"
        ) from error
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UsageError(f"timm has no weights named '{name}'{_others(known)}") from error
    return dict(found.to_dict())


def _read_config(path: Path) -> Mapping[str, Any] | None:
    """``pretrained_cfg`` in a file with the class names beside it; ``None`` if it has none."""
    values = _read_json(path)
    config = values.get("pretrained_cfg")
    if not isinstance(config, dict):
        return None
    names = {key: values[key] for key in ("label_names", "num_classes") if key in values}
    return {**config, **names}


def _read_json(path: Path) -> dict[str, Any]:
    """Mapping in a file of JSON; an empty one if it holds anything else."""
    with storage_errors("read", path), open_regular(path) as file:
        content = file.read(_MAX_BYTES)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _timm_preset(source: str, values: Mapping[str, Any]) -> Preset:
    """Preset of a ``pretrained_cfg``; timm's ``create_transform`` has these steps.

    Raises:
        CheckpointError: A value is not valid, or no step does what it says.
    """
    given = {key: value for key, value in values.items() if value is not None}
    try:
        config = _TimmConfig.model_validate(given)
        _, height, width = config.input_size
        size: Any = height if height == width else [height, width]
        resize = {
            "type": "resize",
            "size": [height, width] if config.crop_mode == "squash" else size,
            "interpolation": config.interpolation,
            "crop_share": config.crop_pct,
        }
        if config.crop_mode == "center" and height != width:
            resize["fit"] = "cover"
        steps = _steps(resize, {"type": "center_crop", "size": size})
        normalize = Normalize(mean=config.mean, std=config.std)
    except ValidationError as error:
        raise CheckpointError(
            f"{source}: its preprocessing cannot be taken over: {first_problem(error)}; "
            "--preprocess spec takes the spec's"
        ) from error
    if config.crop_mode == "border":
        raise CheckpointError(
            f"{source}: it pads images to their longer side (crop_mode: border), which no step of "
            "data.preprocess does; --preprocess spec takes the spec's"
        )
    classes = config.label_names
    if classes is None and config.num_classes == 1000 and "in1k" in (config.tag or ""):
        classes = imagenet_classes()
    return Preset(source, steps, normalize, (height, width), classes)


# transformers.


_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Interpolations by the numbers that PIL has for them."""

_ALWAYS_STRETCHED = 384
"""Size from which the processor of transformers' ResNets crops nothing."""


class _TransformersConfig(BaseModel):
    """``preprocessor_config.json`` of transformers' ResNets, which use ConvNeXt's processor."""

    model_config = ConfigDict(frozen=True)

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    size: int | dict[str, int] = 224
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    resample: Literal[0, 2, 3] = 2
    image_mean: ChannelMeans = (0.485, 0.456, 0.406)
    image_std: ChannelDeviations = (0.229, 0.224, 0.225)


def _transformers_preset(processor: Path, config: Path) -> Preset | None:
    """Preset of weights that transformers saved; ``None`` if another processor prepares images.

    Raises:
        CheckpointError: A value is not valid.
        StorageError: A file cannot be read.
    """
    given = {key: value for key, value in _read_json(processor).items() if value is not None}
    labels = _read_json(config).get("id2label") if config.is_file() else None
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type"))
    if not kind.startswith("ConvNext"):
        return None
    try:
        found = _TransformersConfig.model_validate(given)
        size = found.size if isinstance(found.size, int) else found.size["shortest_edge"]
        resize = {"type": "resize", "size": size, "interpolation": _RESAMPLING[found.resample]}
        if size < _ALWAYS_STRETCHED:
            crop = {"type": "center_crop", "size": size}
            steps = _steps({**resize, "crop_share": found.crop_pct or 0.875}, crop)
        else:
            steps = _steps({**resize, "size": [size, size]})
        normalize = Normalize(mean=found.image_mean, std=found.image_std)
        classes = TypeAdapter(tuple[str, ...]).validate_python(_in_order(labels or {}))
    except (ValidationError, KeyError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else f"no {error}"
        raise CheckpointError(
            f"{processor}: its preprocessing cannot be taken over: {problem}; "
            "--preprocess spec takes the spec's"
        ) from error
    return Preset(str(processor), steps, normalize, (size, size), classes or None)


def _steps(*steps: Mapping[str, Any]) -> tuple[PreprocessSpec, ...]:
    return _STEPS.validate_python(steps)
