"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that drives singular values towards 1, as published."""

_ITERATIONS = 5
_EPS = 1e-7


class Muon(Optimizer):
    """Updates convolutions by orthogonal matrices, and all else by plain SGD.

    A convolution's kernel is a matrix of a row for each output channel, and for grouped ones a
    matrix for each group. Its update is Nesterov momentum with all singular values brought near
    1, so that no direction of the gradient drowns the others; weight decay is decoupled. Kernels of
    one shape are computed together.

    Like torch's fused optimizers it changes nothing where ``found_inf`` is set, without the host
    having to wait for a device to look.

    Args:
        groups: Parameter groups with ``lr``, ``momentum`` and ``weight_decay``; those that
            have ``kernels`` true hold convolutions, the others also have ``nesterov``.
        divisions: Groups of the convolutions that have several, by their kernel.
        fused: Whether one operation updates all that plain SGD does.

    Attributes:
        found_inf: A device flag; where it is not 0, a step does nothing.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        divisions: dict[Tensor, int] | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(groups, {"kernels": False, "nesterov": True})
        self.found_inf: Tensor | None = None
        self._divisions = divisions or {}
        self._fused = fused

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "a step is computed once"
        if self._on_host() and self.found_inf:
            return
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["kernels"]:
                self._update_kernels(parameters, group)
            else:
                self._update_rest(parameters, group)

    def _update_kernels(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        alike: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for kernel in kernels:
            alike[(self._divisions.get(kernel, 1), *kernel.shape)].append(kernel)
        for (divisions, *_), members in alike.items():
            self._update_alike(members, divisions, group)

    def _update_alike(self, kernels: list[Tensor], divisions: int, group: dict[str, Any]) -> None:
        """Update kernels of one shape."""
        rows = kernels[0].shape[0] // divisions
        orders = [_order(kernel) for kernel in kernels]
        momenta = self._momenta(kernels, group["momentum"])
        stack = torch.stack([m.permute(o) for m, o in zip(momenta, orders, strict=True)])
        matrices = stack.reshape(len(kernels) * divisions, rows, -1)
        tall = max(1.0, rows / matrices.shape[2]) ** 0.5
        updates = orthogonal(matrices).mul_(group["lr"] * tall)
        updates = self._unless_failed(updates, 0.0).reshape(stack.shape)
        self._decay(kernels, group["lr"] * group["weight_decay"])
        torch._foreach_sub_(
            [kernel.permute(order) for kernel, order in zip(kernels, orders, strict=True)],
            updates.unbind(),
        )

    def _momenta(self, kernels: list[Tensor], momentum: float) -> Sequence[Tensor]:
        """Take gradients into the buffers; return Nesterov's look ahead."""
        gradients = [k.grad for k in kernels if k.grad is not None]
        buffers = [self._buffer(k) for k in kernels]
        moved = torch._foreach_add(gradients, buffers, alpha=momentum)
        for buffer, new in zip(buffers, moved, strict=True):
            buffer.copy_(self._unless_failed(new, buffer))
        return torch._foreach_add(gradients, buffers, alpha=momentum)

    def _on_host(self) -> bool:
        """Tell whether the host can look at ``found_inf`` without waiting."""
        return self.found_inf is not None and self.found_inf.device.type == "cpu"

    def _unless_failed(self, new: Tensor, old: Tensor | float) -> Tensor:
        """Return ``new``, or where a gradient was not finite, ``old``."""
        if self.found_inf is None or self._on_host():
            return new
        return torch.where(self.found_inf == 0, new, old)

    def _buffer(self, kernel: Tensor) -> Tensor:
        state = self.state[kernel]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(kernel)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _decay(self, kernels: list[Tensor], share: float) -> None:
        if share == 0:
            return
        kept = torch.tensor(1 - share, device=kernels[0].device)
        torch._foreach_mul_(kernels, self._unless_failed(kept, 1.0))

    def _update_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
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


def _order(kernel: Tensor) -> tuple[int, ...]:
    """Return the order of a kernel's dimensions in memory; that of a matrix's columns is free."""
    is_last = kernel.is_contiguous(memory_format=torch.channels_last)
    return (0, 2, 3, 1) if is_last else (0, 1, 2, 3)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of ``(B, M, N)`` matrices near 1, between about 0.7 and 1.2.

    By the Newton-Schulz iteration of Jordan et al. 2024, which trades their exact value for fewer
    rounds. Each round multiplies a matrix by a polynomial of its product with itself, and these
    commute; so they are all_gather on the shorter side, and the matrix is multiplied once. A matrix
    of zeros stays one.
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
