"""Progressive resizing: smaller images first, the images' own size at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import read_spec
from resnet_builder.errors import SpecError
from resnet_builder.training.resizing import make_resizing, resized
from tests.training.recipes import images, recipe
from tests.training.runs import experiment, train

PARTS = [{"size": 3, "fraction": 0.25}, {"size": 4, "fraction": 0.3}]


def test_sizes_follow_the_fractions_of_the_training() -> None:
    resize = make_resizing(recipe(progressive_resizing=PARTS), total_steps=20)
    sizes = [resize(images(2), step).shape[-1] for step in range(20)]
    assert sizes == [3] * 5 + [4] * 6 + [6] * 9


def test_images_of_their_own_size_are_left_alone() -> None:
    given = images(2)
    assert make_resizing(recipe(), total_steps=20)(given, 0) is given
    assert make_resizing(recipe(progressive_resizing=PARTS), total_steps=20)(given, 19) is given


def test_half_the_size_averages_around_each_pixel() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert torch.allclose(resized(ramp, 4)[0, 0, 0, 1:3], torch.tensor([2.5, 4.5]))
    assert torch.allclose(resized(torch.full((1, 3, 8, 8), 0.7), 5), torch.tensor(0.7))


def test_the_network_is_fed_each_size_in_its_turn(tmp_path: Path) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []
            self.classify = nn.Linear(3, 4)

        def forward(self, given: Tensor) -> Tensor:
            if self.training:
                self.sizes.append(given.shape[-1])
            scores: Tensor = self.classify(given.mean((2, 3)))
            return scores

    spec = experiment(progressive_resizing=[{"size": 5, "fraction": 0.5}])
    network = Watched()
    train(tmp_path / "run", spec, model=network)
    own = spec.model.image_size
    half = len(network.sizes) // 2
    assert network.sizes == [5] * half + [own] * half


@pytest.mark.parametrize(
    ("parts", "code", "path"),
    [
        ("[{size: 32, fraction: 0.5}]", "no-effect", "train.progressive_resizing[0].size"),
        ("[{size: 3, fraction: 0.5}]", "shape", "train.progressive_resizing[0].size"),
        (
            "[{size: 16, fraction: 0.5}, {size: 24, fraction: 0.5}]",
            "out-of-range",
            "train.progressive_resizing",
        ),
        ("[{size: 16, fraction: 1.0}]", "out-of-range", "train.progressive_resizing[0].fraction"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(parts: str, code: str, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec("resnet20", overrides=[f"train.progressive_resizing={parts}"])
    found: Any = caught.value.errors
    assert [(problem.code, problem.path) for problem in found] == [(code, path)]
