"""facebookresearch/pycls's names, of its ResNets and AnyNets; blocks are counted from 1."""

from resnet_builder.weights.layouts.contract import Layout

PYCLS = Layout(
    "pycls",
    {
        "stem.conv": "conv1",
        "stem.bn": "bn1",
        "s{stage}.b{block}.f.a": "layer{stage}.{block}.conv1",
        "s{stage}.b{block}.f.a_bn": "layer{stage}.{block}.bn1",
        "s{stage}.b{block}.f.b": "layer{stage}.{block}.conv2",
        "s{stage}.b{block}.f.b_bn": "layer{stage}.{block}.bn2",
        "s{stage}.b{block}.f.c": "layer{stage}.{block}.conv3",
        "s{stage}.b{block}.f.c_bn": "layer{stage}.{block}.bn3",
        "s{stage}.b{block}.proj": "layer{stage}.{block}.downsample.0",
        "s{stage}.b{block}.bn": "layer{stage}.{block}.downsample.1",
        "head.fc": "fc",
    },
    first_block=1,
)
