"""torchvision's names, which are ours; timm's ResNets and chenyaofo's have them too."""

from resnet_builder.weights.layouts.contract import Layout

TORCHVISION = Layout("torchvision", {})
