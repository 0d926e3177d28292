"""Batch normalisation in training, with the sum and the ReLU behind it, as one operation."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_builder.cpu.gradient_memory import memory_for_gradient
from resnet_builder.cpu.library import library

_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class FusedNorm(nn.Module):
    """``relu(norm(x) + addend)``, without what there is not, in fewer passes over memory.

    Statistics are summed more exactly than torch's own operation does; all else agrees with it but
    for rounding, and in bf16 is rounded once instead of after every part. What the kernels do not
    take is computed by the layer itself: evaluation, images that are not channels-last, numbers of
    channels that do not divide into vectors.

    Args:
        norm: The layer; its tensors are shared, not copied.
        relu: Whether a ReLU follows.

    Attributes:
        twice: Whether the output is handed out twice, to have its two gradients summed on the way.

    Shape:
        ``(N, C, H, W)`` each, to the same.
    """

    def __init__(self, norm: nn.BatchNorm2d, *, relu: bool) -> None:
        super().__init__()
        self.norm = norm
        self.relu = relu
        self.twice = False

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the layer."""
        if not _takes(self.norm, x, addend):
            y = self.norm(x)
            if addend is not None:
                y += addend
            if self.relu:
                y = torch.relu_(y)
            return (y, y) if self.twice else y
        assert self.norm.num_batches_tracked is not None, "fusible() asks for it"
        self.norm.num_batches_tracked.add_(1)
        own = (self.norm.weight, self.norm.bias)
        return _Fused.apply(self.norm, x, addend, *own, self.relu, self.twice)

    def extra_repr(self) -> str:
        """Say whether a ReLU follows."""
        return f"relu={self.relu}"


def fusible(layer: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Tell whether a layer is a batch norm of the kind that the kernels compute."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.affine
        and layer.track_running_stats
        and layer.momentum is not None
        and layer.num_batches_tracked is not None
    )


def has_fusible(network: nn.Module) -> bool:
    """Tell whether a network has any that are."""
    return any(map(fusible, network.modules()))


def _takes(norm: nn.BatchNorm2d, x: Tensor, addend: Tensor | None) -> bool:
    """Tell whether the kernels compute a layer for these images."""
    return (
        norm.training
        and x.ndim == 4
        and x.dtype in _TYPES
        and all(t is not None and t.dtype == torch.float32 for t in _own(norm))
        and all(
            t.shape == x.shape
            and t.dtype == x.dtype
            and t.device.type == "cpu"
            and t.is_contiguous(memory_format=torch.channels_last)
            for t in (x, addend)
            if t is not None
        )
        and bool(library().takes(x.numel() // x.shape[1], x.shape[1]))
    )


def _own(norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


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
        getattr(library(), f"forward_{_TYPES[x.dtype]}")(
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
    def backward(ctx: Any, dy: Tensor, dy_too: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, weight, bias, moments, *masks = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        if dy_too is not None:
            dy_too = dy_too.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        behind = None
        if masks or dy_too is not None:
            behind = torch.empty_like(x) if ctx.has_addend else dx
        dweight, dbias = memory_for_gradient(*moments.shape).unbind()
        mean, inverse_deviation = moments.unbind()
        getattr(library(), f"backward_{_TYPES[x.dtype]}")(
            dy.data_ptr(),
            _address(dy_too),
            x.data_ptr(),
            _address(masks[0] if masks else None),
            ctx.relu,
            dx.data_ptr(),
            _address(behind),
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
        daddend = (dy if behind is None else behind) if ctx.has_addend else None
        return None, dx, daddend, dweight, dbias, None, None


def _alias(tensor: Tensor) -> Tensor:
    """Return the same memory as a tensor that autograd takes for another."""
    storage = tensor.untyped_storage()
    return tensor.new_empty(0).set_(storage, 0, tensor.shape, tensor.stride())


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
