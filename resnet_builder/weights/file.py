"""Weights files of this program: safetensors with a header and a digest.

The tensors have torchvision's names, so that other programs read them as they are. The header
holds all that is needed to use them: the resolved spec, the classes, the statistics, the
preprocessing and the metrics. No part of such a file can run code.

Checkpoints of a run are the same kind of file, with another header; see
:mod:`resnet_builder.training.checkpoint`.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnet_builder.data.class_folders import shorten, tell_apart
from resnet_builder.errors import CheckpointError, DataError, NonFiniteError, visible
from resnet_builder.runs.files import Buffer, storage_errors, write_atomically
from resnet_builder.runs.records import first_problem, package_version, refuse_newer
from resnet_builder.spec.schema import ChannelDeviations, ChannelMeans, PreprocessSpec
from resnet_builder.system import open_regular

_HEADER = "resnet_builder"
_DIGEST = "sha256"
_FORMAT = 1
_SHOWN = 20
"""Class names that an error lists; the rest are counted."""

_WORDNET_ID = re.compile(r"n\d{8}")
"""Name of a class folder of ImageNet."""

_KNOWN_TO_RUNS = ("classes", "mean", "std", "step")

# A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: dtype,
# shape and place of each tensor, and text under __metadata__), and the tensors' bytes.
_LENGTH = 8
_METADATA = "__metadata__"
_BLANK = "0" * 64


class Origin(BaseModel):
    """Origin of weights that another program made.

    Attributes:
        file: Name of the file.
        layout: Codebase whose names the file has, as listed in ``docs/reference/checkpoints.md``.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    layout: str


class WeightsHeader(BaseModel):
    """Header of a weights file.

    A run knows every field. Where weights are another program's, unknown fields are ``None``.

    Attributes:
        spec: Resolved spec, as YAML.
        classes: Class names, in the order of the logits.
        mean: Mean of each channel of the training images, in units where white is 1.
        std: Standard deviation of each channel, in the same units.
        preprocess: Preprocessing of an image before it is normalised.
        images: Digest of all images of the training's dataset.
        metrics: Metrics by ``<split>.<name>``; accuracies are fractions.
        multi_label: Whether an image may have several of the classes, or none.
        step: Optimizer step that the weights are from.
        source: Origin of the weights, if another program made them.
        version: Version of the package that wrote the file.
        format: Format of the header.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)  # JSON has no such numbers

    spec: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    mean: ChannelMeans | None = None
    std: ChannelDeviations | None = None
    preprocess: tuple[PreprocessSpec, ...] = ()
    images: str | None = None
    metrics: Mapping[str, float] = {}
    multi_label: bool = False
    step: Annotated[int, Field(ge=0)] | None = None
    source: Origin | None = None
    version: str = Field(default_factory=package_version)
    format: Literal[1] = 1

    @model_validator(mode="after")
    def _has_known_fields(self) -> Self:
        required = _KNOWN_TO_RUNS if self.source is None else ()
        if self.mean is not None or self.std is not None:
            required = (*required, "mean", "std")
        for key in required:
            if getattr(self, key) is None:
                raise PydanticCustomError("missing", "{key}: Field required", {"key": key})
        return self

    def names_of(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Names that the weights have for the classes of data.

        They are the data's own, except in ImageNet: its folders are WordNet ids, in the order of
        the logits of every network for its 1,000 classes.
        """
        is_imagenet = (
            self.classes is not None
            and len(classes) == len(self.classes) == 1000
            and list(classes) == sorted(classes)
            and all(map(_WORDNET_ID.fullmatch, classes))
            and not any(map(_WORDNET_ID.fullmatch, self.classes))
        )
        return self.classes if is_imagenet and self.classes is not None else tuple(classes)

    def check_classes(self, path: Path, classes: Sequence[str], *, matched_by_name: bool) -> None:
        """Check that data have the classes that the weights were trained on, as far as known.

        Args:
            path: Path of the weights, for the message.
            classes: Class names of the data, in the order of their labels.
            matched_by_name: Whether the data may have another order, and only some of the classes.

        Raises:
            DataError: The classes are others.
        """
        if self.classes is None:
            return
        classes = self.names_of(classes)
        if set(classes) <= set(self.classes) if matched_by_name else self.classes == (*classes,):
            return
        among = {*self.classes, *classes}
        ours, theirs = (
            shorten(map(visible, tell_apart(names, among)), _SHOWN)
            for names in (self.classes, classes)
        )
        advice = (
            "rename the classes of the data, or use weights that were trained on them"
            if matched_by_name
            else "to train a new head for the classes of the data, set model.weights.new_head=true"
        )
        raise DataError(
            f"{path} was trained on other classes than the data has:",
            f"  in the weights: {ours}",
            f"  in the data: {theirs}",
            advice,
        )


class _Format(BaseModel):
    format: int


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    header: WeightsHeader,
    *,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write weights and their header to a file, atomically.

    Args:
        path: Path of the file to make or replace.
        weights: State dict.
        header: Header, for this program.
        text: Further metadata by name, for other programs.

    Raises:
        NonFiniteError: A weight is infinite or not a number.
        StorageError: The disk is full, read-only or failing.
    """
    write_tensors(path, weights, {**(text or {}), _HEADER: header.model_dump_json()})


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    """Read weights, and verify every byte of the file by its digest.

    Returns:
        State dict on the CPU, and the header.

    Raises:
        CheckpointError: The file is missing, damaged or another program's.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: A newer release wrote it.
    """
    tensors, metadata = read_tensors(path)
    if _HEADER not in metadata:
        raise CheckpointError(
            f"{path}: it is a checkpoint, which only resumes its run; the weights of the run are "
            "in its best.safetensors"
        )
    return tensors, _parse_header(path, metadata)


def read_header(path: Path) -> WeightsHeader | None:
    """Read the header of a weights file alone; ``None`` if this program did not write the file.

    Raises:
        CheckpointError: The header is damaged.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: A newer release wrote it.
    """
    try:
        metadata = read_metadata(path)
    except CheckpointError:
        return None
    return _parse_header(path, metadata) if _HEADER in metadata else None


def _parse_header(path: Path, metadata: Mapping[str, str]) -> WeightsHeader:
    try:
        refuse_newer(_Format.model_validate_json(metadata[_HEADER]).format, _FORMAT, str(path))
        return WeightsHeader.model_validate_json(metadata[_HEADER])
    except ValidationError as error:
        raise CheckpointError(f"{path}: its header is damaged: {first_problem(error)}") from error


def is_own_metadata(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a safetensors file are of a file that this program wrote.

    One of its two entries is enough: damage to the other does not make it another program's.
    """
    return _HEADER in metadata or _DIGEST in metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a file, atomically; equal contents make equal bytes.

    Args:
        path: Path of the file to make or replace.
        tensors: Tensors by name; on any device, in any memory format, none sharing memory with
            another.
        metadata: Text by name.

    Raises:
        NonFiniteError: A tensor holds a value that is infinite or not a number.
        StorageError: The disk is full, read-only or failing.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_finite(path, on_host)
    write_atomically(path, _with_digest(safetensors.torch.save(on_host), metadata))


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check the tensors that are to be written to a file.

    Raises:
        NonFiniteError: A tensor holds a value that is infinite or not a number.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{path} is not written: '{name}' holds a value that is not finite"
            )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of :func:`write_tensors`, and verify every byte of it by its digest.

    Returns:
        Tensors on the CPU by name, and the text by name.

    Raises:
        CheckpointError: The file is missing, damaged or another program's.
        StorageError: The disk is failing, or the file may not be read.
    """
    with _opened(path):  # verifies the header before a huge file is read
        content = path.read_bytes()
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    try:
        # safetensors verifies the header: the tensors fill the file, and none overlaps another.
        tensors = safetensors.torch.load(content)
        metadata: dict[str, str] = json.loads(content[_LENGTH:start]).get(_METADATA, {})
    except Exception as error:  # an unknown dtype, for one, is no SafetensorError
        raise CheckpointError(f"{path}: it is not a valid safetensors file: {error}") from error
    digest = metadata.pop(_DIGEST, None)
    if digest is None:
        raise CheckpointError(
            f"{path}: it has no digest: resnet-builder did not write it; another program's weights "
            f"are converted by: resnet-build import {shlex.quote(str(path))} --spec SPEC "
            "-o FILE.safetensors"
        )
    blank = content[:start].replace(digest.encode(), _BLANK.encode(), 1)
    if _digest(blank, memoryview(content)[start:]) != digest:
        raise CheckpointError(f"{path}: it does not match its SHA-256 digest: it is damaged")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the text of a file of :func:`write_tensors`; its digest is not verified.

    Raises:
        CheckpointError: The file is missing, or not a valid safetensors file.
        StorageError: The disk is failing, or the file may not be read.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Context with a safetensors file, whose header was verified."""
    with storage_errors("read", path):
        try:
            open_regular(path).close()  # the library would wait for the writer of a FIFO
            with safe_open(path, "pt") as file:
                yield file
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: there is no such file") from error
        except SafetensorError as error:
            with open_regular(path) as content:
                is_of_torch = content.read(4).startswith((b"PK\x03\x04", b"\x80"))
            if is_of_torch:
                raise CheckpointError(
                    f"{path}: it is a file of torch.save; convert it first: "
                    f"resnet-build import {shlex.quote(str(path))} --spec SPEC -o FILE.safetensors"
                ) from error
            raise CheckpointError(f"{path}: it is not a valid safetensors file: {error}") from error


def _with_digest(content: bytes, metadata: Mapping[str, str]) -> list[Buffer]:
    """Content of a file, with text and the digest added to its header."""
    # The library would write the text in an order that changes from process to process.
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    entries = {_METADATA: {_DIGEST: _BLANK, **dict(sorted(metadata.items()))}}
    entries |= json.loads(content[_LENGTH:start])
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes of tensors are aligned
    header = len(text).to_bytes(_LENGTH, "little") + text
    body = memoryview(content)[start:]
    return [header.replace(_BLANK.encode(), _digest(header, body).encode(), 1), body]


def _digest(header: bytes, body: memoryview) -> str:
    """SHA-256 of a file in whose header the digest is blank."""
    digest = hashlib.sha256(header)
    digest.update(body)
    return digest.hexdigest()
