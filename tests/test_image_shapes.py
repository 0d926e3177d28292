"""Images that are not square, and of four channels, from the file to the exported network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_builder.bench import steady_state
from resnet_builder.builder import build, load_experiment, read_spec
from resnet_builder.data.decode import decode_image
from resnet_builder.errors import SpecError
from resnet_builder.inference import TrainedModel, load_model
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.yaml_source import parse_plain
from resnet_builder.summary import summarize
from resnet_builder.training.schedule import Plan
from resnet_builder.weights.file import Origin, WeightsHeader, save_weights
from tests.cli.experiments import call

SPEC = """\
name: wide
model:
  num_classes: 2
  stem: {type: conv3x3, channels: 4}
  block: basic
  shortcut: pad
  stages: [{channels: 4, blocks: 1}, {channels: 8, blocks: 1, stride: 2}]
data:
  dataset: {type: image_folder, path: images, channels: 4}
  preprocess: [{type: resize, size: [12, 20], interpolation: bicubic}]
  augment:
    - {type: random_crop, padding: 2, mode: reflect}
    - horizontal_flip
    - vertical_flip
    - {type: rotation, degrees: 20, fill: mean}
    - {type: affine, shear: 9}
    - {type: perspective, p: 1.0}
    - {type: blur, kernel_size: 5}
    - {type: cutout, size: 4}
    - random_erasing
    - mixup
    - cutmix
train:
  steps: 4
  batch_size: 4
  optimizer: {type: sgd, lr: 0.1}
  progressive_resizing: [{size: 6, fraction: 0.5}]
run: {device: cpu, precision: bf16, report: false}
"""


def write_rgba(path: Path, seed: int, height: int = 15, width: int = 22) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for seed, name in enumerate(("ant", "bee")):
            for number in range(4):
                write_rgba(tmp_path / f"images/{split}/{name}/{number}.png", 10 * seed + number)
    (tmp_path / "wide.yaml").write_text(SPEC)
    return tmp_path


def probability(found: Any, trained: TrainedModel, pixels: Tensor) -> None:
    """Compare the first prediction with the softmax of the network, of pixels that are ready."""
    mean, std = (
        torch.tensor(one)[:, None, None] for one in (trained.header.mean, trained.header.std)
    )
    with torch.inference_mode():
        wanted = trained.network((pixels / 255 - mean) / std).softmax(1).max()
    best = found["images"][0]["predictions"][0]
    assert best["probability"] == pytest.approx(float(wanted), abs=1e-5)


def test_wide_images_with_alpha_are_trained_evaluated_predicted_and_exported(folder: Path) -> None:
    result = call("train", "wide.yaml", "--data-dir", ".", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert call("evaluate", "run", "--data-dir", ".").exit_code == 0
    result = call("export", "run", "-o", "wide.safetensors")
    assert result.exit_code == 0, result.stderr
    with safe_open(folder / "wide.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["image_size"]) == [12, 20]
    assert metadata["input"].startswith("float32 (batch, 4, 12, 20)")

    trained = load_model(folder / "run")
    assert trained.spec.model.image_shape == (4, 12, 20)
    data = trained.spec.data
    assert data is not None
    assert trained.header.preprocess == data.preprocess
    write_rgba(folder / "high.png", 7, height=40, width=8)
    found = json.loads(call("predict", "run", "high.png", "images/test", "--json").stdout)
    assert [one["fitted"] for one in found["images"]] == [False] * 9
    image = torch.from_numpy(np.array(Image.open(folder / "high.png"))).permute(2, 0, 1)
    bicubic = v2.InterpolationMode.BICUBIC
    probability(found, trained, F.resize(image[None], [12, 20], bicubic, antialias=True))


def test_image_of_other_proportions_is_resized_to_cover_the_network_s_and_cropped(
    folder: Path,
) -> None:
    spec = read_spec(WIDE)
    header = WeightsHeader(
        spec=dump_spec(spec), mean=(0.5,) * 3, std=(0.2,) * 3, source=Origin(file="x", layout="y")
    )
    save_weights(folder / "x.safetensors", build(spec, seed=0).state_dict(), header)
    for height, width, resized in ((40, 8, (100, 20)), (9, 30, (12, 40)), (24, 40, (12, 20))):
        write_rgba(folder / "other.png", 7, height, width)
        found = json.loads(call("predict", "x.safetensors", "other.png", "--json").stdout)
        assert found["images"][0]["fitted"]
        image = torch.from_numpy(np.array(Image.open(folder / "other.png"))).permute(2, 0, 1)[:3]
        fitted = F.center_crop(F.resize(image[None], resized, antialias=True), [12, 20])
        probability(found, load_model(folder / "x.safetensors"), fitted)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_that_are_cropped_while_they_are_read_become_rgb(
    channels: int, folder: Path
) -> None:
    """And predict decodes them as the training did."""
    text = SPEC.replace("channels: 4}\n  pre", f"channels: {channels}}}\n  pre")
    text = text.replace("bicubic}]", "bicubic}, to_rgb]")
    text = text.replace(
        "  augment:\n", "  augment:\n    - {type: random_resized_crop, size: [12, 20]}\n"
    )
    (folder / "wide.yaml").write_text(text)
    result = call("train", "wide.yaml", "--data-dir", ".", "--out", "run")
    assert result.exit_code == 0, result.stderr
    found = json.loads(call("predict", "run", "images/test", "--json").stdout)
    assert [one["greyed"] for one in found["images"]] == [channels == 1] * 8
    pixels = decode_image(folder / found["images"][0]["path"], channels)
    bicubic = v2.InterpolationMode.BICUBIC
    pixels = F.resize(pixels[None], [12, 20], bicubic, antialias=True)
    rgb = pixels.expand(-1, 3, -1, -1) if channels == 1 else pixels[:, :3]
    probability(found, load_model(folder / "run"), rgb)


WIDE: dict[str, Any] = {
    "extends": "resnet20",
    "name": "wide",
    "model": {"num_classes": 2, "stages": [{"channels": 16, "blocks": 1}]},
    "data": {
        "dataset": {"type": "synthetic", "num_classes": 2, "image_size": [12, 20], "train": 8},
        "validation": 0,
    },
    "train": {"batch_size": 4, "steps": 2, "schedule": "constant"},
}


def test_shape_of_the_data_is_the_network_s() -> None:
    found = load_experiment(WIDE)
    assert found.input_shape == (3, 12, 20)
    assert found.model.image_size == (12, 20)
    assert read_spec(parse_plain(dump_spec(found.spec), "")) == found.spec
    summary = summarize(found.spec)
    assert summary.rows[0].output == (16, 12, 20)
    assert summary.rows[0].macs == 27 * 16 * 12 * 20
    assert steady_state(found, batch_size=4, accumulate=1).input_shape == (3, 12, 20)
    assert load_experiment(WIDE, overrides=["model.image_size=[12, 20]"]).spec == found.spec
    square = load_experiment(WIDE, overrides=["data.dataset.image_size=[12, 12]"])
    assert square.model.image_size == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.image_size=[20, 12]"],
            "model.image_size: must be [12, 20], the [height, width] of synthetic, not [20, 12]",
        ),
        (["model.image_size=12"], "must be [12, 20], the [height, width] of synthetic, not 12"),
        (["model.image_size=[12]"], "model.image_size[1]: is missing"),
        (["model.image_size=12x20"], "must be a whole number or a list of 2 numbers, not the text"),
        (
            ["data.augment=[gaussian_blur]"],
            "no augmentation is named 'gaussian_blur': write `blur`",
        ),
        (["model.image_size=[12, 0]"], "model.image_size[1]: 0 is out of range"),
        (
            ["data.preprocess=[{type: pad, size: [30, 19]}]"],
            "data.preprocess[0].size: an image of 12x20 (height x width) is larger than `pad`",
        ),
        (
            ["data.augment=[{type: blur, kernel_size: 25}]"],
            "data.augment[0]: `blur` needs images of at least 13 pixels a side with these options, "
            "not 12x20 (height x width)",
        ),
        (
            ["data.dataset.channels=1", "data.augment=[{type: color_jitter, hue: 0.1}]"],
            "`color_jitter` changes images of 3 channels, not 1",
        ),
        (
            ["data.dataset.channels=4", "data.augment=[augmix]"],
            "`augmix` changes images of 1 or 3 channels, not 4",
        ),
        (
            ["train.progressive_resizing=[{size: 12, fraction: 0.5}]"],
            "12 pixels a side are not fewer than the images' own 12",
        ),
        (["data.augment=[affine]"], "data.augment[0]: it has no effect without `degrees`"),
        (["data.augment=[rotation]"], "data.augment[0].degrees: is missing"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_at_their_place(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_experiment(WIDE, overrides=overrides)
    assert message in str(caught.value)


def test_progressive_resizing_keeps_the_proportions() -> None:
    found = load_experiment(
        WIDE, overrides=["train.progressive_resizing=[{size: 9, fraction: 0.5}]"]
    )
    plan = Plan(found.train, steps_per_epoch=2)
    assert plan.resize(torch.zeros(1, 3, 12, 20), 0).shape == (1, 3, 9, 15)
    assert plan.resize(torch.zeros(1, 3, 20, 12), 0).shape == (1, 3, 15, 9)
    assert plan.resize(torch.zeros(1, 3, 12, 20), 1).shape == (1, 3, 12, 20)
