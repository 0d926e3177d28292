"""From a run, or a file of weights, to a network that can be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resnet_builder.builder import build, check_source
from resnet_builder.errors import CheckpointError, SpecError, UsageError
from resnet_builder.model import ResNet, state_dict_mismatch
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.plain import plain
from resnet_builder.spec.reading import checked
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.tree import parse_yaml
from resnet_builder.weights.file import WeightsHeader, read_weights


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A network with its weights, and what one must know to use it.

    Attributes:
        path: The file of the weights.
        network: On the CPU, for evaluation.
        spec: The experiment, resolved.
        header: Statistics, preprocessing and metrics, as far as they are known.
    """

    path: Path
    network: ResNet
    spec: Spec
    header: WeightsHeader

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits; numbers where they are not known."""
        return self.header.classes or tuple(map(str, range(self.spec.model.num_classes)))


def load_model(path: Path, *, plugins: Sequence[str] = ()) -> TrainedModel:
    """Load the weights that a run selected, or those in a file.

    Args:
        path: A run directory or a file of weights.
        plugins: The plugins that may be imported.

    Raises:
        CheckpointError: The file is damaged, another program's, or not of its own spec.
        SpecError: Its spec cannot be used here; a plugin without consent, for example.
        StorageError: It cannot be read.
        UsageError: The run has no weights yet, or a newer release wrote them.
    """
    file = _weights_file(path)
    weights, header = read_weights(file)
    spec = _read_header_spec(file, header, weights, plugins)
    network = build(spec, pretrained=False)
    network.load_state_dict(weights)
    return TrainedModel(file, network.eval(), spec, header)


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    run = RunDirectory.open(path)
    if not run.best.is_file():
        raise UsageError(
            f"{path} has no weights yet; go on with it by: resnet-build train --resume {path}"
        )
    return run.best


def _read_header_spec(
    file: Path, header: WeightsHeader, weights: Mapping[str, Tensor], plugins: Sequence[str]
) -> Spec:
    """Read the spec beside weights, and compare its network with them before it takes memory.

    Raises:
        CheckpointError: It is no spec, or of another network.
        SpecError: It cannot be used here.
    """
    document = parse_yaml(checked(header.spec, str(file)))
    values = plain(document.root)
    if not isinstance(values, dict):  # text would be taken for the name of a bundled spec
        raise CheckpointError(f"{file}: its header is damaged: the spec is no mapping")
    found = check_source(values, plugins=plugins)
    if found.spec is None or found.network is None:
        raise SpecError(found.problems)
    difference = state_dict_mismatch(found.network.state_dict(), weights)
    if difference is not None:
        raise CheckpointError(f"{file}: the weights are not of its spec: {difference}")
    return found.spec
