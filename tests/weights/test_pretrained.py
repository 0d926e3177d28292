"""Networks that start from a file of weights."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.hub
from click.testing import Result
from torch import Tensor

from resnet_builder.builder import build, build_from_spec, check_source, read_spec
from resnet_builder.errors import CheckpointError, DataError, SpecError
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec, load_spec_text
from resnet_builder.spec.schema import WeightsSpec
from resnet_builder.weights import pretrained
from resnet_builder.weights.file import read_weights
from resnet_builder.weights.presets import published_weights
from resnet_builder.weights.pretrained import pretrained_digest
from tests.cli.experiments import call, write_tiny
from tests.data.folders import write_pets, write_pets_spec

TINY_RESNET18 = "model.weights=torchvision:ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is worked in, with the weights of ``tiny.yaml``'s network of seed 5."""
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_weights(tmp_path, 5), tmp_path / "five.pth")
    return tmp_path


def tiny_weights(folder: Path, seed: int, *overrides: str) -> dict[str, Tensor]:
    spec = read_spec(write_tiny(folder), overrides=overrides)
    return {name: tensor.clone() for name, tensor in build(spec, seed=seed).state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("seed", [None, 0])
def test_network_has_the_weights_of_the_file(folder: Path, seed: int | None) -> None:
    path = write_tiny(folder)
    network = build_from_spec(path, seed=seed, overrides=["model.weights=five.pth"])
    assert_equal(network.state_dict(), tiny_weights(folder, 5))


def test_weights_that_a_run_delivered_are_read(folder: Path) -> None:
    path = write_tiny(folder)
    assert call("train", path, "--out", "run", "--set", "train.epochs=1").exit_code == 0
    best = "model.weights=run/best.safetensors"
    network, other = (build_from_spec(path, overrides=[best], seed=seed) for seed in (1, 2))
    assert_equal(network.state_dict(), other.state_dict())


def test_new_head_is_drawn_as_without_a_file(folder: Path) -> None:
    """Whatever the file calls its own."""
    five = {name.replace("fc.", "head.1."): one for name, one in tiny_weights(folder, 5).items()}
    torch.save(five, folder / "five.pth")
    three = ("model.num_classes=3", "data.dataset.num_classes=3")
    drawn = tiny_weights(folder, 8, *three)
    found = tiny_weights(folder, 8, *three, "model.weights={path: five.pth, new_head: true}")
    expected = {
        name: drawn[name] if name.startswith("fc.") else tensor
        for name, tensor in tiny_weights(folder, 5).items()
    }
    assert_equal(found, expected)


def test_averaged_weights_are_read_if_asked_for(folder: Path) -> None:
    model, average = tiny_weights(folder, 1), tiny_weights(folder, 2)
    torch.save({"model": model, "model_ema": average}, folder / "both.pth")
    path = write_tiny(folder)
    for ema, expected in (("false", model), ("true", average)):
        overrides = [f"model.weights={{path: both.pth, ema: {ema}}}"]
        assert_equal(build_from_spec(path, overrides=overrides).state_dict(), expected)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    overrides = ["model.weights=five.pth", "model.stages.0.channels=6"]
    with pytest.raises(CheckpointError, match=r"model\.weights: .*five\.pth.*\n.*layer1\.0\.conv1"):
        build_from_spec(write_tiny(folder), overrides=overrides)


def test_path_counts_from_what_it_is_written_in(folder: Path) -> None:
    inner = folder / "specs"
    inner.mkdir()
    write_tiny(inner)
    above = inner / "above.yaml"
    above.write_text("extends: tiny.yaml\nmodel: {weights: one.pth}\n", encoding="utf-8")
    fragment = folder / "fragment.yaml"
    fragment.write_text("model: {weights: {ema: true}}\n", encoding="utf-8")
    cwd = Path.cwd()

    def path(source: Any, *overrides: str, fragments: list[Path] | None = None) -> str:
        weights = load_spec(source, overrides=overrides, fragments=fragments or []).model.weights
        assert weights is not None
        return weights.path

    assert path(above) == str(inner / "one.pth")
    assert path(Path("specs/above.yaml")) == str(inner / "one.pth")
    assert path(above, "model.weights.new_head=true") == str(inner / "one.pth")
    assert path(above, fragments=[fragment]) == str(inner / "one.pth")
    assert path(above, "model.weights=one.pth") == str(cwd / "one.pth")
    assert path(above, "model.weights.path=one.pth") == str(cwd / "one.pth")
    assert path({"extends": str(above), "model": {"weights": "two.pth"}}) == str(cwd / "two.pth")
    assert path(above, "model.weights=/one.pth") == os.path.realpath("/one.pth")
    assert load_spec(above, overrides=["model.weights=null"]).model.weights is None


def test_path_alone_is_short_for_a_mapping(folder: Path) -> None:
    short, long = (
        load_spec(write_tiny(folder), overrides=[f"model.weights={text}"])
        for text in ("five.pth", "{path: five.pth}")
    )
    assert short == long
    assert short.model.weights == WeightsSpec(path=str(folder / "five.pth"))
    assert load_spec_text(dump_spec(short)) == short


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", "error[wrong-type]: model.weights: must be a path, or a mapping with `path`, not 5"),
        ("[a.pth]", "must be a path, or a mapping with `path`, not a list"),
        ('""', "model.weights.path: must be a path, without control characters, not ''"),
        (r'"a\0.pth"', "model.weights.path: must be a path, without control characters"),
        ("{new_head: true}", "error[missing-key]: model.weights.path: is missing"),
        ("{path: a.pth, new_head: 1}", "model.weights.new_head: must be true or false, not 1"),
        (
            '{path: "torchvision:ResNet50_Weights.IMAGENET1K_V2", ema: true}',
            "error[no-effect]: model.weights.ema: has no effect on torchvision's weights",
        ),
    ],
)
def test_wrong_value_is_refused(folder: Path, value: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_spec(write_tiny(folder), overrides=[f"model.weights={value}"])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("fve.pth", "fve.pth: there is no such file"),
        (
            "ResNet50_Weights.IMAGENET1K_V1",
            "did you mean: torchvision:ResNet50_Weights.IMAGENET1K_V1",
        ),
        ("{new_head: true, path: .}", "directory; a run's weights are its best.safetensors"),
        (
            "torchvision:ResNet50_Weights.IMAGENET1K_V3",
            "torchvision has no weights of a ResNet named 'ResNet50_Weights.IMAG",
        ),
    ],
)
def test_weights_that_are_not_there_are_named_with_their_place(
    value: str, reason: str, folder: Path
) -> None:
    with pytest.raises(SpecError) as raised:
        build_from_spec(write_tiny(folder), overrides=[f"model.weights={value}"])
    [message] = map(str, raised.value.errors)
    assert message.startswith("<command line>:--set: error[")
    assert reason in message
    assert f"\n      | model.weights={value}\n" in message


def test_file_is_looked_for_only_where_it_is_needed(folder: Path) -> None:
    path = write_tiny(folder)
    overrides = ["model.weights=nowhere.pth"]
    assert check_source(path, overrides=overrides).problems == ()
    assert len(check_source(path, overrides=overrides, with_weights=True).problems) == 1
    build(read_spec(path, overrides=overrides), pretrained=False)
    assert call("summary", path, "--set", *overrides).exit_code == 0
    result = call("validate", path, "--set", *overrides)
    assert result.exit_code == 2
    assert "there is no such file" in result.stderr


def test_digest_is_of_the_bytes(folder: Path) -> None:
    (folder / "x").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert pretrained_digest(WeightsSpec(path=str(folder / "x"))) == expected
    with pytest.raises(CheckpointError, match=r"model\.weights: nowhere: there is no such file"):
        pretrained_digest(WeightsSpec(path="nowhere"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("command", ["train", "validate", "import", "evaluate", "predict"])
def test_pipe_in_the_place_of_weights_is_an_error_at_once(command: str, folder: Path) -> None:
    os.mkfifo(folder / "pipe.pth")
    spec = write_tiny(folder)
    arguments: dict[str, list[object]] = {
        "train": [spec, "--set", "model.weights=pipe.pth"],
        "validate": [spec, "--set", "model.weights=pipe.pth"],
        "import": ["pipe.pth", "--spec", spec, "-o", "new.safetensors"],
        "evaluate": ["pipe.pth"],
        "predict": ["pipe.pth", "five.pth"],
    }
    result = call(command, *arguments[command])
    assert result.exit_code == 7, result.stderr
    assert "pipe.pth: it is a FIFO, not a regular file" in result.stderr


def test_published_names_are_those_of_torchvisions_resnets() -> None:
    published = published_weights()
    assert published["ResNet50_Weights.IMAGENET1K_V2"].endswith("/resnet50-11ad3fa6.pth")
    assert {name.partition("_")[0] for name in published} >= {"ResNet18", "ResNeXt50", "Wide"}
    assert not any(name.endswith(".DEFAULT") for name in published)


def test_published_weights_are_kept_where_torch_keeps_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, bool]] = []

    def download(url: str, path: str, digest: str | None, *, progress: bool) -> None:
        asked.append((url, digest, progress))
        Path(path).write_bytes((folder / "five.pth").read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        network = build_from_spec(write_tiny(folder), overrides=[TINY_RESNET18])
        assert_equal(network.state_dict(), tiny_weights(folder, 5))
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert asked == [(url, "f37072fd", False)]
    assert (folder / "hub" / "checkpoints" / "resnet18-f37072fd.pth").is_file()


@pytest.mark.parametrize("is_right", [True, False])
def test_download_has_the_digest_of_its_name(
    is_right: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own download, from a file that is named as torchvision names its files."""
    digest = hashlib.sha256((folder / "five.pth").read_bytes()).hexdigest()
    url = (folder / f"tiny-{digest[:8] if is_right else '0' * 8}.pth").as_uri()
    (folder / "five.pth").rename(folder / url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(pretrained, "published_weights", lambda: {"Tiny_Weights.V1": url})
    weights = WeightsSpec(path="torchvision:Tiny_Weights.V1")
    if is_right:
        assert pretrained_digest(weights) == digest
    else:
        with pytest.raises(DataError, match="invalid hash value"):
            pretrained_digest(weights)
        assert list((folder / "hub" / "checkpoints").iterdir()) == []


def test_download_that_fails_says_where_to_put_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("nobody there")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DataError, match=r"nobody there; you can put the file into .*checkpoints"):
        build_from_spec(write_tiny(folder), overrides=[TINY_RESNET18])


# Data of the training that the weights are from.


def train_pets(folder: Path, *values: str) -> Result:
    flags = [word for value in values for word in ("--set", value)]
    return call("train", write_pets_spec(folder), "--data-dir", folder, "--out", "new", *flags)


@pytest.fixture
def pets_weights(folder: Path) -> str:
    """Train on folders of ants and bees; return what starts another training from the weights."""
    write_pets(folder)
    assert train_pets(folder).exit_code == 0
    (folder / "new").rename(folder / "old")
    return "model.weights=old/best.safetensors"


def test_other_classes_need_a_new_head(folder: Path, pets_weights: str) -> None:
    for split in ("train", "test"):
        (folder / "pets" / split / "ant").rename(folder / "pets" / split / "wasp")
    result = train_pets(folder, pets_weights)
    assert result.exit_code == 3
    assert result.stderr.endswith(
        "old/best.safetensors was trained on other classes than the data has:\n"
        "  in the weights: ant, bee\n"
        "  in the data: bee, wasp\n"
        "to train a new head for the classes of the data, set model.weights.new_head=true\n"
    )
    assert not (folder / "new").exists()
    result = train_pets(folder, pets_weights, "model.weights.new_head=true")
    assert result.exit_code == 0, result.stderr
    assert read_weights(folder / "new" / "best.safetensors")[1].classes == ("bee", "wasp")


def test_other_networks_sizes_preprocessing_and_statistics_are_told(
    folder: Path, pets_weights: str
) -> None:
    assert " was trained " not in train_pets(folder, pets_weights).stderr
    (folder / "new").rename(folder / "same")
    result = train_pets(
        folder,
        pets_weights,
        "model.image_size=8",
        "model.activation=gelu",
        "data.preprocess=[{type: center_crop, size: 8}]",
        "data.normalize={mean: [0.5, 0.5, 0.6], std: [0.3, 0.3, 0.3]}",
    )
    assert result.exit_code == 0, result.stderr
    notices = [line for line in result.stderr.splitlines() if " was trained " in line]
    name = f"warning: {folder / 'old' / 'best.safetensors'}"
    assert notices[:3] == [
        f"{name} was trained with model.image_size=9; here it is 8",
        f"{name} was trained with model.activation=relu; here it is gelu",
        f"{name} was trained with data.preprocess=[{{type: resize, size: 9}}, {{type: center_crop, "
        "size: 9}]; here it is [{type: center_crop, size: 8}]",
    ]
    assert notices[3].startswith(
        f"{name} was trained on images of another brightness or contrast; to normalise as then, "
        "set data.normalize={mean: [0.4835, 0.4953"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_of_other_programs_weights_is_told(channels: int, folder: Path) -> None:
    """As far as timm's configuration beside them has it; for grey images it is adapted."""
    write_pets(folder)
    spec = write_pets_spec(folder)
    grey = [] if channels == 3 else ["data.dataset.channels=1"]
    overrides = ["model.weights={path: pets.pth, adapt_channels: true}", *grey]
    torch.save(build(read_spec(spec), seed=0).state_dict(), folder / "pets.pth")
    config = {"pretrained_cfg": {"input_size": [3, 9, 9], "mean": [0.1, 0.2, 0.3]}}
    (folder / "config.json").write_text(json.dumps(config))
    result = train_pets(folder, *overrides)
    assert result.exit_code == 0, result.stderr
    mean = "[0.1, 0.2, 0.3], " if channels == 3 else "[0.1815], "
    assert (
        f"warning: {folder / 'pets.pth'} was trained on images of another brightness or contrast; "
        f"to normalise as then, set data.normalize={{mean: {mean}std: [0.2"
    ) in result.stderr
