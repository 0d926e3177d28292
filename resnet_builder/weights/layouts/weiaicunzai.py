"""weiaicunzai/pytorch-cifar100's names: branches whose layers, activations too, are numbered."""

from collections.abc import Mapping

from resnet_builder.weights.layouts.contract import Layout

_AFTER = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
_BEFORE = {0: "bn1", 2: "conv1", 3: "bn2", 5: "conv2", 6: "bn3", 8: "conv3"}


def _branch(name: str, layers: Mapping[int, str]) -> dict[str, str]:
    """Name the layers of a residual path by their numbers in it."""
    return {
        f"{name}.{number}": f"layer{{stage}}.{{block}}.{ours}" for number, ours in layers.items()
    }


WEIAICUNZAI = Layout(
    "weiaicunzai",
    {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        **_branch("conv{stage}_x.{block}.residual_function", _AFTER),
        "conv{stage}_x.{block}.shortcut.{number}": "layer{stage}.{block}.downsample.{number}",
    },
    first_stage=2,
)

WEIAICUNZAI_PREACT = Layout(
    "weiaicunzai preactresnet",
    {
        "pre.0": "conv1",
        "pre.1": "bn1",
        **_branch("stage{stage}.{block}.residual", _BEFORE),
        "stage{stage}.{block}.shortcut": "layer{stage}.{block}.downsample.0",
        "linear": "fc",
    },
)

WEIAICUNZAI_SENET = Layout(
    "weiaicunzai senet",
    {
        "pre.0": "conv1",
        "pre.1": "bn1",
        **_branch("stage{stage}.{block}.residual", _AFTER),
        "stage{stage}.{block}.shortcut.{number}": "layer{stage}.{block}.downsample.{number}",
        "stage{stage}.{block}.excitation.0": "layer{stage}.{block}.se.fc1",
        "stage{stage}.{block}.excitation.2": "layer{stage}.{block}.se.fc2",
        "linear": "fc",
    },
    refusal="its blocks have an activation before squeeze-and-excitation, which no part has",
)
