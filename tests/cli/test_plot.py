"""``resnet-build plot``."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from resnet_builder.reports.run_curves import find_run_directories, read_groups
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, MetricsLog, MetricsRow
from tests.cli.experiments import TINY, call, write_tiny


def write_run(
    path: Path, top1: Sequence[float], *, seed: int = 0, name: str = "tiny", validates: bool = True
) -> Path:
    """Write the files of a run that curves are read from: 4 steps an epoch, a row for each."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    text = TINY.replace("name: tiny", f"name: {name}")
    text = text.replace("  epochs: 3", f"  seed: {seed}\n  epochs: 3")
    run.spec.write_text(text, encoding="utf-8")
    DataRecord(
        fingerprint="", classes=("a", "b"), images={"train": 128}, class_counts={},
        validation=(), mean=(), std=(),
    ).write(run.data)  # fmt: skip
    log = MetricsLog(run)
    for epoch, value in enumerate(top1, start=1):
        train = {"event": "train", "lr": 0.1 / epoch, "seconds": 30.0 * epoch}
        _append(log, epoch, **train, **{"train.top1": value + 0.1})
        if validates:
            _append(log, epoch, event="validation", **{"val.top1": value})
    if validates:  # the selected weights once more
        _append(log, len(top1), event="validation", **{"val.top1": 0.0})
    _append(log, len(top1), event="test", **{"test.top1": 0.25})
    return path


def _append(log: MetricsLog, epoch: int, **row: object) -> None:
    log.append(MetricsRow.model_validate({"step": 4 * epoch, "epoch": epoch, **row}))


@pytest.mark.parametrize(
    "form", ["svg", *(pytest.param(form, marks=pytest.mark.ci) for form in ("pdf", "png"))]
)
def test_figure_of_runs_is_the_same_bytes_again(form: str, folder: Path) -> None:
    write_run(Path("runs/a"), [0.2, 0.4, 0.6], seed=0)
    write_run(Path("runs/b"), [0.3, 0.5, 0.8], seed=1)
    write_run(Path("runs/c"), [0.1, 0.2], name="plain")
    for number in (1, 2):
        result = call("plot", "runs", "-o", f"{number}.{form}")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"wrote {number}.{form}: 2 curves of 3 runs\n"
    first, again = (Path(f"{number}.{form}").read_bytes() for number in (1, 2))
    assert first == again
    assert len(first) > 3000
    if form == "svg":
        ElementTree.fromstring(first)
        assert b"<dc:date>" not in first
    if form == "pdf":
        assert b"CreationDate" not in first
        assert b"/FontFile2" in first, "the fonts are embedded"


def test_seeds_are_one_curve_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", [0.25, 0.5, 0.75], seed=0),
        write_run(tmp_path / "b", [0.75, 0.5], seed=1),
        write_run(tmp_path / "c", [0.5], name="plain"),
    ]
    seeds, plain = read_groups(runs, metric="error", place="epochs")
    assert (seeds.name, plain.name) == ("tiny", "plain")
    assert [curve.split for curve in seeds.curves] == ["train", "validation"]
    validation = seeds.curves[1]
    assert validation.x.tolist() == [1, 2, 3]
    assert validation.mean.tolist() == [50, 50, 25]
    assert validation.std.tolist() == pytest.approx([math.sqrt(2) * 25, 0, 0])
    assert plain.curves[0].mean.tolist() == pytest.approx([40])
    (by_time,) = read_groups(runs[:1], metric="accuracy", place="seconds")
    assert by_time.curves[1].x.tolist() == [30, 60, 90]
    assert by_time.curves[1].mean.tolist() == [25, 50, 75]


def test_runs_of_one_name_are_told_apart_and_test_images_are_a_point(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first", [0.5, 0.6], validates=False)
    other = write_run(tmp_path / "shortcut=pad,seed=0", [0.5])
    spec = RunDirectory(other).spec
    spec.write_text(spec.read_text().replace("batch_size: 32", "batch_size: 16"))
    first, second = read_groups([run, other], metric="error", place="steps")
    assert (first.name, second.name) == ("first", "shortcut=pad")
    train, test = first.curves
    assert (train.split, test.split) == ("train", "test")
    assert (test.x.tolist(), test.mean.tolist()) == ([8], [75])


def test_folder_stands_for_its_runs_and_for_those_of_its_groups(folder: Path) -> None:
    runs = [write_run(Path("runs", name), [0.5]) for name in ("a", "group/seed=0", "no_group/b")]
    Path("runs/group/group.json").touch()
    assert find_run_directories([Path("runs"), runs[0]]) == runs[:2]
    assert find_run_directories([Path("runs/group")]) == runs[1:2]
    assert find_run_directories(runs) == runs


def test_schedule_is_plotted_before_training(folder: Path) -> None:
    result = call(
        *("plot", "resnet110", "resnet20", "--with", "fast", "--epochs", "8", "--schedule"),
        *("--label", "deep", "--label", "fast", "-o", "s.svg", "--width", "double"),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "wrote s.svg: deep, 8 epochs; fast, 8 epochs\n"
    imagenet = call("plot", "resnet50", "--schedule", "-o", "resnet50.svg")
    assert imagenet.stdout == "wrote resnet50.svg: resnet50, 90 epochs\n", imagenet.stderr
    width = ElementTree.parse("s.svg").getroot().get("width", "")
    assert float(width.removesuffix("pt")) == pytest.approx(6.875 * 72)


def test_batch_is_plotted_before_and_after_augmentation(folder: Path) -> None:
    write_tiny(folder)
    result = call("plot", "tiny.yaml", "--batch", "--width", "2", "-o", "batch.png")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "wrote batch.png: 4 images, before and after augmentation\n"
    with Image.open("batch.png") as image:
        assert image.width == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-o", "x.gif"], "x.gif: name a file that ends in .svg, .pdf or .png"),
        (["run", "-o", "old.pdf"], "old.pdf exists and is not overwritten"),
        (["missing", "-o", "x.pdf"], "missing is no run: there is no such directory"),
        (["run", "-o", "x.pdf", "--label", "a", "--label", "b"], "2 times for 1 curve: tiny"),
        (["run", "-o", "x.pdf", "--metric", "loss"], "run has no loss to show yet"),
        (["run", "-o", "x.pdf", "--width", "wide"], "'wide' is no width: single, double, or"),
        (["run", "-o", "x.pdf", "--lr", "1"], "a run has its own; they need --schedule or --batch"),
        (["resnet20", "-o", "x.pdf", "--schedule", "--x", "steps"], "are for figures of runs"),
        (["resnet20", "-o", "x.pdf", "--schedule", "--batch"], "are two figures"),
        (["tiny", "-o", "x.pdf", "--batch", "--label", "a"], "no curve that --label could name"),
        (["resnet20", "-o", "x.pdf"], "a spec is plotted with --schedule or --batch"),
        (
            ["resnet20", "-o", "x.pdf", "--schedule", "--set", "train.schedule={type: plateau}"],
            "the `plateau` schedule depends on the evaluations",
        ),
    ],
)
def test_what_cannot_be_plotted_is_refused(
    arguments: list[str], message: str, folder: Path
) -> None:
    write_run(Path("run"), [0.5])
    Path("old.pdf").touch()
    result = call("plot", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("x.pdf").exists()


def test_missing_matplotlib_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_run(Path("run"), [0.5])
    result = call("plot", "run", "-o", "x.pdf")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: plot needs the extra \"plot\": pip install 'resnet-builder[plot]'\n"
    )
