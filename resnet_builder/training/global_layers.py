"""Layers that compute with the whole batch where every process holds a part of it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from resnet_builder.data.share import Shard

_MULTIPLYING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth)
"""Layers that multiply what they are given by random numbers which do not depend on it."""


def draw_globally(network: nn.Module, share: Shard) -> None:
    """Let dropout and stochastic depth drop what one process would drop of the whole batch.

    Args:
        network: Its layers of these kinds are replaced; they have no weights.
        share: What this process computes of every batch.
    """
    layers = [name for name, one in network.named_modules() if isinstance(one, _MULTIPLYING)]
    for name in layers:
        network.set_submodule(name, GlobalDraws(network.get_submodule(name), share))


class GlobalDraws(nn.Module):
    """Multiplies a process's part of a batch by its part of the whole batch's random numbers.

    Args:
        layer: StatelessGenerator them.
        share: What this process computes of every batch.
    """

    def __init__(self, layer: nn.Module, share: Shard) -> None:
        super().__init__()
        self.layer = layer
        self._share = share
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        if not self.training:
            return self.layer(x)
        return x * self.layer(self._whole_batch_of_ones(x))[self._share.rank :: self._share.of]

    def _whole_batch_of_ones(self, x: Tensor) -> Tensor:
        """Return ones in the shape and the layout that one process would have had.

        An image's path needs one number only.
        """
        rest = (1,) * (x.dim() - 1) if isinstance(self.layer, StochasticDepth) else x.shape[1:]
        ones = x.new_ones((len(x) * self._share.of, *rest))
        is_channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return ones.contiguous(memory_format=torch.channels_last) if is_channels_last else ones


def normalise_globally(network: nn.Module, device: torch.device) -> None:
    """Let batch norms take the statistics of the whole batch.

    Args:
        network: Its batch norms are replaced, their weights are not.
        device: Where it computes; on CUDA torch's own layer is used, which knows no other device.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    norms = {name: one for name, one in network.named_modules() if isinstance(one, nn.BatchNorm2d)}
    for name, norm in norms.items():
        network.set_submodule(name, GlobalBatchNorm2d.of(norm))


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """A batch norm over the parts of all processes, which are equally large."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "GlobalBatchNorm2d":
        """Take the place of a batch norm, with its own parameters and buffers."""
        made = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(made, name, tensor)
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Shape:
            ``(N, C, H, W)`` to the same.
        """
        if not self.training:
            return super().forward(x)
        mean, variance = _statistics(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        self._track(mean, variance * (count / max(1, count - 1)))
        inverse = (variance + self.eps).rsqrt()
        normalised: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, inverse, count)
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Take statistics into the running ones, as the class above does."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None, "the three go together"
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ``(C,)`` means and biased variances of all processes' ``(N, C, H, W)``."""
    own = torch.stack(torch.var_mean(x.float(), dim=(0, 2, 3), correction=0))
    all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, own)
    variances, means = torch.stack(all_of_them).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _Normalise(torch.autograd.Function):
    """Scales and shifts by statistics that all processes' images have a part in."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count = count
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return (x.float() * _by_channel(scale) + _by_channel(shift)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient, in which every process's losses have a part (as in Ioffe 2015)."""
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[0].float()
        centred = x.float() - _by_channel(mean)
        own = torch.stack((gradient.sum((0, 2, 3)), (gradient * centred).sum((0, 2, 3))))
        totals = own.clone()
        dist.all_reduce(totals)
        scale = inverse if weight is None else inverse * weight
        along_mean, along_deviation = totals / ctx.count
        passed = gradient - _by_channel(along_mean)
        passed -= centred * _by_channel(along_deviation * inverse.square())
        of_bias, of_weight = own[0], own[1] * inverse
        given = (None, None) if weight is None else (of_weight, of_bias)
        return (passed * _by_channel(scale)).to(x.dtype), *given, None, None, None


def _by_channel(numbers: Tensor) -> Tensor:
    return numbers[:, None, None]
