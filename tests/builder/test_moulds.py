"""Copies of blocks that have no weights yet."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import build, resolve
from resnet_builder.builder.construct import collector_paused, construct_on_meta
from resnet_builder.builder.moulds import mould_of
from resnet_builder.model import count_parameters
from resnet_builder.spec.schema import Spec
from tests.networks import cifar_spec


class Block(nn.Module):
    """Holds a tensor of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.again = self.conv
        self.frozen = nn.Parameter(torch.empty(2), requires_grad=False)
        self.register_buffer("table", torch.arange(3.0, device="cpu"))
        self.register_buffer("mean", torch.empty(4))
        self.note: Any = ["mine"]


@pytest.fixture
def block() -> Block:
    with torch.device("meta"):
        return Block()


def cast(block: nn.Module) -> Any:
    mould = mould_of(block)
    assert mould is not None
    return mould.cast()


def test_copy_has_tensors_of_its_own_on_meta(block: Block) -> None:
    copy = cast(block)
    assert [name for name, _ in copy.named_parameters()] == ["frozen", "conv.weight"]
    for (name, own), (_, other) in zip(
        copy.named_parameters(), block.named_parameters(), strict=True
    ):
        assert own is not other, name
        assert type(own) is nn.Parameter
        assert (own.shape, own.dtype, own.requires_grad) == (
            other.shape,
            other.dtype,
            other.requires_grad,
        )
        assert own.is_meta
    assert copy.mean.is_meta
    assert copy.mean is not block.mean


def test_what_stands_twice_stands_twice_in_the_copy(block: Block) -> None:
    copy = cast(block)
    assert copy.again is copy.conv
    block.again = nn.Conv2d(3, 4, 1, bias=False, device="meta")
    block.again.weight = block.conv.weight
    tied = cast(block)
    assert tied.again.weight is tied.conv.weight
    assert count_parameters(tied) == count_parameters(block) == 14


def test_values_that_are_there_already_are_copied(block: Block) -> None:
    block.note.append("yours")
    copy = cast(block)
    assert copy.table.tolist() == [0.0, 1.0, 2.0]
    copy.table.zero_()
    copy.note.clear()
    assert isinstance(block.table, Tensor)
    assert block.table.tolist() == [0.0, 1.0, 2.0]
    assert block.note == ["mine", "yours"]


def test_attributes_of_a_parameter_are_copied(block: Block) -> None:
    block.frozen.decayed = False  # type: ignore[attr-defined]
    assert cast(block).frozen.decayed is False


def test_what_cannot_be_pickled_has_no_mould(block: Block) -> None:
    block.note = lambda: None
    assert mould_of(block) is None


@pytest.mark.parametrize("spec", [cifar_spec(3), cifar_spec(3, shortcut="projection_all")])
def test_network_of_copies_counts_as_one_of_constructors(spec: Spec) -> None:
    on_meta = construct_on_meta(resolve(spec).model)
    assert count_parameters(on_meta) == count_parameters(build(spec))


def test_collector_goes_on_and_what_others_froze_stays_frozen() -> None:
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collector_paused():
            pass
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()


def test_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
