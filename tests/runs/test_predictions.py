"""Predictions of a run: what the file holds, and that it is made again byte for byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import CheckpointError, Stopped, StorageError, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.predictions import NOT_FINITE, RunPredictions, below_common_folder
from resnet_builder.training import trainer
from resnet_builder.training.evaluation import evaluate_images
from resnet_builder.training.metrics import compute_metrics, score
from resnet_builder.training.result import save_predictions
from tests.training.recipes import small_net
from tests.training.runs import after, experiment, small_splits, source, train


def predictions(run: Path) -> RunPredictions:
    return RunPredictions.read(RunDirectory(run).predictions)


def test_predictions_are_the_softmax_of_the_selected_weights(tmp_path: Path) -> None:
    splits, model = small_splits(), small_net()
    result = train(tmp_path / "run", experiment(), splits=splits, model=model).record
    found = predictions(tmp_path / "run")

    assert splits.test is not None
    [pixels] = splits.test.read([torch.arange(13)])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (splits.mean, splits.std))
    with torch.inference_mode():
        expected = model.eval()((pixels / 255 - mean) / std).softmax(1)
    assert (found.split, found.step, found.num_images) == ("test", result.selected_step, 13)
    assert found.classes == splits.classes
    assert found.labels.tolist() == splits.test.labels.tolist()
    assert np.allclose(found.top_probabilities, expected.sort(descending=True)[0], atol=1e-5)
    assert found.top_classes.tolist() == expected.argsort(descending=True).tolist()
    of_label = expected[torch.arange(13), splits.test.labels]
    assert np.allclose(found.label_probabilities, of_label, atol=1e-5)
    assert found.correct.mean() == result.test_top1
    assert found.files == ()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.ci)])
def test_without_test_images_the_validation_images_are_predicted(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed behind its best weights makes the same bytes."""
    spec, splits = experiment(run={"precision": precision}), small_splits(test=False)
    evaluated = count_evaluations(monkeypatch)
    record = train(tmp_path / "whole", spec, splits=splits).record
    found = predictions(tmp_path / "whole")
    assert (found.split, found.num_images) == ("val", 11)
    assert found.correct.mean() == record.val_top1
    assert len(evaluated) == (3 if precision == "fp32" else 4)

    run = RunDirectory(tmp_path / "whole")
    before = run.predictions.read_bytes()
    for path in (run.predictions, run.result):
        path.unlink()
    train(run.path, spec, splits=splits)
    assert run.predictions.read_bytes() == before


def count_evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(args[1])
        return evaluate_images(*args, **options)

    monkeypatch.setattr(trainer, "evaluate_images", counting)
    return calls


def test_run_stopped_in_its_final_evaluation_makes_the_same_predictions(tmp_path: Path) -> None:
    train(tmp_path / "whole", experiment())
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", experiment(), should_stop=after(12 + 3 * 2 + 1))
    assert not RunDirectory(tmp_path / "stopped").predictions.exists()
    train(tmp_path / "stopped", experiment())
    one, other = (RunDirectory(tmp_path / name).predictions for name in ("whole", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_images_that_are_files_are_named(tmp_path: Path) -> None:
    images = source(3, seed=3)
    names = [str(tmp_path / "test" / name) for name in ("cat/1.png", "cat/\udce9.png", "dog/1.png")]
    splits = replace(small_splits(), test=InMemoryImages(images.images, images.labels, names))
    train(tmp_path / "run", experiment(), splits=splits)
    assert predictions(tmp_path / "run").files == ("cat/1.png", "cat/\udce9.png", "dog/1.png")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("/a/b/1.png", "/a/b/2.png"), ("1.png", "2.png")),
        (("/a/1.png", "/ab/1.png"), ("a/1.png", "ab/1.png")),
        (("x/1.png", "/a/1.png"), ("x/1.png", "/a/1.png")),
        ((), ()),
    ],
)
def test_names_are_below_the_common_folder(
    paths: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert below_common_folder(paths) == expected


def saved(path: Path, logits: torch.Tensor, labels: torch.Tensor) -> RunPredictions | None:
    metrics = compute_metrics([score(logits, labels)], logits.shape[1])
    data = replace(splits_of(labels), classes=tuple(map(str, range(logits.shape[1]))))
    save_predictions(path, data, 7, validation=None, test=metrics)
    return RunPredictions.read(path) if path.exists() else None


def splits_of(labels: torch.Tensor) -> DataSplits:
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return replace(small_splits(), test=InMemoryImages(images, labels))


def test_image_whose_logits_are_not_finite_has_no_prediction(tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, 1.0], [float("inf"), 0.0], [float("-inf"), 0.0]])
    found = saved(tmp_path / "predictions.npz", logits, torch.tensor([1, 0, 1]))
    assert found is not None
    assert found.predicted.tolist() == [1, NOT_FINITE, NOT_FINITE]
    assert np.isnan(found.top_probabilities).tolist() == [[False] * 2, [True] * 2, [True] * 2]
    assert np.isnan(found.label_probabilities).tolist() == [False, True, True]
    assert found.correct.tolist() == [True, False, False]


def test_images_of_several_labels_have_no_predictions_file(tmp_path: Path) -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.uint8)
    assert saved(tmp_path / "predictions.npz", torch.zeros(2, 3), labels) is None


def test_file_is_small_enough_for_imagenet(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2_000, 1000, generator=generator)
    labels = torch.arange(2_000) % 1000
    saved(tmp_path / "predictions.npz", logits, labels)
    assert (tmp_path / "predictions.npz").stat().st_size < 60 * 2_000


def written(path: Path, **changes: Any) -> None:
    """Write a file of two images and two classes, with other arrays in it."""
    arrays: dict[str, Any] = {
        "schema": 1,
        "split": "test",
        "step": 3,
        "classes": ["a", "b"],
        "labels": [0, 1],
        "top_classes": [[0, 1], [1, 0]],
        "top_probabilities": [[0.9, 0.1], [0.8, 0.2]],
        "label_probabilities": [0.9, 0.8],
        **changes,
    }
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": None},
        {"labels": [0, 2]},
        {"labels": [0, -1]},
        {"labels": [0]},
        {"labels": np.array([{}, {}])},
        {"top_classes": [[0, 1], [-2, 0]]},
        {"top_classes": [0, 1]},
        {"step": "many"},
        {"files": ["a.png"]},
        {"classes": []},
        {"split": "train"},
    ],
    ids=str,
)
def test_damaged_file_is_an_error(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    written(path)
    assert RunPredictions.read(path).labels.tolist() == [0, 1]
    written(path, **changes)
    with pytest.raises(CheckpointError, match=r"predictions.npz is damaged: \S"):
        RunPredictions.read(path)


def test_file_that_is_cut_short_or_missing_or_newer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    with pytest.raises(StorageError, match="cannot read"):
        RunPredictions.read(path)
    written(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            RunPredictions.read(path)
    written(path, schema=2)
    with pytest.raises(UsageError, match="newer resnet-builder"):
        RunPredictions.read(path)
