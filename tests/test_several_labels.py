"""Images of several labels at once: from the data to predictions."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from torch import Tensor

from resnet_builder.data import DATASETS
from resnet_builder.data.interfaces import DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.sources import InMemoryImages, fingerprint
from resnet_builder.reports.diagnostics import read_diagnostics
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, ResultRecord
from resnet_builder.training.metrics import Metrics, compute_metrics, score
from resnet_builder.weights.file import read_header
from tests.cli.experiments import call
from tests.crash.experiments import assert_same_outcome, outcome_of
from tests.resume.runs import stopping_after

TAGS = ("red", "green", "blue")

SPEC = """\
name: tags
model:
  num_classes: 3
  stem: {type: conv3x3, channels: 8}
  block: basic
  shortcut: pad
  stages: [{channels: 8, blocks: 1}]
data:
  dataset: tags
  validation: 30
  augment: [{type: mixup, alpha: 0.4}]
train:
  steps: 40
  batch_size: 32
  optimizer: {type: sgd, lr: 0.3}
  loss: binary_cross_entropy
  evaluate_every: {steps: 8}
run: {device: cpu, precision: fp32, threads: 1, report: false}
"""


class Tags:
    """Images whose channels are bright or not, as their labels say."""

    info = DatasetInfo(3, 3, 8, False, training_images=160, classes=TAGS, multi_label=True)

    def load(self, context: LoadContext) -> LoadedDataset:
        """Draw the images."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.rand(200, 3, generator=generator) < torch.tensor([0.6, 0.3, 0.1])
        noise = torch.randint(0, 200, (200, 3, 8, 8), generator=generator)
        images = (noise + 55 * labels[:, :, None, None]).byte()
        train, test = (
            InMemoryImages(images[part], labels[part].byte())
            for part in (slice(160), slice(160, None))
        )
        return LoadedDataset(train, None, test, TAGS, fingerprint(images, labels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the spec; the dataset is registered meanwhile."""
    folder = tmp_path_factory.mktemp("tags")
    (folder / "tags.yaml").write_text(SPEC)
    with DATASETS.temporary("tags", Tags), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run(folder: Path) -> RunDirectory:
    """Train; tests only read the run."""
    result = call("train", "tags.yaml", "--out", "run")
    assert result.exit_code == 0, result.stderr
    return RunDirectory(folder / "run")


@pytest.mark.ci
def test_card_of_a_published_run_names_what_is_measured(run: RunDirectory, folder: Path) -> None:
    result = ResultRecord.read(run.result)
    assert call("publish", run.path, "--to", "net").exit_code == 0
    text = (folder / "net" / "README.md").read_text()
    assert result.test_map is not None
    assert f"| test mAP | 40 | {100 * result.test_map:.2f} % |" in text
    assert "which of 3 classes each has, which may be several or none" in text
    assert "the 95 % interval of all labels right is" in text
    assert "name: exact match of all labels" in text
    assert "Probabilities are sigmoids" in text


def drawn(classes: int = 4, count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (count, classes), generator=generator).byte()
    logits = (torch.randn(count, classes, generator=generator) + labels).mul(2).round().div(2)
    return logits, labels


def metrics_of(logits: Tensor, labels: Tensor) -> Metrics:
    pairs = zip(logits.split(7), labels.split(7), strict=True)
    return compute_metrics([score(*pair) for pair in pairs], logits.shape[1])


def test_metrics_are_those_of_torch_and_scikit_learn() -> None:
    logits, labels = drawn()  # of which many are equal
    found = metrics_of(logits, labels)
    predicted = logits > 0
    expected_loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert found.loss == pytest.approx(expected_loss.item(), rel=1e-6)
    assert found.top1 == (predicted == labels).all(1).double().mean().item()
    assert found.top5 is None
    assert found.map == pytest.approx(average_precision_score(labels, logits), abs=1e-9)
    for average in ("micro", "macro", "weighted"):
        expected = precision_recall_fscore_support(labels, predicted, average=average)
        ours = getattr(found, average)
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(expected[:3], abs=1e-12)
    by_class = precision_recall_fscore_support(labels, predicted)
    assert [one.f1 for one in found.by_class] == pytest.approx(by_class[2], abs=1e-12)
    assert [one.images for one in found.by_class] == by_class[3].tolist()


def test_class_that_no_image_has_is_left_out_of_the_average_precision() -> None:
    logits, labels = drawn()
    labels[:, 2] = 0
    found, kept = metrics_of(logits, labels), [0, 1, 3]
    expected = average_precision_score(labels[:, kept], logits[:, kept])
    assert found.map == pytest.approx(expected, abs=1e-9)
    assert found.by_class[2].recall is None


def test_image_without_finite_logits_is_never_right() -> None:
    logits, labels = drawn()
    labels[0], logits[0] = 0, -9
    before = metrics_of(logits, labels)
    logits[0, 1] = torch.nan
    after = metrics_of(logits, labels)
    assert after.top1 == pytest.approx(before.top1 - 1 / len(labels))
    assert after.named("val").keys() == {"val.top1", "val.map"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "train.loss=cross_entropy",
            "train.loss: `cross_entropy` is for one label an image, and these may have several; "
            "use `binary_cross_entropy` or `sigmoid_focal`",
        ),
        (
            "data.sampler=balanced",
            "data.sampler: `balanced` needs images of one label each, and these may have several",
        ),
        ("train.loss={pos_weight: [1, 2]}", "train.loss.pos_weight: 2 weights for 3 classes"),
    ],
)
def test_what_needs_one_label_is_refused_by_validate_and_train_alike(
    change: str, message: str, folder: Path
) -> None:
    validated = call("validate", "tags.yaml", "--set", change)
    trained = call("train", "tags.yaml", "--out", "refused", "--set", change)
    assert (validated.exit_code, trained.exit_code) == (2, 2)
    for text in (validated.stdout + validated.stderr, trained.stderr):
        assert message in " ".join(text.split())
    assert not (folder / "refused").exists()


def test_best_weights_are_those_of_the_highest_mean_average_precision(run: RunDirectory) -> None:
    rows = [row for row in MetricsLog(run).read() if row.event == "validation"]
    result = ResultRecord.read(run.result)
    best = max(row.val_map for row in rows if row.val_map is not None)
    assert result.val_map == best
    assert result.selected_step == next(row.step for row in rows if row.val_map == best)
    assert result.test_map is not None
    assert result.test_map > 0.9
    assert result.test_micro is not None
    assert result.test_by_class is not None
    assert [*result.test_by_class] == [*TAGS]
    images = json.loads(run.data.read_text())["images"]
    assert images == {"train": 130, "val": 30, "test": 40}


def test_run_that_was_stopped_ends_in_the_same_bits(folder: Path, run: RunDirectory) -> None:
    with stopping_after(13):
        assert call("train", "tags.yaml", "--out", "stopped").exit_code == 130
    assert call("train", "--resume", "stopped").exit_code == 0
    assert_same_outcome(folder / "stopped", outcome_of(run.path))


def test_report_has_the_recall_of_each_class_and_the_first_batch(run: RunDirectory) -> None:
    found = {one.name: one for one in read_diagnostics(run.path)}
    scores = ResultRecord.read(run.result).test_by_class
    assert scores is not None
    for one in found["classes"].numbers.classes:
        assert (one.images, one.accuracy) == (scores[one.name].images, scores[one.name].recall)
    assert not run.predictions.exists()
    told = "Images of several labels have no predictions.npz."
    assert [found[name].missing for name in ("confusion", "coverage", "mistakes")] == [told] * 3
    labels = [image.label.split(", ") for image in found["batch"].numbers.images]
    assert {name for each in labels for name in each} <= {*TAGS, ""}


def test_evaluate_prints_and_writes_every_decision(run: RunDirectory, folder: Path) -> None:
    shown = call("evaluate", run.path)
    assert shown.stdout.startswith("test, 40 images: mAP ")
    last = [line.split()[0] for line in shown.stdout.splitlines()[-3:]]
    assert last == ["macro", "weighted", "micro"]
    found = json.loads(call("evaluate", run.path, "--json", "-o", "tags.csv").stdout)
    assert "confusion" not in found
    with (folder / "tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([[name in row["label"].split(";") for name in TAGS] for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in TAGS] for row in rows])
    assert found["metrics"]["test.map"] == pytest.approx(
        average_precision_score(labels, probabilities), abs=1e-9
    )
    right = ((probabilities > 0.5) == labels).all(1)
    assert found["metrics"]["test.top1"] == right.mean()
    assert [row["correct"] for row in rows] == [str(bool(one)) for one in right]


def test_imported_weights_still_give_several_labels(run: RunDirectory, folder: Path) -> None:
    imported = call("import", run.best, "--spec", "tags.yaml", "-o", "imported.safetensors")
    assert imported.exit_code == 0, imported.stderr
    assert read_header(folder / "imported.safetensors").multi_label  # type: ignore[union-attr]


def test_data_of_one_label_an_image_is_refused(run: RunDirectory, folder: Path) -> None:
    for name in TAGS:
        (folder / "single" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), name).save(folder / "single" / name / "0.png")
    result = call("evaluate", run.path, "--data", folder / "single")
    assert result.exit_code == 3
    assert "is for images of several labels each, and the data has images of one" in result.stderr


def test_predict_gives_all_classes_above_one_half(run: RunDirectory, folder: Path) -> None:
    colours: dict[str, Any] = {
        "none": (90, 90, 90),
        "red": (155, 90, 90),
        "red;green": (155, 155, 90),
    }
    for name, colour in colours.items():
        noise = np.random.default_rng(0).integers(-90, 100, (8, 8, 3))
        Image.fromarray((noise + colour).astype("uint8")).save(folder / f"{name}.png")
    command = ("predict", run.path, *(f"{name}.png" for name in colours))
    found = json.loads(call(*command, "--json", "-o", "found.json").stdout)
    names = [";".join(one["name"] for one in image["predictions"]) for image in found["images"]]
    assert [set(name.split(";")) for name in names] == [{""}, {"red"}, {"red", "green"}]
    rows = json.loads((folder / "found.json").read_text())
    for row in rows:
        p = {name: row[f"p_{name}"] for name in TAGS}
        assert set(filter(None, row["prediction"].split(";"))) == {n for n in TAGS if p[n] > 0.5}
        assert row["confidence"] == pytest.approx(min(max(one, 1 - one) for one in p.values()))
    assert ["none.png", "none"] in [line.split() for line in call(*command).stdout.splitlines()]
