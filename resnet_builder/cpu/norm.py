"""Batch normalisation in training, fused with the sum and the ReLU behind it."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_builder.cpu.convolution import gradient_memory
from resnet_builder.cpu.library import library

_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class FusedBatchNorm(nn.Module):
    """``relu(norm(x) + addend)`` in two passes over memory forward, and two backward.

    Statistics are summed more exactly than by torch's operation; all else agrees with it but for
    rounding, and bf16 is rounded once instead of after every part. The layer computes itself what
    the kernels do not support: evaluation, images that are not channels-last, numbers of channels
    that do not divide into vectors.

    Args:
        norm: The layer; its tensors are shared, not copied.
        relu: Whether a ReLU follows.

    Attributes:
        returns_twice: Whether the output is returned twice, so that the kernel adds the gradients
            of its two users, instead of autograd in a pass of its own.

    Shape:
        ``(N, C, H, W)`` each, to the same.
    """

    def __init__(self, norm: nn.BatchNorm2d, *, relu: bool) -> None:
        super().__init__()
        self.norm = norm
        self.relu = relu
        self.returns_twice = False

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the norm, the sum and the ReLU."""
        if not _supports(self.norm, x, addend):
            y = self.norm(x)
            if addend is not None:
                y += addend
            if self.relu:
                y = torch.relu_(y)
            return (y, y) if self.returns_twice else y
        assert self.norm.num_batches_tracked is not None, "is_fusible() requires it"
        self.norm.num_batches_tracked.add_(1)
        own = (self.norm.weight, self.norm.bias)
        return _Fused.apply(self.norm, x, addend, *own, self.relu, self.returns_twice)


def is_fusible(layer: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a layer is a batch norm that the kernels support."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.affine
        and layer.track_running_stats
        and layer.momentum is not None
        and layer.num_batches_tracked is not None
    )


def _supports(norm: nn.BatchNorm2d, x: Tensor, addend: Tensor | None) -> bool:
    return (
        norm.training
        and x.ndim == 4
        and x.dtype in _TYPES
        and all(
            t is not None and t.dtype == torch.float32
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        and all(
            t.shape == x.shape
            and t.dtype == x.dtype
            and t.device.type == "cpu"
            and t.is_contiguous(memory_format=torch.channels_last)
            for t in (x, addend)
            if t is not None
        )
        and bool(library().batch_norm_supports(x.numel() // x.shape[1], x.shape[1]))
    )


class _Fused(torch.autograd.Function):
    """Calls the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.BatchNorm2d,
        x: Tensor,
        addend: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        relu: bool,
        twice: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        y = torch.empty_like(x)
        moments = torch.empty(2, x.shape[1])
        mean, inverse_deviation = moments.unbind()
        getattr(library(), f"batch_norm_forward_{_TYPES[x.dtype]}")(
            x.data_ptr(),
            _address(addend),
            relu,
            y.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            norm.running_mean.data_ptr(),
            norm.running_var.data_ptr(),
            mean.data_ptr(),
            inverse_deviation.data_ptr(),
            x.numel() // x.shape[1],
            x.shape[1],
            norm.momentum,
            norm.eps,
            torch.get_num_threads(),
        )
        ctx.relu, ctx.has_addend = relu, addend is not None
        masks = (y,) if relu and addend is not None else ()
        ctx.save_for_backward(x, weight, bias, moments, *masks)
        return (y, _alias(y)) if twice else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, other_dy: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, weight, bias, moments, *masks = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        if other_dy is not None:
            other_dy = other_dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        masked_dy = None
        if masks or other_dy is not None:
            masked_dy = torch.empty_like(x) if ctx.has_addend else dx
        dweight, dbias = gradient_memory(*moments.shape).unbind()
        mean, inverse_deviation = moments.unbind()
        getattr(library(), f"batch_norm_backward_{_TYPES[x.dtype]}")(
            dy.data_ptr(),
            _address(other_dy),
            x.data_ptr(),
            _address(masks[0] if masks else None),
            ctx.relu,
            dx.data_ptr(),
            _address(masked_dy),
            weight.data_ptr(),
            bias.data_ptr(),
            mean.data_ptr(),
            inverse_deviation.data_ptr(),
            dweight.data_ptr(),
            dbias.data_ptr(),
            x.numel() // x.shape[1],
            x.shape[1],
            torch.get_num_threads(),
        )
        daddend = (dy if masked_dy is None else masked_dy) if ctx.has_addend else None
        return None, dx, daddend, dweight, dbias, None, None


def _alias(tensor: Tensor) -> Tensor:
    """Return the same memory as a tensor that is another one to autograd."""
    storage = tensor.untyped_storage()
    return tensor.new_empty(0).set_(storage, 0, tensor.shape, tensor.stride())


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
