"""kuangliu/pytorch-cifar's names; akamaster's and super-gradients' CIFAR ResNets follow them."""

from resnet_builder.weights.layouts.contract import Layout

# Its networks have shortcuts without tensors, so that the head's name is all that tells.
AKAMASTER = Layout("akamaster", {"linear": "fc"})

KUANGLIU = Layout(
    "kuangliu",
    {
        "layer{stage}.{block}.shortcut.{number}": "layer{stage}.{block}.downsample.{number}",
        "layer{stage}.{block}.fc{number}": "layer{stage}.{block}.se.fc{number}",
        "linear": "fc",
    },
)
