"""Evaluation sees every image, draws no random number and leaves the network as it was."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.errors import Stopped
from resnet_builder.training.evaluation import evaluate
from tests.training.recipes import images, labels, small_net


def batches(count: int = 10, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images(count).split(size), labels(count).split(size), strict=True))


def test_it_evaluates_in_evaluation_mode_and_goes_back() -> None:
    model = small_net(nn.Dropout(0.9))
    model.train()
    before = copy.deepcopy(model.state_dict())
    first, second = (evaluate(model, batches()) for _ in range(2))
    assert first.loss == second.loss
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_in_evaluation_mode_stays_in_it() -> None:
    model = small_net().eval()
    evaluate(model, batches())
    assert not model.training


def test_it_equals_the_network_on_all_images_at_once() -> None:
    model = small_net().eval()
    found = evaluate(model, batches())
    with torch.no_grad():
        logits = model(images(10))
    assert found.images == 10
    assert torch.equal(found.predicted, logits.argmax(1))
    assert found.loss == pytest.approx(
        nn.functional.cross_entropy(logits, labels(10)).item(), rel=1e-5
    )


def test_it_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    evaluate(small_net(nn.Dropout(0.5)).train(), batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_reported_is_computed_in_full_precision() -> None:
    """As on a GPU that trains with TF32."""
    model, seen = small_net(), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        evaluate(model, batches())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_stop_is_asked_at_every_batch() -> None:
    asked: Iterator[bool] = iter([False, True])
    with pytest.raises(Stopped, match="during an evaluation"):
        evaluate(small_net(), batches(), stop=lambda: next(asked))
    assert list(asked) == []


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_numbers_are_computed_in_fp32_unless_asked(bf16: bool, dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()
    model = small_net()
    model[3].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    evaluate(model, batches(), bf16=bf16)
    assert seen == {dtype}
