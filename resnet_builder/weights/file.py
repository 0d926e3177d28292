"""A network's weights, with all that is needed to use them: safetensors with a header.

The tensors have torchvision's names, so other programs read them as they are. The header holds
the resolved spec, the classes, the statistics, the preprocessing and the metrics.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from resnet_builder.errors import CheckpointError
from resnet_builder.runs.records import first_problem, package_version, refuse_newer
from resnet_builder.runs.tensor_files import DIGEST, read_tensors, write_tensors
from resnet_builder.spec.schema import PreprocessSpec

_KEY = "resnet_builder"
_FORMAT = 1
_KNOWN_TO_RUNS = ("classes", "mean", "std", "step")


class Origin(BaseModel):
    """Where weights are from that another program made.

    Attributes:
        file: The name of its file.
        layout: Whose names that has, as listed in ``docs/layouts.md``.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    layout: str


class WeightsHeader(BaseModel):
    """What stands beside the weights.

    A run knows all of it. Where weights are another program's, what is not known of them is
    ``None``.

    Attributes:
        spec: The resolved spec, as YAML.
        classes: Class names, in the order of the logits.
        mean: Of each channel of the training images, in units where white is 1.
        std: Standard deviation of each channel, in the same units.
        preprocess: What is done to an image before it is normalised.
        metrics: By ``<split>.<name>``, as fractions.
        step: The optimizer step that they are from.
        source: Where they are from, if another program made them.
        version: Of the package that wrote them.
        format: Of the header.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)  # JSON has no such numbers

    spec: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preprocess: tuple[PreprocessSpec, ...] = ()
    metrics: Mapping[str, float] = {}
    step: Annotated[int, Field(ge=0)] | None = None
    source: Origin | None = None
    version: str = Field(default_factory=package_version)
    format: Literal[1] = 1

    @model_validator(mode="after")
    def _says_what_is_known(self) -> Self:
        required = _KNOWN_TO_RUNS if self.source is None else ()
        if self.mean is not None or self.std is not None:
            required = (*required, "mean", "std")
        for key in required:
            if getattr(self, key) is None:
                raise PydanticCustomError("missing", "{key}: Field required", {"key": key})
        return self


class _Format(BaseModel):
    format: int


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    header: WeightsHeader,
    *,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write weights, atomically.

    Args:
        path: The file to make or replace.
        weights: A state dict.
        header: What stands beside it, for this program.
        text: What else does, by name, for others.

    Raises:
        NonFiniteError: One of the weights is not finite.
        StorageError: The disk is full, read-only or failing.
    """
    write_tensors(path, weights, {**(text or {}), _KEY: header.model_dump_json()})


def is_own_metadata(metadata: Mapping[str, str]) -> bool:
    """Tell whether the metadata of a safetensors file are of a file that this program wrote.

    One of its entries is enough, so that damage to the other does not make it another program's.
    """
    return _KEY in metadata or DIGEST in metadata


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    """Read weights and verify every byte of them.

    Returns:
        The state dict, on the CPU, and its header.

    Raises:
        CheckpointError: The file is missing, damaged or another program's.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: A newer release wrote it.
    """
    tensors, metadata = read_tensors(path)
    if _KEY not in metadata:
        raise CheckpointError(f"{path}: it holds no weights that a run delivered")
    try:
        refuse_newer(_Format.model_validate_json(metadata[_KEY]).format, _FORMAT, str(path))
        return tensors, WeightsHeader.model_validate_json(metadata[_KEY])
    except ValidationError as error:
        raise CheckpointError(f"{path}: its header is damaged: {first_problem(error)}") from error
