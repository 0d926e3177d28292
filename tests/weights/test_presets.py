"""Preprocessing that published weights were made for: from torchvision, timm, and to the header."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor

from resnet_builder.data.decode import decode_image
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.inference import load_model
from resnet_builder.prediction import predict
from resnet_builder.weights import presets
from resnet_builder.weights.presets import find_preset, imagenet_classes, read_preset
from tests.cli.experiments import call
from tests.networks import randomise

V2 = "torchvision:ResNet50_Weights.IMAGENET1K_V2"
BICUBIC = "timm:resnet18.a1_in1k"


def photograph(path: Path) -> Path:
    """Write a JPEG of 640 x 480 pixels with smooth areas, edges and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:480, 0:640]
    light = 127 + 90 * np.sin(rows / 40)[..., None] * np.cos(columns / [25, 60, 130][0])[..., None]
    colours = light + np.stack([rows / 4, columns / 8, (rows + columns) / 16], axis=2) - 60
    colours[100:300, 200:420] = 255 - colours[100:300, 200:420]
    noise = rng.normal(0, 12, colours.shape)
    image = Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8))
    image.filter(ImageFilter.GaussianBlur(0.7)).save(path, quality=90)
    return path


def test_preset_of_torchvision_is_its_transform() -> None:
    preset = read_preset(V2)
    assert [step.model_dump(exclude_defaults=True) for step in preset.preprocess] == [
        {"type": "resize", "size": 232},
        {"type": "center_crop", "size": 224},
    ]
    assert preset.normalize.mean == (0.485, 0.456, 0.406)
    assert preset.normalize.std == (0.229, 0.224, 0.225)
    assert preset.image_size == (224, 224)
    assert preset.classes == imagenet_classes()
    assert len(set(imagenet_classes())) == 1000
    for name in presets.published_weights():
        assert read_preset(f"torchvision:{name}").classes == imagenet_classes()


def test_preset_of_timm_is_its_configuration() -> None:
    preset = read_preset(BICUBIC)
    assert [step.model_dump(exclude_defaults=True) for step in preset.preprocess] == [
        {"type": "resize", "size": 224, "interpolation": "bicubic", "crop_share": 0.95},
        {"type": "center_crop", "size": 224},
    ]
    assert preset.classes == imagenet_classes()
    for name in timm.list_pretrained("*resnet*"):
        config: Any = timm.get_pretrained_cfg(name)
        found = read_preset(f"timm:{name}")
        assert found.image_size == config.input_size[1:]
        assert found.normalize.mean == config.mean


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision:ResNet50_Weights.V2",
            "torchvision has no weights of a ResNet named 'ResNet50_Weights.V2'; there are "
            "ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2",
        ),
        (
            "timm:resnet18.a1_in2k",
            "timm has no weights named 'resnet18.a1_in2k'; there are resnet18.a1",
        ),
        ("timm:nothing_at_all", "timm has no weights named 'nothing_at_all'"),
        ("resnet50", "there is no file resnet50; a preset is a config.json of timm, torchvision:"),
    ],
)
def test_unknown_preset_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_preset(name)


def test_configuration_in_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = {"input_size": [1, 28, 28], "crop_mode": "squash", "crop_pct": 1.0, "mean": [0.5]}
    config |= {"std": [0.5], "interpolation": "nearest"}
    names = {"1": "second", "0": "first"}
    path.write_text(json.dumps({"pretrained_cfg": config, "label_names": names}))
    for preset in (read_preset(str(path)), find_preset(tmp_path / "model.safetensors")):
        assert preset is not None
        assert [step.model_dump(exclude_defaults=True) for step in preset.preprocess] == [
            {"type": "resize", "size": (28, 28), "interpolation": "nearest"},
            {"type": "center_crop", "size": 28},
        ]
        assert (preset.image_size, preset.classes) == ((28, 28), ("first", "second"))
        assert preset.source == str(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop_mode": "border"}, "pads images to their longer side"),
        ({"interpolation": "lanczos"}, "interpolation: .*; --preprocess spec takes the spec's"),
        ({"mean": [3, 0, 0]}, "mean.0: Input should be less than or equal to 1"),
        ({"input_size": "large"}, "input_size: Input should be a valid tuple"),
    ],
)
def test_configuration_that_no_step_expresses_is_an_error(
    config: Any, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    with pytest.raises(CheckpointError, match=message):
        find_preset(tmp_path / "model.pth")


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "bert"}', "[" * 10_000, "\xff"])
def test_other_configurations_beside_weights_are_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    (tmp_path / "model.pth").write_bytes(b"weights")
    assert find_preset(tmp_path / "model.pth") is None


def test_file_that_torchvision_publishes_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.pth").write_bytes(b"published")
    digest = hashlib.sha256(b"published").hexdigest()
    url = f"https://download.pytorch.org/models/resnet50-{digest[:8]}.pth"
    monkeypatch.setattr(
        presets, "published_weights", lambda: {V2.removeprefix("torchvision:"): url}
    )
    found = find_preset(tmp_path / "my.pth")
    assert found is not None
    assert found.source == V2


# From the library to predict.


def torchvision_twin() -> tuple[Any, Callable[[Image.Image], Tensor]]:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1]), weights.transforms()


def timm_twin() -> tuple[Any, Callable[[Image.Image], Tensor]]:
    network = timm.create_model(BICUBIC.removeprefix("timm:"), layers=[1, 1, 1, 1])
    data: Any = timm.data
    transform = data.create_transform(**data.resolve_model_data_config(network), is_training=False)
    return network, transform


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_predict_prepares_images_as_the_library_that_the_weights_are_from(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both resize the same 8-bit pixels to 8 bits: Pillow there, torch here.

    Their fixed-point weights are rounded differently, so that a pixel may differ by one level of
    255, which is 0.018 after normalisation. Here, less than one in a hundred values does so, and
    the logits differ by less than a thousandth of their standard deviation.
    """
    monkeypatch.chdir(tmp_path)
    network, transform = torchvision_twin() if library == "torchvision" else timm_twin()
    randomise(network)
    torch.save(network.state_dict(), "theirs.pth")
    stages = [{"channels": 64 << n, "blocks": 1, "stride": 1 + (n > 0)} for n in range(4)]
    flags = ["--set", f"model.stages={json.dumps(stages)}"]
    if library == "torchvision":
        source = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
        flags += ["--preprocess", source]
    else:  # as timm saves a network
        source = "config.json"
        config: Any = timm.get_pretrained_cfg(BICUBIC.removeprefix("timm:"))
        Path(source).write_text(json.dumps({"pretrained_cfg": config.to_dict()}))
    result = call("import", "theirs.pth", "--spec", "resnet18", "-o", "ours.safetensors", *flags)
    assert result.exit_code == 0, result.stderr
    assert f"images are prepared as for {source}:" in result.stdout
    assert "the names of 1,000 are known" in result.stdout

    trained = load_model(Path("ours.safetensors"))
    assert trained.classes == imagenet_classes()
    path = photograph(tmp_path / "photo.jpg")
    with Image.open(path) as image, torch.no_grad():
        theirs = transform(image.convert("RGB"))
        logits = network.eval()(theirs[None])
    header = trained.header
    assert header.mean is not None
    assert header.std is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in (header.mean, header.std))
    ours = Preprocessing(header.preprocess)(decode_image(path, 3)[None])[0]
    levels = (ours - (theirs * std + mean) * 255).round().abs()
    assert levels.max() <= 1
    assert levels.mean() < 0.01
    (found,) = predict(trained, [path], top=5, device=torch.device("cpu")).images
    assert not found.fitted
    assert found.probabilities is not None
    wanted = logits.log_softmax(1)[0]
    difference = (found.probabilities.log() - wanted).abs().max() / wanted.std()
    assert difference < 1e-3


@pytest.mark.parametrize(
    ("processor", "steps"),
    [
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3},
            [
                {"type": "resize", "size": 224, "interpolation": "bicubic", "crop_share": 0.875},
                {"type": "center_crop", "size": 224},
            ],
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
            [{"type": "resize", "size": (384, 384)}],
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": 224}, None),
    ],
)
def test_preset_of_transformers_is_its_processor(
    processor: dict[str, Any], steps: list[dict[str, Any]] | None, tmp_path: Path
) -> None:
    values = {**processor, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    labels = {"architectures": ["ResNetForImageClassification"], "id2label": {"1": "b", "0": "a"}}
    (tmp_path / "config.json").write_text(json.dumps(labels), encoding="utf-8")
    found = presets.preset_beside(tmp_path / "model.safetensors")
    if steps is None:
        assert found is None
        return
    assert found is not None
    assert [step.model_dump(exclude_defaults=True) for step in found.preprocess] == steps
    assert found.normalize.mean == (0.5, 0.4, 0.3)
    assert found.classes == ("a", "b")


def test_configuration_of_transformers_that_is_wrong_is_told(tmp_path: Path) -> None:
    values = {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 3}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"its preprocessing cannot be taken over: no 'short"):
        presets.preset_beside(tmp_path / "model.safetensors")
