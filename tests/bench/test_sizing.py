"""How many images a measured step has."""

import pytest
import torch

from resnet_builder.bench.plain import PlainLoop
from resnet_builder.bench.sizing import Size, measurable_size
from resnet_builder.spec.schema import Spec
from tests.bench.specs import tiny

CPU = torch.device("cpu")
PLENTY = 10**6


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every step take 10 ms an image, and 1 s more the first time; note their images."""
    taken: list[int] = []

    def turn(self: PlainLoop, images: int, seconds: float) -> float:
        taken.append(images)
        return images * 0.01 + (1 if taken.count(images) == 1 else 0)

    monkeypatch.setattr(PlainLoop, "turn", turn)
    return taken


@pytest.mark.parametrize(
    ("recipe", "seconds", "size"),
    [
        ((64, 1), 0.64, Size(64, 1)),
        ((64, 1), 0.63, Size(32, 1)),
        ((64, 1), 0.01, Size(2, 1)),
        ((48, 1), 9.0, Size(48, 1)),
        ((64, 4), 0.64, Size(64, 4)),
        ((64, 4), 0.63, Size(16, 1)),
        ((1, 1), 9.0, Size(1, 1)),
    ],
)
@pytest.mark.usefixtures("steps")
def test_step_is_the_recipe_s_or_as_large_as_time_allows(
    recipe: tuple[int, int], seconds: float, size: Size
) -> None:
    assert measurable_size(_spec(*recipe), CPU, seconds, most=PLENTY) == size


@pytest.mark.usefixtures("steps")
def test_step_is_no_larger_than_memory_has_room_for() -> None:
    assert measurable_size(_spec(64, 1), CPU, 9.0, most=24) == Size(24, 1)


def test_larger_steps_than_needed_are_never_tried(steps: list[int]) -> None:
    measurable_size(_spec(256, 1), CPU, 0.2, most=PLENTY)
    assert max(steps) == 16


def _spec(batch_size: int, accumulate: int) -> Spec:
    return tiny(f"train.batch_size={batch_size}", f"train.accumulate={accumulate}")
