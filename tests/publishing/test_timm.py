"""timm loads what is published, under its own names, and computes the same logits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config

from resnet_builder.builder import build, build_on_meta, read_spec
from resnet_builder.inference import load_model
from resnet_builder.parts import resolve
from resnet_builder.publishing.timm_config import (
    timm_architecture,
    timm_config,
    timm_networks,
    timm_tensors,
)
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.dump import dump_spec
from resnet_builder.weights.file import Origin, WeightsHeader, save_weights
from tests.cli.experiments import call
from tests.hub_server import Hub
from tests.networks import randomise

NETWORKS = dict(timm_networks())
SHALLOW = {"resnet18", "resnet50d", "resnext50_32x4d", "seresnet18", "resnetv2_50"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.ci if name in SHALLOW else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_tensors_and_configuration_are_timm_s(name: str) -> None:
    spec = resolve(NETWORKS[name])
    with torch.device("meta"):
        theirs: Any = timm.create_model(name)
    ours = timm_tensors(name, build_on_meta(spec.model).state_dict())
    shapes = [
        {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        for tensors in (ours, theirs.state_dict())
    ]
    assert shapes[0] == shapes[1]
    header = WeightsHeader(spec="", source=Origin(file="", layout=""))
    config = timm_config(name, spec, header, license=None)
    assert config["num_features"] == theirs.num_features
    for key in ("first_conv", "classifier", "input_size", "pool_size", "num_classes"):
        wanted: Any = theirs.pretrained_cfg[key]
        wanted = [3, 224, 224] if key == "input_size" else wanted
        wanted = [7, 7] if key == "pool_size" else wanted
        assert config["pretrained_cfg"][key] == wanted, key


@pytest.mark.parametrize(
    ("name", "changes", "architecture"),
    [
        ("resnet50", [], "resnet50"),
        ("resnet50", ["model.num_classes=7"], "resnet50"),
        ("resnet50", ["model.zero_init_residual=true", "model.drop_path=0.1"], "resnet50"),
        ("resnet50", ["model.activation=silu"], None),
        ("resnet50", ["model.shortcut=average_projection"], None),
        ("resnet50", ["model.norm={type: batch_norm, eps: 0.001}"], None),
        ("resnet50", ["model.stages.3.dilation=2", "model.stages.3.stride=1"], None),
        ("resnet50", ["model.stages.0.blocks=2"], None),
        ("resnet20", [], None),
    ],
)
def test_only_networks_that_timm_has_are_named(
    name: str, changes: list[str], architecture: str | None
) -> None:
    assert timm_architecture(read_spec(name, overrides=changes).model) == architecture


def write_run(name: str, *changes: str) -> Path:
    """Write a run that has weights, none of them neutral, as a training leaves them."""
    data = (
        "data.dataset={type: synthetic, num_classes: 5, image_size: 72, train: 8, test: 4}",
        "data.validation=0",
        "data.augment=[]",
        "data.preprocess=[{type: resize, size: 72}, {type: center_crop, size: 64}]",
        "model.num_classes=5",
        "model.image_size=64",
        "train.batch_size=4",
    )
    spec = read_spec(name, overrides=[*data, *changes])
    network = build(spec, seed=0)
    randomise(network)
    channels, _, _ = spec.model.image_shape
    header = WeightsHeader(
        spec=dump_spec(spec),
        classes=tuple("abcde"),
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        preprocess=spec.data.preprocess or () if spec.data else (),
        step=7,
    )
    run = RunDirectory.create(Path("run"))
    save_weights(run.best, network.state_dict(), header)
    run.publish(header.spec)
    return run.path


SLOW = ("resnet50", "resnet50d", "seresnet50", "ecaresnet50d", "resnetv2_50", "wide_resnet50_2")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet18", marks=pytest.mark.ci),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_timm_computes_the_same_logits(
    name: str, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(name)
    result = call("publish", run, "--to", "net", "--unfinished")
    assert "timm loads it: timm.create_model('local-dir:net', pretrained=True)" in result.stdout
    sources = [f"local-dir:{folder / 'net'}"]
    if name in SLOW:
        hub.publish("me/net", folder / "net")
        sources.append("hf-hub:me/net")
    trained = load_model(run)
    images = torch.randn(3, 3, 64, 64)
    again = load_model(folder / "net")  # its names are timm's, and ours again here
    for source in sources:
        theirs = timm.create_model(source, pretrained=True).eval()
        with torch.no_grad():
            wanted, found = trained.network(images), theirs(images)
            assert torch.equal(again.network(images), wanted)
        # A classifier that is a 1x1 convolution adds up in another order.
        torch.testing.assert_close(
            found,
            wanted,
            rtol=1e-5 if name == "resnetv2_50" else 0,
            atol=1e-5 if "v2" in name else 0,
        )
        data = resolve_model_data_config(theirs)  # type: ignore[no-untyped-call]
        assert data["input_size"] == [3, 64, 64]
        assert data["mean"] == pytest.approx(trained.header.mean)
        assert data["crop_pct"] == 64 / 72
        assert data["interpolation"] == "bilinear"
    config = json.loads((folder / "net" / "config.json").read_text())
    assert config["label_names"] == list(trained.classes)
    card = (folder / "net" / "README.md").read_text()
    assert f"timm loads it too, as its `{name}`" in card
    assert "library_name: timm" in card
    monkeypatch.chdir("net")
    [block] = re.findall(r"```python\n(import timm\n.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    pixels = Image.new("RGB", (90, 70))
    with torch.no_grad():
        assert names["model"](names["transform"](pixels)[None]).shape == (1, 5)
    monkeypatch.chdir(folder)
    imported = call("import", "net", "--spec", "run/spec.yaml", "-o", "imported.safetensors")
    assert imported.exit_code == 0, imported.output
    with torch.no_grad():
        assert torch.equal(load_model(Path("imported.safetensors")).network(images), wanted)


@pytest.mark.slow
def test_timm_takes_grey_images(folder: Path) -> None:
    grey = "data.dataset.channels=1"
    run = write_run("resnet18", grey, "model.in_channels=1")
    assert call("publish", run, "--to", "net", "--unfinished").exit_code == 0
    theirs = timm.create_model(f"local-dir:{folder / 'net'}", pretrained=True).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(images), load_model(run).network(images))
