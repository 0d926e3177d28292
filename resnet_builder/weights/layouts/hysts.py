"""hysts/pytorch_image_classification's names; blocks are counted from 1."""

from resnet_builder.weights.layouts.contract import Layout

HYSTS = Layout(
    "hysts",
    {
        "conv": "conv1",
        # The stem's; where that has none, before pre-activated blocks for CIFAR, the last.
        "bn": ("bn1", "norm"),
        "stage{stage}.block{block}.conv{number}": "layer{stage}.{block}.conv{number}",
        "stage{stage}.block{block}.bn{number}": "layer{stage}.{block}.bn{number}",
        "stage{stage}.block{block}.se.fc{number}": "layer{stage}.{block}.se.fc{number}",
        "stage{stage}.block{block}.shortcut.conv": "layer{stage}.{block}.downsample.0",
        "stage{stage}.block{block}.shortcut.bn": "layer{stage}.{block}.downsample.1",
        "bn_last": "norm",
    },
    first_block=1,
)
