"""Which convolutions a step computes, and what they take."""

from collections import Counter

import pytest
import torch
from torch import nn

from resnet_builder.bench import floor
from resnet_builder.bench.floor import Convolution, Floor, FloorTimes, Kind, Work, convolutions_of
from resnet_builder.builder import build_on_meta, read_spec
from resnet_builder.training.finetune import freeze

STEM = "3 x 32 x 32 to 16, 3 x 3"


def counts(name: str, *frozen: str) -> dict[tuple[str, Kind], int]:
    """Count what a step of a bundled spec computes, by shapes and kind."""
    network = build_on_meta(read_spec(name).model).train()
    freeze(network, frozen)
    work = convolutions_of(network, (2, 3, 32, 32))
    return {(str(each.convolution), each.kind): each.count for each in work}


def test_resnet20_has_19_convolutions_of_6_shapes() -> None:
    found = counts("resnet20")
    assert {shapes: count for (shapes, kind), count in found.items() if kind == "forward"} == {
        STEM: 1,
        "16 x 32 x 32 to 16, 3 x 3": 6,
        "16 x 32 x 32 to 32, 3 x 3, stride 2": 1,
        "32 x 16 x 16 to 32, 3 x 3": 5,
        "32 x 16 x 16 to 64, 3 x 3, stride 2": 1,
        "64 x 8 x 8 to 64, 3 x 3": 5,
    }


def test_first_convolution_needs_no_gradient_of_its_input() -> None:
    kinds: Counter[Kind] = Counter()
    for (_, kind), count in counts("resnet20").items():
        kinds[kind] += count
    assert kinds == {"forward": 19, "weight_gradient": 19, "input_gradient": 18}
    assert (STEM, "input_gradient") not in counts("resnet20")


def test_frozen_layers_need_no_gradients() -> None:
    found = counts("resnet20", "stem", "layer1", "layer2")
    kinds: Counter[Kind] = Counter()
    for (_, kind), count in found.items():
        kinds[kind] += count
    assert kinds == {"forward": 19, "weight_gradient": 6, "input_gradient": 5}


def test_convolutions_are_found_wherever_they_stand() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4, 1, 3, 3, device="meta"))
            self.bias = nn.Parameter(torch.empty(4, device="meta"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.weight, self.bias, padding=1, groups=4)

    (forward, gradient) = convolutions_of(Hidden(), (2, 4, 5, 7))
    assert str(forward.convolution) == "4 x 5 x 7 to 4, 3 x 3, groups 4"
    assert forward.convolution.output == (2, 4, 5, 7)
    assert forward.convolution.biased
    assert (forward.kind, gradient.kind) == ("forward", "weight_gradient")


def convolution(*, biased: bool = False, groups: int = 1) -> Convolution:
    settings = ((2, 2), (1, 1), (1, 1), False, (0, 0), groups)
    return Convolution((4, 8, 6, 6), (16, 8 // groups, 3, 3), (4, 16, 3, 3), biased, settings)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("biased", "groups"), [(False, 1), (True, 2)])
def test_every_kind_is_timed_in_any_format(
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    biased: bool,
    groups: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(floor, "ROTATED_BYTES", 4096)
    kinds: tuple[Kind, ...] = ("forward", "weight_gradient", "input_gradient")
    work = [Work(convolution(biased=biased, groups=groups), kind, 1) for kind in kinds]
    measured = Floor(work, device=torch.device("cpu"), dtype=dtype, memory_format=memory_format)
    for _ in range(3):
        measured.sweep()
    times = measured.times()
    assert [each for each, _ in times.work] == work
    assert all(seconds > 0 for _, seconds in times.work)


def test_what_is_computed_is_laid_out_as_in_training_and_never_twice_from_one_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []

    def spy(images: torch.Tensor, weight: torch.Tensor, *_: object) -> None:
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        seen.append(images)

    monkeypatch.setattr(floor, "_FORWARD", spy)
    work = [Work(convolution(), "forward", 1)]
    measured = Floor(
        work,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        memory_format=torch.channels_last,
    )
    size = seen[0].numel() * 2
    for _ in range(200):
        measured.sweep()
    places = [images.data_ptr() for images in seen]
    assert len(set(places)) == len(places)
    assert max(places) - min(places) >= 200 * size


def test_floor_is_every_time_as_often_as_it_occurs() -> None:
    one = convolution()
    times = FloorTimes(
        (
            (Work(one, "forward", 3), 0.5),
            (Work(one, "weight_gradient", 3), 1.0),
            (Work(one, "input_gradient", 2), 2.0),
        )
    )
    assert times.seconds("forward") == 1.5
    assert times.seconds("weight_gradient", "input_gradient") == 7.0
    assert times.seconds() == 8.5
