"""open-mmlab/mmpretrain's names: a backbone and a head."""

from resnet_builder.weights.layouts.contract import Layout

MMPRETRAIN = Layout(
    "mmpretrain",
    {
        "layer{stage}.{block}.se_layer.conv{number}.conv": "layer{stage}.{block}.se.fc{number}",
        "head.fc": "fc",
    },
    prefix="backbone.",
)
