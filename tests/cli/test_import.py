"""``resnet-build import``, and its file in the other commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_builder.errors import DataError
from resnet_builder.weights.file import Origin, WeightsHeader, read_weights, save_weights
from resnet_builder.weights.presets import imagenet_classes
from tests.cli.experiments import call, write_checkpoint, write_tiny

OUT = Path("ours.safetensors")


@pytest.fixture
def checkpoint(folder: Path, finished_run: Path) -> Path:
    """Write a run's weights as another program's, and a spec without its statistics."""
    write_tiny(folder)
    return write_checkpoint(folder / "theirs.pth", finished_run)


def imported(checkpoint: Path, *more: object) -> None:
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, *more)
    assert result.exit_code == 0, result.stderr


def statistics(run: Path) -> list[str]:
    """Return the flag that gives a run's statistics."""
    _, header = read_weights(run / "best.safetensors")
    assert header.mean is not None
    assert header.std is not None
    return ["--set", f"data.normalize={{mean: {list(header.mean)}, std: {list(header.std)}}}"]


def test_file_holds_the_weights_and_the_report_names_every_tensor(
    checkpoint: Path, finished_run: Path
) -> None:
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{checkpoint}: akamaster's names, in net module.",
        "",
        "         tensors",
        "matched  18       conv1.weight, ...",
        "renamed  2        linear.weight is fc.weight, ...",
        "folded   1        conv1.bias in bn1.running_mean",
        "",
        f"wrote {OUT}",
    ]
    assert result.stderr.startswith("the spec does not say how images are normalised")
    weights, header = read_weights(OUT)
    wanted, _ = read_weights(finished_run / "best.safetensors")
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert header.source == Origin(file="theirs.pth", layout="akamaster")
    assert (header.classes, header.mean, header.std, header.step) == (None, None, None, None)


@pytest.mark.parametrize("given", [True, False])
def test_file_is_evaluated_as_the_run_it_is_from(
    given: bool, checkpoint: Path, finished_run: Path
) -> None:
    imported(checkpoint, *(statistics(finished_run) if given else ()))
    result, wanted = (call("evaluate", path, "--json") for path in (OUT, finished_run))
    assert result.exit_code == 0, result.stderr
    assert {**json.loads(result.stdout), "weights": None} == {
        **json.loads(wanted.stdout),
        "weights": None,
    }
    notice = f"{OUT} does not say how images are normalised; here, by their own statistics\n"
    names = (
        f"{OUT} does not name its classes; they are taken to be, in order, class_0, class_1, "
        "class_2, class_3\n"
    )
    assert result.stderr == names + ("" if given else notice)


def test_images_are_predicted_by_numbers_of_classes_if_there_are_statistics(
    checkpoint: Path, finished_run: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("one.png")
    imported(checkpoint)
    result = call("predict", OUT, "one.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {OUT} does not say how images are normalised: import it again with "
        "--set data.normalize='{mean: [...], std: [...]}'\n"
    )
    OUT.unlink()
    imported(checkpoint, *statistics(finished_run))
    found, wanted = (
        json.loads(call("predict", path, "one.png", "--top", 4, "--json").stdout)["images"][0]
        for path in (OUT, finished_run)
    )
    _, header = read_weights(finished_run / "best.safetensors")
    assert header.classes is not None
    assert [
        (header.classes[int(one["name"])], one["probability"]) for one in found["predictions"]
    ] == [(one["name"], one["probability"]) for one in wanted["predictions"]]


def test_other_networks_weights_are_4_unless_that_is_allowed(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    saved["net"]["module.aux"] = torch.ones(1)
    torch.save(saved, checkpoint)
    deeper = ["--set", "model.stages.0.blocks=2"]
    arguments = ["import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, "--json", *deeper]
    for allowed in ([], ["--allow-missing"], ["--allow-unexpected"]):
        result = call(*arguments, *allowed)
        assert (result.exit_code, result.stdout) == (4, "")
        assert not OUT.exists()
    result = call(*arguments, "--allow-missing", "--allow-unexpected")
    report = json.loads(result.stdout)
    assert report["unexpected"] == ["aux"]
    assert len(report["missing"]) == 10
    assert report["missing"][0] == "layer1.1.conv1.weight"


def test_file_in_which_nothing_matches_is_4_whatever_is_allowed(checkpoint: Path) -> None:
    torch.save({"features.0.weight": torch.ones(8, 3, 3, 3)}, checkpoint)
    arguments = ["import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, "--new-head"]
    result = call(*arguments, "--allow-missing", "--allow-unexpected")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "names, the nearest, 0 of its 1 layers have a place in the network\n" in result.stderr
    assert not OUT.exists()


def test_network_that_computes_nothing_finite_is_refused(
    checkpoint: Path, finished_run: Path
) -> None:
    saved = torch.load(checkpoint)
    saved["net"]["module.bn1.running_var"] -= 1e6
    torch.save(saved, checkpoint)
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT)
    assert (result.exit_code, OUT.exists()) == (5, False)
    assert "logits are not finite; are its variances negative?" in result.stderr
    weights, header = read_weights(finished_run / "best.safetensors")
    weights["bn1.running_var"] -= 1e6
    save_weights(OUT, weights, header)
    Image.new("RGB", (8, 8)).save("one.png")
    for arguments in (["evaluate", OUT], ["predict", OUT, "one.png"]):
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (5, "")
        assert "its logits are not finite" in result.stderr


def test_new_head_is_initialised_by_the_specs_seed(checkpoint: Path, finished_run: Path) -> None:
    contents = []
    for seed in (0, 0, 1):
        OUT.unlink(missing_ok=True)
        imported(checkpoint, "--new-head", "--set", f"train.seed={seed}")
        contents.append(read_weights(OUT)[0])
    theirs, _ = read_weights(finished_run / "best.safetensors")
    first, again, other = contents
    for name, tensor in theirs.items():
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], tensor) == (not name.startswith("fc."))
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_averaged_weights_and_conversions_are_noted(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    halved = {
        name: one.half() if one.is_floating_point() else one for name, one in saved["net"].items()
    }
    averaged = {name: one.clone() for name, one in halved.items()}
    averaged["module.linear.bias"] += 1
    torch.save({"net": halved, "ema_net": averaged}, checkpoint)
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT)
    assert "averaged weights too, which --ema takes\n" in result.stderr
    assert "weights of type float16 became float32\n" in result.stderr
    plain, _ = read_weights(OUT)
    OUT.unlink()
    imported(checkpoint, "--ema")
    difference = read_weights(OUT)[0]["fc.bias"] - plain["fc.bias"]
    torch.testing.assert_close(difference, torch.ones(4), atol=1e-3, rtol=0)


def test_pretrained_weights_of_the_spec_are_not_needed(checkpoint: Path) -> None:
    imported(checkpoint, "--set", "model.weights=absent.pth")
    assert call("evaluate", OUT).exit_code == 0


def test_own_file_keeps_its_classes_and_statistics(folder: Path, finished_run: Path) -> None:
    write_tiny(folder)
    own = finished_run / "best.safetensors"
    _, before = read_weights(own)
    imported(own)
    _, kept = read_weights(OUT)
    assert (kept.classes, kept.mean, kept.std) == (before.classes, before.mean, before.std)
    OUT.unlink()
    result = call(
        *("import", own, "--spec", "tiny.yaml", "-o", OUT, "--new-head"),
        *("--set", "data.normalize={mean: [0, 0, 0], std: [1, 1, 1]}"),
        *("--set", "model.activation=gelu"),
    )
    assert f"{own} was trained with model.activation=relu; here it is gelu\n" in result.stderr
    assert "the weights were made with data.normalize={mean: [" in result.stderr
    assert "; the spec's is taken: {mean: [0.0, 0.0, 0.0], std: [1.0" in result.stderr
    _, changed = read_weights(OUT)
    assert (changed.classes, changed.mean, changed.std) == (None, (0, 0, 0), (1, 1, 1))


def test_file_of_unknown_preprocessing_says_so_and_how_it_is_given(
    checkpoint: Path, finished_run: Path
) -> None:
    known = statistics(finished_run)
    arguments = ("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, *known)
    result = call(*arguments)
    assert "the file does not say which preprocessing its weights were made for" in result.stderr
    assert "--preprocess, with torchvision:ResNet50_Weights.IMAGENET1K_V2, timm:" in result.stderr
    OUT.unlink()
    assert "--preprocess" not in call(*arguments, "--preprocess", "spec").stderr


def test_preset_replaces_what_the_spec_says_and_the_image_size(checkpoint: Path) -> None:
    config = {"input_size": [3, 12, 10], "crop_mode": "squash", "crop_pct": 1.0}
    Path("config.json").write_text(json.dumps({"pretrained_cfg": config}))
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, "--json")
    assert result.exit_code == 0, result.stderr
    beside = Path("config.json").absolute()
    assert result.stderr == (
        f"{beside} has model.image_size=[12, 10]; the spec's is not taken: 8\n"
    )
    report = json.loads(result.stdout)
    assert (report["preset"], report["image"]) == (str(beside), [3, 12, 10])
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("one.png")
    (found,) = json.loads(call("predict", OUT, "one.png", "--json").stdout)["images"]
    assert not found["fitted"]


@pytest.mark.parametrize("own", [True, False])
def test_weights_for_colours_are_adapted_to_grey_images(
    own: bool, checkpoint: Path, finished_run: Path
) -> None:
    """A network for grey images gives them the logits that it gave three equal channels."""
    file = finished_run / "best.safetensors" if own else checkpoint
    grey = ("--set", "model.in_channels=1", "--set", "data.dataset.channels=1", "--json")
    arguments = ("import", file, "--spec", "tiny.yaml", "-o", OUT, *grey)
    if not own:
        Path("config.json").write_text(
            json.dumps({"pretrained_cfg": {"input_size": [3, 8, 8], "crop_pct": 1.0}})
        )
    result = call(*arguments)
    assert result.exit_code == 4
    assert "or adapt the first convolution: --adapt-channels" in result.stderr
    result = call(*arguments, "--adapt-channels")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["adapted"] == ["conv1.weight"]
    weights, header = read_weights(OUT)
    theirs, before = read_weights(finished_run / "best.safetensors")
    assert torch.equal(weights["conv1.weight"], theirs["conv1.weight"].sum(1, keepdim=True))
    colours = before.mean if own else (0.485, 0.456, 0.406)
    assert colours is not None
    shares = torch.tensor([0.299, 0.587, 0.114])
    assert header.mean == pytest.approx((float((shares * torch.tensor(colours)).sum()),))
    Image.new("RGB", (8, 8), (9, 99, 199)).save("one.png")
    assert call("predict", OUT, "one.png").exit_code == 0


def test_folders_of_imagenet_are_the_1000_classes_in_order() -> None:
    header = WeightsHeader(
        spec="", classes=imagenet_classes(), source=Origin(file="x", layout="torchvision")
    )
    folders = [f"n{number:08}" for number in range(1000)]
    assert header.names_of(folders) == imagenet_classes()
    header.check_classes(OUT, folders, matched_by_name=True)
    for others in (folders[:999], [*folders[1:], folders[0]], ["cat", *folders[1:]]):
        assert header.names_of(others) == tuple(others)
        with pytest.raises(DataError, match="was trained on other classes"):
            header.check_classes(OUT, others, matched_by_name=True)
