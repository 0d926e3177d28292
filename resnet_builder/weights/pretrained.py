"""Pretrained weights that a network starts from: a file, torchvision's, or those of the Hub."""

import hashlib
import http.client
import re
import urllib.error
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch.hub

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import CheckpointError, DataError, UsageError
from resnet_builder.model import ResNet
from resnet_builder.runs.files import storage_errors
from resnet_builder.spec.dump import dump_value, plain_data
from resnet_builder.spec.schema import Spec, WeightsSpec
from resnet_builder.spec.yaml_source import parse_plain
from resnet_builder.system import open_regular
from resnet_builder.weights.channels import adapt_statistics
from resnet_builder.weights.convert import load_weights
from resnet_builder.weights.file import WeightsHeader, read_header
from resnet_builder.weights.hub import find_weights, hub_commit, pinned_name
from resnet_builder.weights.presets import (
    Preset,
    preset_beside,
    published_weights,
    read_preset,
)

_SIMILAR = 0.05
"""Difference of means and standard deviations, where white is 1, that is not worth a notice."""

_ONLY_TRAINING = {"num_classes", "weights", "init", "zero_init_residual", "drop_path"}
"""Keys of a network that may differ from those that its pretrained weights had."""

# What torch raises for another digest than the published one is a bare RuntimeError.
_DOWNLOAD_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    RuntimeError,
)


def load_pretrained(network: ResNet, weights: WeightsSpec) -> None:
    """Load pretrained weights into a network; a new head keeps its own, if the spec asks for one.

    Args:
        network: Network on the CPU, with first weights.
        weights: Section ``model.weights``.

    Raises:
        CheckpointError: The file is missing or damaged, or its weights are not the network's.
        DataError: Weights of torchvision or of the Hub cannot be downloaded.
        StorageError: The file cannot be read, or not be stored.
        UsageError: torchvision has no weights of that name.
    """
    path = _find(weights)
    try:
        load_weights(
            network,
            path,
            new_head=weights.new_head,
            ema=weights.ema,
            adapt_channels=weights.adapt_channels,
        )
    except CheckpointError as error:
        raise CheckpointError(f"model.weights: {error.args[0]}", *error.args[1:]) from error


def compare_with_pretrained(spec: Spec, data: DataSplits) -> list[str]:
    """Compare the data of a training with those that its pretrained weights were trained on.

    Of other programs' weights, the normalisation may be known. Nothing but the classes has to be
    equal, and these only if the head is kept.

    Args:
        spec: Resolved spec of the training.
        data: Its images.

    Returns:
        A notice for each difference.

    Raises:
        CheckpointError: The header of the file is damaged.
        DataError: The classes are others.
        UsageError: A newer release wrote the file.
    """
    weights = spec.model.weights
    if weights is None:
        return []
    path = _find(weights)
    header = None if weights.published_name is not None else read_header(path)
    notices: list[str] = []
    if weights.is_on_hub and (pinned := pinned_name(weights.path, path)) != weights.path:
        notices.append(f"{weights.path} is {pinned} now; that name always means the same weights")
    if header is None:
        preset = _known_preset(weights, path)
        known = None if preset is None else (preset.normalize.mean, preset.normalize.std)
        return notices + ([] if known is None else _statistics_differences(weights, *known, data))
    if not weights.new_head:
        header.check_classes(path, data.classes, matched_by_name=False)
    notices += network_differences(path, header, spec)
    preprocess = (spec.data.preprocess if spec.data else None) or ()
    if header.preprocess != preprocess:
        before, now = (
            [step.model_dump(exclude_defaults=True) for step in steps]
            for steps in (header.preprocess, preprocess)
        )
        notices.append(_difference(path, "data.preprocess", before, now))
    if header.mean is not None and header.std is not None:
        notices += _statistics_differences(weights, header.mean, header.std, data)
    return notices


def _known_preset(weights: WeightsSpec, path: Path) -> Preset | None:
    """Preset of other programs' weights, as far as it is known without computing a digest."""
    if weights.published_name is not None:
        return read_preset(weights.path)
    with suppress(CheckpointError):  # timm prepares images in a way that no step does
        return preset_beside(path)
    return None


def _statistics_differences(
    weights: WeightsSpec, mean: Sequence[float], std: Sequence[float], data: DataSplits
) -> list[str]:
    channels = len(data.mean)
    if weights.adapt_channels and len(mean) != channels:
        mean, std = adapt_statistics(mean, channels), adapt_statistics(std, channels)
    pairs = zip((*mean, *std), (*data.mean, *data.std), strict=True)
    if all(abs(theirs - ours) <= _SIMILAR for theirs, ours in pairs):
        return []
    return [
        f"{weights.path} was trained on images of another brightness or contrast; to normalise as "
        f"then, set data.normalize={{mean: {[round(x, 4) for x in mean]}, "
        f"std: {[round(x, 4) for x in std]}}}"
    ]


def network_differences(path: Path, header: WeightsHeader, spec: Spec) -> list[str]:
    """Notices of what else than the weights makes a network compute something else.

    Args:
        path: Path of the weights.
        header: Their header.
        spec: Resolved spec of the network that they are for.
    """
    trained = parse_plain(header.spec, str(path))
    before = trained.get("model") if isinstance(trained, dict) else None
    now = plain_data(spec.model)
    if not isinstance(before, dict):
        return []
    return [
        _difference(path, f"model.{key}", before.get(key), now.get(key))
        for key in {**before, **now}
        if key not in _ONLY_TRAINING and before.get(key) != now.get(key)
    ]


def _difference(path: Path, key: str, before: object, now: object) -> str:
    return f"{path} was trained with {key}={dump_value(before)}; here it is {dump_value(now)}"


def pretrained_digest(weights: WeightsSpec) -> str:
    """SHA-256 digest, in hexadecimal, of the file that pretrained weights are read from.

    Raises:
        CheckpointError: The file is missing.
        DataError: Weights of torchvision or of the Hub cannot be downloaded.
        StorageError: The file cannot be read, or not be stored.
        UsageError: torchvision has no weights of that name.
    """
    path = _find(weights)
    with storage_errors("read", path):
        try:
            with open_regular(path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise CheckpointError(f"model.weights: {path}: there is no such file") from None


def pretrained_commit(weights: WeightsSpec) -> str | None:
    """Commit of the Hub's repository that pretrained weights are of; ``None`` for other files."""
    return hub_commit(_find(weights)) if weights.is_on_hub else None


def _find(weights: WeightsSpec) -> Path:
    """Path of the file, which is downloaded first if it is published and not there yet."""
    name = weights.published_name
    if name is None:
        return find_weights(weights.path)
    published = published_weights()
    if name not in published:
        raise UsageError(f"model.weights: torchvision has no weights of a ResNet named '{name}'")
    return _download(published[name])


def _download(url: str) -> Path:
    """Download a published file to the folder of torch.hub, unless it is there.

    Raises:
        DataError: The file cannot be downloaded, or its digest is not the published one.
        StorageError: The file cannot be written.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / url.rsplit("/", 1)[-1]
    # torchvision puts the first digits of a file's digest at the end of its name.
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    with storage_errors("write", path):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            try:
                torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
            except _DOWNLOAD_ERRORS as error:
                raise DataError(
                    f"cannot download {url}: {error}; you can put the file into {folder} yourself"
                ) from error
    return path
