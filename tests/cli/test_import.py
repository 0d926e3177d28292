"""``resnet-build import``, and what the other commands make of its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_builder.weights.file import Origin, read_weights
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


def test_what_became_of_the_tensors_is_told(checkpoint: Path) -> None:
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


def test_file_holds_the_weights_and_where_they_are_from(
    checkpoint: Path, finished_run: Path
) -> None:
    imported(checkpoint)
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
    assert result.stderr == ("" if given else notice)


def test_pictures_are_predicted_by_the_numbers_of_their_classes(
    checkpoint: Path, finished_run: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("one.png")
    imported(checkpoint, *statistics(finished_run))
    found, wanted = (
        json.loads(call("predict", path, "one.png", "--top", 4, "--json").stdout)["images"][0]
        for path in (OUT, finished_run)
    )
    _, header = read_weights(finished_run / "best.safetensors")
    assert header.classes is not None
    assert [
        (header.classes[int(answer["name"])], answer["probability"])
        for answer in found["predictions"]
    ] == [(answer["name"], answer["probability"]) for answer in wanted["predictions"]]


def test_prediction_without_statistics_is_2(checkpoint: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save("black.png")
    imported(checkpoint)
    result = call("predict", OUT, "black.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {OUT} does not say how images are normalised: import it again with "
        "--set data.normalize='{mean: [...], std: [...]}'\n"
    )


def test_file_that_exists_is_2_and_stays(checkpoint: Path) -> None:
    OUT.write_text("mine")
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT)
    assert (result.exit_code, OUT.read_text()) == (2, "mine")
    assert f"{OUT} exists" in result.stderr


def test_weights_of_another_network_are_4_and_nothing_is_written(checkpoint: Path) -> None:
    change = ["--set", "model.stages.0.blocks=2"]
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, *change)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "layer1.1.conv1.weight: 4 x 4 x 3 x 3 in the network, nothing in the" in result.stderr
    assert not OUT.exists()


def test_missing_and_unexpected_tensors_are_left_if_allowed(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    saved["net"]["module.aux"] = torch.ones(1)
    torch.save(saved, checkpoint)
    arguments = ["import", checkpoint, "--spec", "tiny.yaml", "-o", OUT, "--json"]
    change = ["--set", "model.stages.0.blocks=2"]
    assert call(*arguments, *change, "--allow-missing").exit_code == 4
    assert call(*arguments, *change, "--allow-unexpected").exit_code == 4
    result = call(*arguments, *change, "--allow-missing", "--allow-unexpected")
    told = json.loads(result.stdout)
    assert told["unexpected"] == ["aux"]
    assert len(told["missing"]) == 10
    assert told["missing"][0] == "layer1.1.conv1.weight"


def test_new_head_is_drawn_by_the_spec_s_seed(checkpoint: Path, finished_run: Path) -> None:
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


def test_averaged_weights_are_pointed_at_and_taken_if_asked_for(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    averaged = {name: one.clone() for name, one in saved["net"].items()}
    averaged["module.linear.bias"] += 1
    torch.save({**saved, "ema_net": averaged}, checkpoint)
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT)
    assert "averaged weights too, which --ema takes\n" in result.stderr
    plain, _ = read_weights(OUT)
    OUT.unlink()
    imported(checkpoint, "--ema")
    assert torch.equal(read_weights(OUT)[0]["fc.bias"], plain["fc.bias"] + 1)


def test_numbers_of_another_type_are_told(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    halved = {
        name: one.half() if one.is_floating_point() else one for name, one in saved["net"].items()
    }
    torch.save(halved, checkpoint)
    result = call("import", checkpoint, "--spec", "tiny.yaml", "-o", OUT)
    assert "weights of type float16 became float32\n" in result.stderr


def test_first_weights_of_the_spec_are_not_needed(checkpoint: Path) -> None:
    imported(checkpoint, "--set", "model.weights=absent.pth")
    assert call("evaluate", OUT).exit_code == 0


def test_missing_checkpoint_is_2(folder: Path) -> None:
    result = call("import", "absent.pth", "--spec", write_tiny(folder), "-o", OUT)
    assert result.exit_code == 2
    assert not OUT.exists()
