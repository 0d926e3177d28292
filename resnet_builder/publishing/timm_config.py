"""timm's view of a network: its architecture, its tensor names, and its ``config.json``."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from resnet_builder.parts import resolve
from resnet_builder.spec.schema import CenterCrop, ModelSpec, PreprocessSpec, Resize, Spec, ToRgb
from resnet_builder.spec.section import height_and_width
from resnet_builder.weights.convert import HEAD
from resnet_builder.weights.file import WeightsHeader
from resnet_builder.weights.key_maps import KEY_MAPS

_Depths = dict[tuple[int, ...], int]

_BASIC: _Depths = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
_BOTTLENECK: _Depths = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_ALSO_26: _Depths = {(2, 2, 2, 2): 26, **_BOTTLENECK, (3, 24, 36, 3): 200}
_50, _50_AND_101 = (dict(list(_BOTTLENECK.items())[:count]) for count in (1, 2))

_D = {"stem": "deep", "shortcut": "average_projection"}
_SE = {"attention": {"type": "se", "divisor": 8}}
_V2 = {"block": "preact_bottleneck", "stem": {"type": "conv7x7_maxpool", "bare": True}}


def _grouped(groups: int, width: int) -> dict[str, Any]:
    return {"block": {"type": "bottleneck", "groups": groups, "width_per_group": width}}


_FAMILIES: tuple[tuple[str, _Depths, dict[str, Any]], ...] = (
    ("resnet{}", _BASIC, {"block": "basic"}),
    ("resnet{}", _ALSO_26, {"block": "bottleneck"}),
    ("resnet{}d", _BASIC, {"block": "basic", **_D}),
    ("resnet{}d", _ALSO_26, {"block": "bottleneck", **_D}),
    ("resnext{}_32x4d", _50_AND_101, _grouped(32, 4)),
    ("resnext{}_32x8d", {(3, 4, 23, 3): 101}, _grouped(32, 8)),
    ("resnext{}_64x4d", {(3, 4, 23, 3): 101}, _grouped(64, 4)),
    ("wide_resnet{}_2", _50_AND_101, _grouped(1, 128)),
    ("seresnet{}", _BASIC, {"block": "basic", **_SE}),
    ("seresnet{}", _BOTTLENECK, {"block": "bottleneck", **_SE}),
    # From 256 channels on, rounding to multiples of 8 changes no width.
    ("seresnet{}", _BOTTLENECK, {"block": "bottleneck", "attention": "se"}),
    ("ecaresnet{}d", _50_AND_101, {"block": "bottleneck", "attention": "eca", **_D}),
    ("resnetblur{}", _50, {"block": "bottleneck", "antialias": "blur"}),
    ("resnetv2_{}", _BOTTLENECK, _V2),
)
"""Name, depth by blocks of each stage, and keys of ``model``, of each family that timm has too."""

_FREE = {
    *("num_classes", "in_channels", "image_size", "weights"),
    *("init", "zero_init_residual", "drop_path"),
}
"""Keys of a network that change neither its tensors' names nor how logits are computed."""


def timm_networks() -> Iterator[tuple[str, Spec]]:
    """Yield the name of each network that timm has too, and its spec."""
    for family, depths, model in _FAMILIES:
        for blocks, depth in depths.items():
            stages = [
                {"channels": 64 * 2**number, "blocks": count, "stride": 2 if number else 1}
                for number, count in enumerate(blocks)
            ]
            given = {"stem": "conv7x7_maxpool", "shortcut": "projection", "stages": stages, **model}
            values = {"num_classes": 1000, "image_size": 224, **given}
            name = family.format(depth)
            yield name, Spec.model_validate({"name": name, "model": values})


def timm_architecture(model: ModelSpec) -> str | None:
    """Name of a network in timm; ``None`` if timm does not have it.

    Args:
        model: Section ``model`` of a resolved spec. Classes, channels and size of images are free.
    """
    wanted = _fixed(model)
    return next((name for name, fixed in _resolved_networks() if fixed == wanted), None)


@cache
def _resolved_networks() -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple((name, _fixed(resolve(spec).model)) for name, spec in timm_networks())


def _fixed(model: ModelSpec) -> dict[str, Any]:
    """What of a network's section decides which network it is."""
    return {key: getattr(model, key) for key in type(model).model_fields if key not in _FREE}


def timm_tensors(architecture: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict by timm's names, which are torchvision's except for pre-activated networks."""
    if not architecture.startswith("resnetv2"):
        return dict(tensors)
    [key_map] = [one for one in KEY_MAPS if one.name == "timm resnetv2"]
    found = {}
    for name, tensor in tensors.items():
        layer, _, tensor_name = name.rpartition(".")
        # timm's classifier of these networks is a 1x1 convolution.
        is_linear = name == f"{HEAD}.weight"
        shaped = tensor[:, :, None, None] if is_linear else tensor
        found[f"{key_map.original(layer)}.{tensor_name}"] = shaped
    return found


def timm_config(
    architecture: str, spec: Spec, header: WeightsHeader, license: str | None
) -> dict[str, Any]:
    """Contents of the ``config.json`` from which ``timm.create_model`` builds a network.

    Args:
        architecture: Name of the network in timm.
        spec: Resolved spec.
        header: Header of the weights.
        license: Licence of the weights.
    """
    channels, height, width = spec.model.image_shape
    is_v2, is_deep = architecture.startswith("resnetv2"), spec.model.stem.type == "deep"
    expansion = 1 if spec.model.block.type == "basic" else 4
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": spec.model.num_logits,
        "num_features": spec.model.stages[-1].channels * expansion,
        "global_pool": "avg",
    }
    if header.classes is not None:
        config["label_names"] = list(header.classes)
    if channels != 3:
        config["model_args"] = {"in_chans": channels}
    config["pretrained_cfg"] = {
        "custom_load": False,
        "input_size": [channels, height, width],
        "fixed_input_size": False,
        **_transform(header.preprocess),
        **({} if header.mean is None else {"mean": list(header.mean)}),
        **({} if header.std is None else {"std": list(header.std)}),
        "num_classes": spec.model.num_logits,
        "pool_size": [-(-height // 32), -(-width // 32)],
        "first_conv": "stem.conv" if is_v2 else "conv1.0" if is_deep else "conv1",
        "classifier": "head.fc" if is_v2 else HEAD,
        **({} if license is None else {"license": license}),
    }
    return config


def prepares_alike(steps: tuple[PreprocessSpec, ...]) -> bool:
    """Whether timm can prepare images as these steps do: a resize, then a centre crop."""
    known = [step for step in steps if not isinstance(step, ToRgb)]
    kinds = [type(step) for step in known]
    is_contained = any(isinstance(step, Resize) and step.fit == "contain" for step in known)
    return kinds in ([], [Resize], [Resize, CenterCrop]) and not is_contained


def _transform(steps: tuple[PreprocessSpec, ...]) -> dict[str, Any]:
    """Keys of ``pretrained_cfg`` for what is done to images before they are normalised."""
    resize = next((step for step in steps if isinstance(step, Resize)), None)
    crop = next((step for step in steps if isinstance(step, CenterCrop)), None)
    if resize is None:  # images of the network's size already
        return {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    share = resize.crop_share
    if crop is not None and resize.crop_share == 1:
        (cropped, _), (resized, _) = height_and_width(crop.size), height_and_width(resize.size)
        share = min(1.0, cropped / resized)
    mode = "squash" if resize.stretches else "center"
    return {
        "interpolation": resize.interpolation.replace("_exact", ""),
        "crop_pct": share,
        "crop_mode": mode,
    }
