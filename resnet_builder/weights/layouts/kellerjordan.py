"""KellerJordan/ResNet-PyTorch-CIFAR10's names; its convolutions have biases."""

from resnet_builder.weights.layouts.contract import Layout

KELLERJORDAN = Layout(
    "kellerjordan",
    {
        "norm1": "bn1",
        "layers{stage}.{block}.conv{number}": "layer{stage}.{block}.conv{number}",
        "layers{stage}.{block}.bn{number}": "layer{stage}.{block}.bn{number}",
        "linear": "fc",
    },
)
