"""Gradients of parameters have memory of their own, which nothing else is written into."""

import threading
import weakref

import torch
from torch import Tensor, nn

from resnet_builder.cpu.gradient_memory import memory_for_gradient
from resnet_builder.cpu.training import TrainingConv2d, operations_for
from tests.cpu import NEEDS_GRADIENT

BLOCK = 4 * 2**20  # bytes


def test_tensors_share_blocks_but_no_numbers() -> None:
    shapes = [(3, 5), (1,), (64, 3, 3, 64), (2, 16)] * 40  # more than a block
    tensors = [memory_for_gradient(*shape).fill_(number) for number, shape in enumerate(shapes)]
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert bool((tensor == number).all())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) < 4


def test_what_is_larger_than_a_block_has_one_of_its_own() -> None:
    large = memory_for_gradient(2**20 + 3)
    assert large.untyped_storage().nbytes() < BLOCK + 1024
    assert memory_for_gradient(4).untyped_storage().nbytes() == BLOCK


def test_a_block_is_given_back_with_its_last_tensor() -> None:
    storages: list[weakref.ref[Tensor]] = []
    for _ in range(5):
        tensor = memory_for_gradient(2**20)
        assert tensor._base is not None
        storages.append(weakref.ref(tensor._base))
    del tensor
    memory_for_gradient(2**20)
    assert [each() for each in storages] == [None] * 5


def test_threads_have_blocks_of_their_own() -> None:
    found: list[Tensor] = [memory_for_gradient(4)]
    thread = threading.Thread(target=lambda: found.append(memory_for_gradient(4)))
    thread.start()
    thread.join()
    mine, other = (tensor.untyped_storage().data_ptr() for tensor in found)
    assert mine != other


@NEEDS_GRADIENT
def test_gradients_are_not_copied_out_of_their_block_and_add_up() -> None:
    layer = nn.Conv2d(32, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    operations = operations_for(layer)
    assert operations is not None
    ours = TrainingConv2d(layer, operations)
    x = torch.randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last)

    def learn() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            ours(x).sum().backward()

    learn()
    assert layer.weight.grad is not None
    assert layer.weight.grad.untyped_storage().nbytes() == BLOCK
    once = layer.weight.grad.clone()
    learn()
    assert torch.equal(layer.weight.grad, 2 * once)
