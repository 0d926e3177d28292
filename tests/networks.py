"""Specs of networks, written the short way, for tests."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from resnet_builder.builder import build
from resnet_builder.spec.schema import Spec


def cifar_spec(
    blocks: int | Sequence[int] = 1,
    *,
    shortcut: Any = "pad",
    classes: int = 10,
    widths: Sequence[int] = (16, 32, 64),
    **model: Any,
) -> Spec:
    """Describe the network of He et al. 2015, section 4.2, with these blocks in each stage."""
    counts = [blocks] * len(widths) if isinstance(blocks, int) else blocks
    stages = [
        {"channels": width, "blocks": count, "stride": 2 if number else 1}
        for number, (width, count) in enumerate(zip(widths, counts, strict=True))
    ]
    given = {
        "num_classes": classes,
        "stem": {"type": "conv3x3", "channels": widths[0]},
        "block": "basic",
        "shortcut": shortcut,
        "stages": stages,
        **model,
    }
    return Spec.model_validate({"name": "test", "model": given})


def imagenet_spec(blocks: Sequence[int], block: Any, **model: Any) -> Spec:
    """Describe the network of He et al. 2015, table 1."""
    given = {
        "shortcut": "projection",
        "classes": 1000,
        "widths": (64, 128, 256, 512),
        "stem": "conv7x7_maxpool",
        "image_size": 224,
        **model,
    }
    return cifar_spec(blocks, block=block, **given)


def built(spec: Spec, *, seed: int | None = None) -> Any:
    """Build a spec's network; untyped, so that tests can name its layers."""
    return build(spec, seed=seed)


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Draw every parameter and buffer of a state dict, so that nothing is neutral by chance.

    Scales and variances are in [0.5, 2], shifts and means in [-0.5, 0.5].
    """
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
    scales = {
        id(tensor)
        for module in network.modules()
        if isinstance(module, norms)
        for tensor in (module.weight, getattr(module, "running_var", None))
        if tensor is not None
    }
    with torch.no_grad():
        for tensor in network.state_dict(keep_vars=True).values():
            if not tensor.dtype.is_floating_point:
                continue
            if id(tensor) in scales:
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.dim() > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.uniform_(-0.5, 0.5, generator=generator)


def random_images(*shape: int, seed: int = 1) -> Tensor:
    """Draw images from a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
