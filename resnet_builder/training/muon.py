"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Callable, Iterable
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
    having to look.

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
        directions = self._momenta(kernels, group["momentum"])
        rows = kernels[0].shape[0] // divisions
        matrices = torch.stack([d.reshape(divisions, rows, -1) for d in directions]).flatten(0, 1)
        tall = max(1.0, rows / matrices.shape[2]) ** 0.5
        updates = orthogonal(matrices).mul_(group["lr"] * tall)
        updates = self._unless_failed(updates, 0.0)
        self._decay(kernels, group["lr"] * group["weight_decay"])
        for kernel, update in zip(kernels, updates.split(divisions), strict=True):
            kernel.sub_(update.reshape(kernel.shape))

    def _momenta(self, kernels: list[Tensor], momentum: float) -> list[Tensor]:
        """Take gradients into the buffers; return Nesterov's look ahead."""
        directions = []
        for kernel in kernels:
            assert kernel.grad is not None, "only those with a gradient are updated"
            buffer = self._buffer(kernel)
            moved = torch.add(kernel.grad, buffer, alpha=momentum)
            buffer.copy_(self._unless_failed(moved, buffer))
            directions.append(torch.add(kernel.grad, buffer, alpha=momentum))
        return directions

    def _unless_failed(self, new: Tensor, old: Tensor | float) -> Tensor:
        """Return ``new``, or where a gradient was not finite, ``old``."""
        return new if self.found_inf is None else torch.where(self.found_inf == 0, new, old)

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


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of ``(B, M, N)`` matrices near 1, between about 0.7 and 1.2.

    By the Newton-Schulz iteration of Jordan et al. 2024, which trades their exact value for fewer
    rounds. A matrix of zeros stays one.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + _EPS)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(square, square, square, beta=third, alpha=fifth), x, beta=first
        )
    return x.mT if is_tall else x
