"""The weights that a network starts from, where its spec names some."""

import hashlib
import http.client
import re
import urllib.error
from pathlib import Path

import torch.hub

from resnet_builder.errors import CheckpointError, DataError, UsageError, nearest
from resnet_builder.model import ResNet
from resnet_builder.runs.files import storage_errors
from resnet_builder.spec.schema import WeightsSpec
from resnet_builder.weights.loading import load_weights

# What torch raises for another digest than the published one is a bare RuntimeError.
_DOWNLOAD_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    RuntimeError,
)


def load_pretrained(network: ResNet, weights: WeightsSpec) -> None:
    """Give a network the weights of a file; its head keeps its own if the spec asks for that.

    Args:
        network: With weights; on the CPU.
        weights: What the spec says.

    Raises:
        CheckpointError: The file is missing or damaged, or its weights are not the network's.
        DataError: torchvision's weights cannot be downloaded.
        StorageError: The file cannot be read, or not be stored.
        UsageError: torchvision has no weights of that name.
    """
    path = _find(weights)
    try:
        load_weights(network, path, new_head=weights.new_head, ema=weights.ema)
    except CheckpointError as error:
        raise CheckpointError(f"model.weights: {error}") from error


def pretrained_digest(weights: WeightsSpec) -> str:
    """Return the SHA-256 digest of the file that weights are read from, in hexadecimal.

    Raises:
        CheckpointError: The file is missing.
        DataError: torchvision's weights cannot be downloaded.
        StorageError: The file cannot be read, or not be stored.
        UsageError: torchvision has no weights of that name.
    """
    path = _find(weights)
    with storage_errors("read", path):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise CheckpointError(f"model.weights: {path}: there is no such file") from None


def published_weights() -> dict[str, str]:
    """Return where torchvision publishes the weights of its ResNets, by their names.

    ``DEFAULT`` is left out: it means others in another release.
    """
    from torchvision import models  # slow, and seldom needed

    return {
        f"{type(weights).__name__}.{weights.name}": weights.url
        for name in models.list_models(module=models, include="*resne*")
        for weights in models.get_model_weights(name)
    }


def _find(weights: WeightsSpec) -> Path:
    """Return the file, downloaded first if torchvision publishes it and torch has not kept it."""
    name = weights.published_name
    if name is None:
        return Path(weights.path)
    published = published_weights()
    if name not in published:
        suggestion = nearest(name, published)
        hint = f"; did you mean {suggestion}" if suggestion else ""
        raise UsageError(f"model.weights: torchvision has no weights named '{name}'{hint}")
    return _download(published[name])


def _download(url: str) -> Path:
    """Return where torch keeps a published file, whose name ends with the start of its digest.

    Raises:
        DataError: It cannot be had, or what came is not it.
        StorageError: It cannot be written.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / url.rsplit("/", 1)[-1]
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
