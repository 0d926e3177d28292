"""The stages of a network as a backbone: what detectors and segmenters take."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from resnet_builder.blocks.interfaces import Block
from resnet_builder.errors import UsageError, nearest
from resnet_builder.model import ResNet


class Features(nn.ModuleDict):
    """The layers of a network up to the last stage asked for, under the same names.

    State-dict keys are the network's too, so its weights load with ``strict=False``.

    Args:
        network: The network; its layers are shared, not copied.
        stages: The stages whose outputs are wanted, as ``layer2``, in any order.
        strides: By how much an image has shrunk behind each stage of the network, by name.

    Attributes:
        channels: Width of each output, by stage.
        strides: By how much an image has shrunk in each output, by stage.

    Shape:
        ``(N, in_channels, H, W)`` to a ``dict`` of ``(N, channels, ceil(H / stride), ceil(W /
        stride))`` by stage, in the network's order.

    Raises:
        UsageError: A name is no stage's, or none is given.
    """

    def __init__(
        self, network: ResNet, stages: Sequence[str], *, strides: Mapping[str, int]
    ) -> None:
        _refuse_others(stages, strides)
        names = [name for name in strides if name in stages]
        layers = list(network.named_children())
        end = next(number for number, (name, _) in enumerate(layers) if name == names[-1]) + 1
        super().__init__(dict(layers[:end]))
        self.channels = {name: _width(network.get_submodule(name)) for name in names}
        self.strides = {name: strides[name] for name in names}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the stages' outputs."""
        outputs: dict[str, Tensor] = {}
        for name, layer in self.items():
            images = layer(images)
            if name in self.strides:
                outputs[name] = images
        return outputs


def _width(stage: nn.Module) -> int:
    """Return the width of a stage's output, which its last block knows."""
    *_, last = stage.children()
    return cast(Block, last).out_channels


def _refuse_others(stages: Sequence[str], known: Mapping[str, int]) -> None:
    """Do nothing if these are names of stages.

    Raises:
        UsageError: They are not.
    """
    if isinstance(stages, str):
        raise UsageError(f"features: give a list of stages, as ['{stages}']")
    if not stages:
        raise UsageError(f"features: name at least one stage: {', '.join(known)}")
    for name in stages:
        if name not in known:
            meant = nearest(name, known)
            hint = f"; did you mean {meant}" if meant else ""
            raise UsageError(
                f"features: no stage is named '{name}'; there are {', '.join(known)}{hint}"
            )
