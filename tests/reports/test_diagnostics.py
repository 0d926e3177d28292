"""Diagnostics of whole runs: numbers traced to their files, and images that the run saw."""

import base64
import io
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_builder.data.interfaces import LoadContext, load_dataset
from resnet_builder.data.loader import normalise
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.errors import MissingDataError
from resnet_builder.inference import load_model, load_own_splits
from resnet_builder.reports.batch import first_batch
from resnet_builder.reports.diagnostics import Fragment, read_diagnostics
from resnet_builder.reports.thumbnails import as_rgb, heat_maps, thumbnail, to_pixels
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import ResultRecord
from resnet_builder.spec.section import Part
from resnet_builder.training.step import TrainStep
from tests.cli.experiments import call, write_tiny

NAMES = ["classes", "confusion", "calibration", "coverage", "mistakes", "uncertain", "batch"]

AUGMENTED = "data.augment=[random_crop, {type: mixup, alpha: 1.0}, cutmix]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, Any]:
    """Train; return the run, and images and targets of its first step."""
    folder, seen = tmp_path_factory.mktemp("trained"), []
    step = TrainStep.__call__

    def watched(self: TrainStep, batch: Any, **how: Any) -> Any:
        seen.append(batch)
        return step(self, batch, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", watched)
        how = ("--set", AUGMENTED, "--set", "train.epochs=1")
        done = call("train", write_tiny(folder), "--out", folder / "run", *how)
    assert done.exit_code == 0, done.stderr
    return folder / "run", seen[0].images, seen[0].targets


def by_name(found: list[Fragment]) -> dict[str, Fragment]:
    assert [one.name for one in found] == NAMES
    for one in found:
        assert bool(one.html) != bool(one.missing), one.name
        ElementTree.fromstring(f"<div>{one.html}</div>")
    return {one.name: one for one in found}


def test_numbers_are_those_of_the_runs_files(trained: Any) -> None:
    run = RunDirectory(trained[0])
    found, result = by_name(read_diagnostics(run.path)), ResultRecord.read(run.result)
    with np.load(run.predictions, allow_pickle=False) as file:
        stored = {name: file[name] for name in file}

    assert result.test_by_class is not None
    measured = {one.name: one for one in found["classes"].numbers.classes}
    for name, scores in result.test_by_class.items():
        assert (measured[name].images, measured[name].accuracy) == (scores.images, scores.recall)
    counts = np.array(found["confusion"].numbers.counts)
    assert counts.sum() == len(stored["labels"])
    assert np.trace(counts) / counts.sum() == result.test_top1
    assert found["calibration"].numbers.accuracy == result.test_top1
    assert found["coverage"].numbers.points[-1].accuracy == pytest.approx(result.test_top1)
    for name in ("mistakes", "uncertain"):
        for image in found[name].numbers.images:
            row = image.index
            assert image.probability == stored["top_probabilities"][row, 0]
            assert image.label_probability == stored["label_probabilities"][row]
            assert image.predicted == stored["classes"][stored["top_classes"][row, 0]]
            assert image.label == stored["classes"][stored["labels"][row]]
    assert all(asdict(one.numbers) for one in found.values())


def pictures(fragment: Fragment) -> list[list[Any]]:
    """Images of each figure."""
    root = ElementTree.fromstring(f"<div>{fragment.html}</div>")
    found = []
    for figure in root.iter("figure"):
        data = [one.attrib["href"].partition("base64,")[2] for one in figure.iter("image")]
        found.append([Image.open(io.BytesIO(base64.b64decode(one))) for one in data])
    return found


def test_galleries_show_the_images_that_they_name(trained: Any) -> None:
    found = by_name(read_diagnostics(trained[0]))
    test = load_own_splits(load_model(trained[0])).test
    assert test is not None
    for name in ("mistakes", "uncertain"):
        images = found[name].numbers.images
        [pixels] = test.read([torch.tensor([one.index for one in images])])
        shown = pictures(found[name])
        assert len(shown) == len(images) == 12
        for figure, expected in zip(shown, as_rgb(pixels), strict=True):
            plain, again, overlay = figure
            assert np.array_equal(np.asarray(plain), expected)
            assert np.array_equal(np.asarray(again), expected)
            assert overlay.size == plain.size


def test_batch_is_what_the_first_step_was_given(trained: Any) -> None:
    path, images, targets = trained
    model = load_model(path)
    data = load_own_splits(model)
    found = first_batch(model.spec, data, 12)
    expected = as_rgb(to_pixels(images[:12], data.mean, data.std))
    assert np.array_equal(found.after, expected)
    for target, row in zip(found.targets, targets, strict=False):
        assert target == {
            name: share for name, share in zip(data.classes, row.tolist(), strict=True) if share
        }
        assert [*target.values()] == sorted(target.values(), reverse=True)
    [plain] = data.train.read([torch.tensor(found.samples)])
    assert np.array_equal(found.before, as_rgb(plain))

    fragment = by_name(read_diagnostics(path))["batch"]
    assert [one.index for one in fragment.numbers.images] == [*found.samples]
    for figure, *both in zip(pictures(fragment), found.before, found.after, strict=True):
        for picture, pixels in zip(figure, both, strict=True):
            assert np.array_equal(np.asarray(picture), pixels)


def test_without_images_only_the_runs_files_are_read(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_builder.reports.diagnostics.load_model", None)
    found = read_diagnostics(trained[0], images=False)
    assert [one.name for one in found] == NAMES[:4]
    assert all(one.html for one in found)


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> RunDirectory:
    shutil.copytree(trained[0], tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def missing(run: RunDirectory) -> dict[str, str]:
    found = by_name(read_diagnostics(run.path))
    return {name: one.missing for name, one in found.items() if one.missing is not None}


def test_run_that_is_not_finished_has_its_first_batch(run: RunDirectory) -> None:
    for path in (run.result, run.predictions, run.best):
        path.unlink()
    told = missing(run)
    assert [*told] == NAMES[:6]
    assert set(told.values()) == {"The run is not finished: predictions.npz is written at its end."}


def test_run_without_predictions_says_how_to_make_them(run: RunDirectory) -> None:
    run.predictions.unlink()
    told = missing(run)
    assert [*told] == NAMES[1:6]
    assert set(told.values()) == {
        "The run has no predictions.npz: resume it, and they are made again."
    }
    assert call("train", "--resume", run.path).exit_code == 0
    assert missing(run) == {}


def test_damaged_files_are_told(run: RunDirectory) -> None:
    run.predictions.write_bytes(b"PK")
    run.best.write_bytes(b"")
    told = missing(run)
    assert told["confusion"].startswith(f"{run.predictions} is damaged: ")
    assert told["batch"].startswith(f"{run.best}: it is not a valid")
    assert "classes" not in told
    run.result.write_text("{}")
    assert [*missing(run)] == NAMES
    assert [*missing(RunDirectory(run.path / "nothing"))] == NAMES


@pytest.mark.ci
def test_predictions_of_another_step_are_told(run: RunDirectory) -> None:
    done = call(
        *("train", "--resume", run.path, "--set", "train.epochs=2", "--allow-spec-change"),
        *("--set", AUGMENTED),
    )
    assert done.exit_code == 0, done.stderr
    before = run.predictions.read_bytes()
    assert missing(run) == {}
    with np.load(io.BytesIO(before)) as file:
        arrays = {**file, "step": np.array(1)}
    np.savez(run.predictions, **arrays)
    told = missing(run)
    assert [*told] == ["confusion", "calibration", "coverage", "mistakes", "uncertain"]
    assert "predictions.npz is of another training than result.json" in told["mistakes"]


def image_folder(folder: Path, side: int, mode: str) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 8)):
        for shade, name in ((60, "dark"), (190, "light")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                shape = (side, side, *([] if mode == "L" else [len(mode)]))
                pixels = (generator.integers(-30, 30, shape) + shade).astype(np.uint8)
                Image.fromarray(pixels, mode).save(folder / split / name / f"{number}.png")
    return folder


OWN = """\
name: own
model:
  num_classes: 2
  in_channels: {channels}
  image_size: {side}
  stem: {{type: conv3x3, channels: 4}}
  block: {block}
  shortcut: projection
  stages: [{{channels: 4, blocks: 1}}, {{channels: 8, blocks: 1, stride: 2}}]
data:
  dataset: {{type: image_folder, path: images, channels: {channels}}}
  validation: 0
train: {{steps: 2, batch_size: 8, optimizer: {{type: sgd, lr: 0.01}}}}
run: {{device: cpu, precision: fp32, report: false}}
"""


@pytest.mark.parametrize(
    ("side", "mode", "block"),
    [
        (9, "L", "preact_basic"),
        pytest.param(70, "RGB", "bottleneck", marks=pytest.mark.ci),
        pytest.param(8, "RGBA", "basic", marks=pytest.mark.ci),
    ],
)
def test_images_in_files_are_named_and_may_be_gone(
    side: int, mode: str, block: str, tmp_path: Path
) -> None:
    images = image_folder(tmp_path / "images", side, mode)
    spec = tmp_path / "own.yaml"
    spec.write_text(OWN.format(channels=len(mode), side=side, block=block))
    done = call("train", spec, "--out", tmp_path / "run", "--data-dir", tmp_path / "cache")
    assert done.exit_code == 0, done.stderr

    def read() -> dict[str, Fragment]:
        return by_name(read_diagnostics(tmp_path / "run", data_dir=tmp_path / "cache"))

    found = read()
    assert not [one.missing for one in found.values() if one.missing]
    for image in found["uncertain"].numbers.images:
        assert (images / "test" / image.file).is_file()
        assert image.file.startswith(f"{image.label}/")
    for image in found["batch"].numbers.images:
        assert (images / "train" / image.file).is_file()
    [(plain, *_), *_] = pictures(found["uncertain"])
    assert plain.format == ("JPEG" if side > 64 else "PNG")

    shutil.rmtree(images / "train")
    found = read()
    assert [name for name, one in found.items() if one.missing] == ["batch"]
    (images / "test" / "dark" / "0.png").rename(images / "test" / "light" / "new.png")
    told = "The images have changed since they were predicted."
    assert [read()[name].missing for name in ("mistakes", "uncertain")] == [told, told]
    shutil.rmtree(images)
    found = read()
    assert [name for name, one in found.items() if one.missing] == NAMES[4:]
    assert str(images) in (found["uncertain"].missing or "")
    assert found["uncertain"].numbers is not None


def test_missing_data_set_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "download", None)
    context = LoadContext(tmp_path / "data", Preprocessing(), verify=False)
    with pytest.raises(MissingDataError, match=r"there is no CIFAR10 in .*data"):
        load_dataset(Part(type="cifar10"), context)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_of_any_channels_can_be_seen(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 5, 9)).byte()
    found = as_rgb(images)
    assert found.shape == (2, 5, 9, 3)
    if channels in {3, 4}:
        assert np.array_equal(found, images[:, :3].permute(0, 2, 3, 1).numpy())
    if channels == 1:
        assert np.array_equal(found[..., 1], images[:, 0].numpy())


def test_normalised_images_come_back_as_they_were() -> None:
    images = torch.arange(256).view(1, 1, 16, 16).byte().expand(2, 3, -1, -1)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    inputs = normalise(images, torch.tensor(mean), torch.tensor(std))
    assert torch.equal(to_pixels(inputs, mean, std), images)


def test_large_images_are_reduced() -> None:
    found = thumbnail(np.zeros((300, 600, 3), dtype=np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(found.uri.partition(",")[2])))
    assert (image.format, image.size) == ("JPEG", (128, 64))
    assert (found.width, found.height, found.crisp) == (600, 300, False)
    [heat] = heat_maps(torch.rand(1, 7, 14), 300, 600)
    image = Image.open(io.BytesIO(base64.b64decode(heat.uri.partition(",")[2])))
    assert (image.size, image.mode) == ((32, 16), "P")


def test_predictions_of_another_training_are_not_shown(
    trained: tuple[Path, torch.Tensor, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    path = RunDirectory(run).result
    result = ResultRecord.read(path)
    result.model_copy(update={"selected_step": result.selected_step + 1}).write(path)
    found = read_diagnostics(run, images=False)
    assert all("another training" in (one.missing or "") for one in found[1:])
