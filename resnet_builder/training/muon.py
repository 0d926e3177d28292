"""Muon: momentum whose matrices are orthogonalized (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that drives singular values towards 1, as published."""

_ITERATIONS = 5
_EPS = 1e-7


class Muon(Optimizer):
    """Optimizer that updates convolutions by orthogonal matrices, and all else by plain SGD.

    The weight of a convolution is a matrix with a row for each output channel; that of a grouped
    convolution is a matrix for each group. Its update is Nesterov momentum with all singular values
    brought near 1, so that no direction of the gradient drowns the others. Weight decay is
    decoupled. Weights of one shape are computed together.

    As torch's fused optimizers do, it changes nothing where ``found_inf`` is set, without making
    the host wait for the device.

    Args:
        groups: Parameter groups with ``lr``, ``momentum`` and ``weight_decay``. Those with
            ``orthogonalize`` hold weights of convolutions; the others have ``nesterov``.
        conv_groups: Groups of the convolutions, by their weight; one where it is missing.
        fused: Whether one kernel makes all updates of plain SGD.

    Attributes:
        found_inf: Flag on the device; where it is not 0, a step does nothing.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        conv_groups: dict[Tensor, int] | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(groups, {"orthogonalize": False, "nesterov": True})
        self.found_inf: Tensor | None = None
        self._conv_groups = conv_groups or {}
        self._fused = fused

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "a step is computed once"
        if self._flag_is_on_host() and self.found_inf:
            return
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["orthogonalize"]:
                self._update_convolutions(parameters, group)
            else:
                self._update_by_sgd(parameters, group)

    def _update_convolutions(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for weight in weights:
            by_shape[(self._conv_groups.get(weight, 1), *weight.shape)].append(weight)
        for (conv_groups, *_), members in by_shape.items():
            self._update_equal_shapes(members, conv_groups, group)

    def _update_equal_shapes(
        self, weights: list[Tensor], conv_groups: int, group: dict[str, Any]
    ) -> None:
        rows = weights[0].shape[0] // conv_groups
        orders = [_memory_order(weight) for weight in weights]
        momenta = self._nesterov_momenta(weights, group["momentum"])
        stack = torch.stack([m.permute(o) for m, o in zip(momenta, orders, strict=True)])
        matrices = stack.reshape(len(weights) * conv_groups, rows, -1)
        tall = max(1.0, rows / matrices.shape[2]) ** 0.5
        updates = orthogonalize(matrices).mul_(group["lr"] * tall)
        updates = self._unless_failed(updates, 0.0).reshape(stack.shape)
        self._decay(weights, group["lr"] * group["weight_decay"])
        torch._foreach_sub_(
            [weight.permute(order) for weight, order in zip(weights, orders, strict=True)],
            updates.unbind(),
        )

    def _nesterov_momenta(self, weights: list[Tensor], momentum: float) -> Sequence[Tensor]:
        """Add the gradients to the momentum buffers; return Nesterov's look-ahead."""
        gradients = [w.grad for w in weights if w.grad is not None]
        buffers = [self._buffer(w) for w in weights]
        moved = torch._foreach_add(gradients, buffers, alpha=momentum)
        for buffer, new in zip(buffers, moved, strict=True):
            buffer.copy_(self._unless_failed(new, buffer))
        return torch._foreach_add(gradients, buffers, alpha=momentum)

    def _flag_is_on_host(self) -> bool:
        """Return whether the host can read ``found_inf`` without waiting."""
        return self.found_inf is not None and self.found_inf.device.type == "cpu"

    def _unless_failed(self, new: Tensor, old: Tensor | float) -> Tensor:
        """Return ``new``, or ``old`` where a gradient was not finite."""
        if self.found_inf is None or self._flag_is_on_host():
            return new
        return torch.where(self.found_inf == 0, new, old)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _decay(self, weights: list[Tensor], share: float) -> None:
        if share == 0:
            return
        kept = torch.tensor(1 - share, device=weights[0].device)
        torch._foreach_mul_(weights, self._unless_failed(kept, 1.0))

    def _update_by_sgd(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        buffers = [self._buffer(p) if momentum else None for p in parameters]
        sgd(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            buffers,
            fused=self._fused,
            foreach=not self._fused,
            found_inf=self.found_inf if self._fused else None,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )


def _memory_order(weight: Tensor) -> tuple[int, ...]:
    """Return the order of the dimensions in memory; the order of a matrix's columns is free."""
    is_last = weight.is_contiguous(memory_format=torch.channels_last)
    return (0, 2, 3, 1) if is_last else (0, 1, 2, 3)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of ``(B, M, N)`` matrices near 1, between about 0.7 and 1.2.

    The Newton-Schulz iteration of Jordan et al. 2024, which trades the exact value for fewer
    iterations. Each multiplies a matrix by a polynomial of its product with itself. These
    polynomials commute, so they are multiplied on the shorter side first, and the matrix is
    multiplied once. A matrix of zeros stays one.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + _EPS)
    square = x @ x.mT
    factor = factors = _polynomial(square)
    for _ in range(_ITERATIONS - 1):
        square = factor @ square @ factor
        factor = _polynomial(square)
        factors = factor @ factors
    x = factors @ x
    return x.mT if is_tall else x


def _polynomial(square: Tensor) -> Tensor:
    first, third, fifth = _COEFFICIENTS
    result = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
    result.diagonal(dim1=1, dim2=2).add_(first)
    return result
