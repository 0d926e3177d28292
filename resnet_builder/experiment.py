"""Experiment: a checked and resolved spec that can be trained, passed on by value."""

from dataclasses import dataclass, field

from resnet_builder.errors import UsageError
from resnet_builder.model import ResNet
from resnet_builder.spec.diagnostics import Positions
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import DataSpec, ModelSpec, RunSpec, Spec
from resnet_builder.spec.yaml_source import document_of


@dataclass(frozen=True, slots=True)
class Experiment:
    """A spec that was checked in full, with data and a recipe, and its network on meta.

    :func:`resnet_builder.builder.load_experiment` makes one. A variation of it, as benchmarks
    need, is ``dataclasses.replace(experiment, spec=...)``.

    Attributes:
        spec: Resolved spec: every default and every option of every part is written out.
        network: Network on the meta device, without weights.
        positions: Positions of the spec's values, for problems that only the data show.

    Raises:
        UsageError: The spec has no ``data`` or no ``train``.
    """

    spec: Spec
    network: ResNet
    positions: Positions = field(default_factory=lambda: Positions(document_of({}).root))

    def __post_init__(self) -> None:
        if self.spec.data is None or self.spec.train is None:
            raise UsageError(f"{self.spec.name}: a spec to train needs `data` and `train`")

    @property
    def name(self) -> str:
        """Name of the spec, which run directories are called after."""
        return self.spec.name

    @property
    def model(self) -> ModelSpec:
        """Section ``model``."""
        return self.spec.model

    @property
    def data(self) -> DataSpec:
        """Section ``data``."""
        assert self.spec.data is not None, "__post_init__ has checked it"
        return self.spec.data

    @property
    def train(self) -> TrainSpec:
        """Section ``train``: the recipe."""
        assert self.spec.train is not None, "__post_init__ has checked it"
        return self.spec.train

    @property
    def run(self) -> RunSpec:
        """Section ``run``: device, precision, threads."""
        return self.spec.run

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input image, ``(C, H, W)``."""
        return self.spec.model.image_shape
