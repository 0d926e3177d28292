"""Grad-CAM: the parts of an image that speak for a class (Selvaraju et al. 2017)."""

from itertools import islice

import torch
from torch import Tensor, nn

from resnet_builder.device import full_precision
from resnet_builder.model import ResNet

_AT_ONCE = 8  # images: the first layers of a large network take much memory


@full_precision()
def grad_cam(network: ResNet, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Grad-CAM on the output of the last stage, in evaluation mode.

    Each channel of the output is weighted by the mean gradient of the class's logit, equation 1;
    the map is the positive part of the weighted sum, equation 2. Blocks, pooling and head may be
    any: only the layers behind the last stage are differentiated.

    Args:
        network: The network. Its weights get no gradient.
        images: ``(N, C, H, W)`` float32 normalised images.
        classes: ``(N,)`` int64 classes.

    Returns:
        ``(N, h, w)`` maps of the last stage's size, of which the largest value is 1, or all are 0;
        and ``(N, K)`` logits.
    """
    children = list(network.named_children())
    stages = set(network.stages)
    end = 1 + max(place for place, (_, layer) in enumerate(children) if layer in stages)
    backbone = nn.Sequential(*(layer for _, layer in islice(children, end)))
    head = nn.Sequential(*(layer for _, layer in islice(children, end, None)))
    training = [layer for layer in network.modules() if layer.training]
    network.eval()
    maps, logits = [], []
    try:
        for some, targets in zip(images.split(_AT_ONCE), classes.split(_AT_ONCE), strict=True):
            with torch.no_grad():
                features = backbone(some)
            with torch.enable_grad():
                features.requires_grad_()
                # A copy, because the head may change its input in place, as an activation does.
                found = head(features.clone())
                [gradient] = torch.autograd.grad(found.gather(1, targets[:, None]).sum(), features)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            raw = (weights * features.detach()).sum(dim=1).relu()
            maps.append(raw / raw.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12))
            logits.append(found.detach())
    finally:
        for layer in training:
            layer.training = True
    return torch.cat(maps), torch.cat(logits)
