"""Import of other programs' checkpoints: weights, and the preprocessing they were made for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from resnet_builder.builder import build
from resnet_builder.errors import NonFiniteError
from resnet_builder.runs.files import refuse_existing
from resnet_builder.spec.bundled import is_hub_name
from resnet_builder.spec.dump import dump_spec, dump_value
from resnet_builder.spec.schema import Normalize, PreprocessSpec, Spec, ToRgb
from resnet_builder.spec.section import simplified
from resnet_builder.weights.channels import adapt_statistics
from resnet_builder.weights.convert import LoadReport, load_weights
from resnet_builder.weights.file import Origin, WeightsHeader, read_header, save_weights
from resnet_builder.weights.hub import find_weights, pinned_name
from resnet_builder.weights.presets import Preset, find_preset, read_preset
from resnet_builder.weights.pretrained import network_differences

_HOW = (
    "--preprocess, with torchvision:ResNet50_Weights.IMAGENET1K_V2, timm:resnet50.a1_in1k or the "
    "like, or timm's config.json"
)

SPEC = "spec"
"""Value of ``preprocess`` that takes the spec's preprocessing, whatever is known of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport(LoadReport):
    """Outcome of an import.

    Attributes:
        checkpoint: Path of the file that was read.
        weights: Path of the file that was written.
        preset: Source that says which preprocessing the weights were made for; ``None`` if it is
            not known, so that the spec's was taken.
        preprocess: Preprocessing of an image before it is normalised, as in specs.
        mean: Mean of each channel, in units where white is 1; ``None`` where it is not known.
        std: Standard deviation of each channel, in the same units.
        image: Shape of one image, ``(C, H, W)``.
        num_named_classes: Number of class names that are known.
        notices: Notices for the user, one line each.
    """

    checkpoint: Path
    weights: Path
    preset: str | None
    preprocess: tuple[PreprocessSpec, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    image: tuple[int, int, int]
    num_named_classes: int
    notices: list[str]


def import_weights(
    checkpoint: Path,
    spec: Spec,
    out: Path,
    *,
    preprocess: str | None = None,
    new_head: bool = False,
    ema: bool = False,
    adapt_channels: bool = False,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> ImportReport:
    """Convert another program's checkpoint to a file of weights that :func:`load_model` loads.

    The file gets the preprocessing that the weights were made for, as far as that is known: from
    ``preprocess``, from timm's ``config.json`` beside the checkpoint, or from torchvision, if it
    publishes the checkpoint. Otherwise the spec's is taken. Of a file of this program, the classes
    are kept with the head; statistics and preprocessing are kept unless the spec has its own.

    Args:
        checkpoint: Path of the other program's file, a folder that ``publish`` wrote, or
            ``hf-hub:USER/NAME[@REVISION]``.
        spec: Resolved spec, which describes the network and, as far as it is known, its data.
        out: Path of the file to make.
        preprocess: Preset, as for :func:`~resnet_builder.weights.presets.read_preset`, or
            :data:`SPEC`; by default, what is known of the file.
        new_head: As for :func:`load_weights`; the head is initialised with the spec's seed.
        ema: As for :func:`load_weights`.
        adapt_channels: As for :func:`load_weights`; mean and standard deviation are adapted, too.
        allow_missing: As for :func:`load_weights`.
        allow_unexpected: As for :func:`load_weights`.

    Raises:
        CheckpointError: The checkpoint cannot be read, or does not hold the network's weights; or
            its preprocessing cannot be taken over.
        NonFiniteError: A weight is not finite, or what the network computes.
        SpecError: The network is not what the spec expects.
        StorageError: A file cannot be read or written.
        UsageError: The file to make exists, or there are no averaged weights, no head, or no such
            preset.
    """
    refuse_existing(out)
    named, checkpoint = checkpoint, find_weights(checkpoint)
    own = read_header(checkpoint)  # a file of this program says what another's does not
    if preprocess is not None:
        preset = None if preprocess == SPEC else read_preset(preprocess)
    else:
        preset = find_preset(checkpoint) if own is None else None
    # The checkpoint takes the place of the weights that the spec starts from.
    spec = _updated(spec, "model", weights=None)
    network = build(spec, seed=0 if spec.train is None else spec.train.seed)
    report = load_weights(
        network,
        checkpoint,
        new_head=new_head,
        ema=ema,
        adapt_channels=adapt_channels,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
    )
    data = spec.data
    steps, normalize, classes = (data.preprocess or ()) if data else (), None, None
    if data and isinstance(data.normalize, Normalize):
        normalize = data.normalize
    notices = network_differences(checkpoint, own, spec) if own else []
    if preset is not None:
        preset = _adapted(preset, spec.model.image_shape[0]) if report.adapted else preset
        notices += _differences(preset, spec)
        spec = _with_preset(spec, preset)
        steps, normalize, classes = preset.preprocess, preset.normalize, preset.classes
    elif own is not None and preprocess is None:
        notices += _own_differences(own, spec)
        steps, classes = steps or own.preprocess, own.classes
        if normalize is None and own.mean is not None and own.std is not None:
            normalize = Normalize(mean=own.mean, std=own.std)
            if report.adapted:
                normalize = _adapted_statistics(normalize, spec.model.image_shape[0])
                steps = tuple(step for step in steps if not isinstance(step, ToRgb))
    if normalize is None:
        notices.append(
            "the spec does not say how images are normalised, so that predict will refuse; "
            f"--set data.normalize=... says it, or {_HOW}"
        )
    elif preset is None and own is None and preprocess is None:
        notices.append(
            "the file does not say which preprocessing its weights were made for: the spec's is "
            f"taken; another is given by {_HOW}; `--preprocess spec` leaves this notice out"
        )
    image = spec.model.image_shape
    with torch.inference_mode():
        if not bool(network.eval()(torch.zeros(1, *image)).isfinite().all()):
            raise NonFiniteError(
                f"{checkpoint}: the network's logits are not finite; are its variances negative?"
            )
    if new_head or (classes is not None and len(classes) != spec.model.num_classes):
        classes = None
    header = WeightsHeader(
        spec=dump_spec(spec),
        classes=classes,
        mean=normalize and normalize.mean,
        std=normalize and normalize.std,
        preprocess=steps,
        multi_label=own is not None and own.multi_label and classes is not None,
        source=Origin(file=_origin(named, checkpoint), layout=report.layout),
    )
    save_weights(out, network.state_dict(), header)
    return ImportReport(
        **asdict(report),
        checkpoint=named,
        weights=out,
        preset=None if preset is None else preset.source,
        preprocess=steps,
        mean=header.mean,
        std=header.std,
        image=image,
        num_named_classes=len(classes or ()),
        notices=notices,
    )


def _origin(named: Path, checkpoint: Path) -> str:
    """Name of the file, or of its repository and commit on the Hub."""
    pinned = pinned_name(named, checkpoint)
    return pinned if pinned != str(named) or is_hub_name(pinned) else checkpoint.name


def _adapted(preset: Preset, channels: int) -> Preset:
    return replace(preset, normalize=_adapted_statistics(preset.normalize, channels))


def _adapted_statistics(normalize: Normalize, channels: int) -> Normalize:
    return Normalize(
        mean=adapt_statistics(normalize.mean, channels),
        std=adapt_statistics(normalize.std, channels),
    )


def _differences(preset: Preset, spec: Spec) -> list[str]:
    """Notices of what a spec says otherwise than a preset does."""
    pairs: dict[str, tuple[object, object]] = {
        "model.image_size": (simplified(preset.image_size), spec.model.image_size)
    }
    if spec.data is not None and spec.data.preprocess:
        pairs["data.preprocess"] = (_given(preset.preprocess), _given(spec.data.preprocess))
    if spec.data is not None and isinstance(spec.data.normalize, Normalize):
        pairs["data.normalize"] = (preset.normalize, spec.data.normalize)
    return [
        f"{preset.source} has {key}={dump_value(made_for)}; the spec's is not taken: "
        f"{dump_value(own)}"
        for key, (made_for, own) in pairs.items()
        if made_for != own
    ]


def _own_differences(own: WeightsHeader, spec: Spec) -> list[str]:
    """Notices of what a spec says otherwise than the header of a file of this program does."""
    pairs: dict[str, tuple[object, object]] = {}
    data = spec.data
    if data is not None and data.preprocess:
        pairs["data.preprocess"] = (_given(own.preprocess), _given(data.preprocess))
    if data is not None and isinstance(data.normalize, Normalize) and own.mean and own.std:
        pairs["data.normalize"] = (Normalize(mean=own.mean, std=own.std), data.normalize)
    return [
        f"the weights were made with {key}={dump_value(made_for)}; the spec's is taken: "
        f"{dump_value(ours)}"
        for key, (made_for, ours) in pairs.items()
        if made_for != ours
    ]


def _given(steps: Sequence[PreprocessSpec]) -> list[dict[str, object]]:
    """Steps as plain data, without the options that are the default."""
    return [step.model_dump(exclude_defaults=True) for step in steps]


def _with_preset(spec: Spec, preset: Preset) -> Spec:
    """Spec with the preprocessing of a preset; a recipe for images of another size is dropped."""
    size = simplified(preset.image_size)
    if spec.data is not None:
        spec = _updated(spec, "data", preprocess=preset.preprocess, normalize=preset.normalize)
    if size == spec.model.image_size:
        return spec
    spec = _updated(spec, "model", image_size=size)
    if spec.data is not None:
        spec = _updated(spec, "data", augment=())
    return spec.model_copy(update={"train": None, "expect": None, "published": None})


def _updated(spec: Spec, section: str, **values: object) -> Spec:
    """Copy of a spec in which some values of a section are others."""
    changed = getattr(spec, section).model_copy(update=values)
    return spec.model_copy(update={section: changed})
