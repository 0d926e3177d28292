"""A network's weights, with all that is needed to use them: safetensors with a header.

The tensors have torchvision's names, so other programs read them as they are. The header holds
the resolved spec, the classes, the statistics, the preprocessing and the metrics.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from resnet_builder.errors import CheckpointError
from resnet_builder.runs.environment import package_version
from resnet_builder.runs.records import first_problem, refuse_newer
from resnet_builder.runs.tensor_files import read_tensors, write_tensors
from resnet_builder.spec.data_section import PreprocessSpec

_KEY = "resnet_builder"
_FORMAT = 1


class WeightsHeader(BaseModel):
    """What stands beside the weights.

    Attributes:
        spec: The resolved spec, as YAML.
        classes: Class names, in the order of the logits.
        mean: Of each channel of the training images, in units where white is 1.
        std: Standard deviation of each channel, in the same units.
        preprocess: What is done to an image before it is normalised.
        metrics: By ``<split>.<name>``, as fractions.
        step: The optimizer step that they are from.
        version: Of the package that wrote them.
        format: Of the header.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)  # JSON has no such numbers

    spec: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: tuple[PreprocessSpec, ...] = ()
    metrics: Mapping[str, float] = {}
    step: Annotated[int, Field(ge=0)]
    version: str = Field(default_factory=package_version)
    format: Literal[1] = 1


class _Format(BaseModel):
    format: int


def save_weights(path: Path, weights: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Write weights, atomically.

    Raises:
        NonFiniteError: One of them is not finite.
        StorageError: The disk is full, read-only or failing.
    """
    write_tensors(path, weights, {_KEY: header.model_dump_json()})


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
