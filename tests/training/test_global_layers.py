"""Layers over the whole batch, of which every process has a part."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from resnet_builder.data.share import Shard
from resnet_builder.training.distributed import DistributedContext
from resnet_builder.training.global_layers import (
    GlobalBatchNorm2d,
    GlobalDraws,
    draw_globally,
    normalise_globally,
)
from tests.training.teams import forked, in_team, results

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "dropout of channels": lambda: nn.Dropout2d(0.3),
    "stochastic depth": lambda: StochasticDepth(0.5, mode="row"),
}
CPU = torch.device("cpu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def features(size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(size, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_dropped_does_not_depend_on_the_processes(
    layer: str, layout: str, dtype: torch.dtype
) -> None:
    x = features().to(dtype).to(memory_format=LAYOUTS[layout])
    torch.manual_seed(7)
    whole = [LAYERS[layer]()(x) for _ in range(2)]
    for rank in range(3):
        network = nn.Sequential(LAYERS[layer]())
        draw_globally(network, Shard(rank, of=3))
        part = x[rank::3].contiguous(memory_format=LAYOUTS[layout])
        torch.manual_seed(7)
        for one in whole:
            assert torch.equal(network(part), one[rank::3])


def test_drop_in_a_classifier_does_not_depend_on_the_processes() -> None:
    x = torch.ones(8, 6)
    torch.manual_seed(7)
    whole = nn.Dropout(0.5)(x)
    torch.manual_seed(7)
    assert torch.equal(GlobalDraws(nn.Dropout(0.5), Shard(1, of=2))(x[1::2]), whole[1::2])


def test_nothing_is_dropped_in_evaluation_or_where_it_is_frozen() -> None:
    network = nn.Sequential(nn.Dropout(0.5).eval(), nn.Dropout(0.5))
    draw_globally(network, Shard(0, of=2))
    assert [layer.training for layer in network] == [False, True]
    x = features()
    assert torch.equal(network[0](x), x)
    assert torch.equal(network.eval()(x), x)


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", GlobalBatchNorm2d), ("cuda", nn.SyncBatchNorm)]
)
def test_replaced_layers_keep_their_weights(device: str, kind: type[nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(0.1)))
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    draw_globally(network, Shard(0, of=2))
    normalise_globally(network, torch.device(device))
    assert type(network[1]) is kind
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before


def normalised(norm: nn.BatchNorm2d, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return the outputs and gradients of an uneven loss, and what a norm remembers."""
    found: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        x = batch.clone().requires_grad_()
        y = norm(x)
        (y.square() * torch.linspace(0, 1, 4)).sum().backward()
        assert x.grad is not None
        found |= {f"{number} y": y.detach(), f"{number} x": x.grad}
    gradients = {f"{name} gradient": p.grad for name, p in norm.named_parameters()}
    return {**found, **norm.state_dict(), **{k: v for k, v in gradients.items() if v is not None}}


def make_norm(kind: str) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(
        3,
        momentum=None if kind == "cumulative" else 0.2,
        affine=kind != "plain",
        track_running_stats=kind != "forgetful",
    )
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return norm


def normalise_part(ctx: DistributedContext, kind: str) -> dict[str, Tensor]:
    network = nn.Sequential(make_norm(kind))
    normalise_globally(network, CPU)
    [norm] = network
    assert isinstance(norm, GlobalBatchNorm2d)
    batches = [features(seed=seed)[ctx.rank :: ctx.size] for seed in range(2)]
    found = normalised(norm, batches)
    for name in found:
        if name.endswith("gradient"):
            ctx.all_reduce(found[name])
    return found


@pytest.mark.ci
@forked
@pytest.mark.parametrize("kind", ["usual", "plain", "cumulative", "forgetful"])
def test_norm_over_all_processes_equals_that_over_the_whole_batch(
    kind: str, tmp_path: Path
) -> None:
    whole = normalised(make_norm(kind), [features(seed=seed) for seed in range(2)])
    for rank, part in enumerate(results(in_team(normalise_part, tmp_path, kind))):
        assert part.keys() == whole.keys()
        for name, tensor in part.items():
            wanted = whole[name][rank::2] if name[0].isdigit() else whole[name]
            torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-5)
