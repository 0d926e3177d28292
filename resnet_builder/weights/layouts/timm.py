"""The names of timm's pre-activated ResNets, ``resnetv2``; all numbers start at 0."""

from resnet_builder.weights.layouts.contract import Layout

TIMM_RESNETV2 = Layout(
    "timm resnetv2",
    {
        "stem.conv": "conv1",
        "stages.{stage}.blocks.{block}.conv{number}": "layer{stage}.{block}.conv{number}",
        "stages.{stage}.blocks.{block}.norm{number}": "layer{stage}.{block}.bn{number}",
        "stages.{stage}.blocks.{block}.downsample.conv": "layer{stage}.{block}.downsample.0",
        "head.fc": "fc",
    },
    first_stage=0,
)
