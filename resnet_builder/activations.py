"""What a forward pass keeps for the backward pass, found without computing anything."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from resnet_builder.model import deduplicate_blocks


@dataclass
class Kept:
    """What a forward pass keeps.

    Attributes:
        sizes: Bytes of each tensor that is kept, parameters and buffers apart, in order.
        largest: Bytes of the largest output of a layer, be it kept or not.
        again: The most that a block keeps whose inside is computed again, for as long as its
            gradients are computed.
    """

    sizes: list[int] = field(default_factory=list)
    largest: int = 0
    again: int = 0

    @property
    def total(self) -> int:
        """Bytes of all that is kept."""
        return sum(self.sizes)

    @property
    def peak(self) -> int:
        """The most bytes that are held at one time, the parameters' gradients apart.

        When the backward pass comes to what was kept as the n-th, everything before is still
        there, and so are the gradients of a layer's output and of its input, of about that size.
        Where little is kept, a layer's input and output in the forward pass are more.
        """
        backward = (
            held + 2 * size for held, size in zip(accumulate(self.sizes), self.sizes, strict=True)
        )
        return max(2 * self.largest, *backward, 0) + self.again


def activation_memory(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    bf16: bool = False,
    recomputed: Collection[str] = frozenset(),
) -> Kept:
    """Return what a forward pass keeps for the backward pass.

    Blocks of a stage that are alike keep alike, and one of them is followed for all.

    Args:
        network: On the meta device; in training mode but for what is frozen.
        shape: Of the batch, ``(N, C, H, W)``.
        bf16: Whether the network computes in bf16.
        recomputed: Names of stages of whose blocks only the inputs are kept.
    """
    kept = Kept()
    with deduplicate_blocks(network) as alike, _noted(network, alike, recomputed, kept):
        try:
            with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                _follow(network, _stand_ins(network), torch.empty(shape, device="cpu"), kept)
        except Exception:  # a part from outside may hold what no stand-in goes together with
            kept.sizes.clear()
            _follow(network, _tensors(network), torch.empty(shape, device="meta"), kept)
    return kept


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _stand_ins(network: nn.Module) -> dict[str, Tensor]:
    """Return tensors that take no memory either, but whose types autocast changes."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").requires_grad_(
            tensor.requires_grad
        )
        for name, tensor in _tensors(network).items()
    }


def _follow(network: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, kept: Kept) -> None:
    """Run images through the network, and note what autograd asks to be kept."""
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in held:
            held[storage._cdata] = tensor  # so that no other storage gets the same address
            kept.sizes.append(storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        functional_call(network, dict(tensors), (images,))


@contextmanager
def _noted(
    network: nn.Module, alike: Mapping[str, int], recomputed: Collection[str], kept: Kept
) -> Iterator[None]:
    """Note the size of each layer's output, and what blocks keep that are not as all others."""
    starts: dict[str, int] = {}

    def measure(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            kept.largest = max(kept.largest, _size(output))

    def begin(name: str, *_: object) -> None:
        starts[name] = len(kept.sizes)

    def forget(name: str, _block: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        start = starts[name]
        kept.again = max(kept.again, sum(kept.sizes[start:]))
        kept.sizes[start:] = [_size(inputs[0])]

    def repeat(name: str, *_: object) -> None:
        kept.sizes.extend(kept.sizes[starts[name] :] * (alike[name] - 1))

    hooks = [layer.register_forward_hook(measure) for layer in network.modules()]
    forgotten = [
        f"{stage}.{name}"
        for stage in recomputed
        for name, _ in network.get_submodule(stage).named_children()
    ]
    for name in {*forgotten, *alike}:
        hooks.append(network.get_submodule(name).register_forward_pre_hook(partial(begin, name)))
    for names, note in ((forgotten, forget), (alike, repeat)):
        for name in names:
            hooks.append(network.get_submodule(name).register_forward_hook(partial(note, name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
