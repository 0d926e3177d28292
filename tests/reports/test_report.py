"""Reports of runs: every number on the page is in a file of the run directory."""

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from resnet_builder import train
from resnet_builder.errors import UsageError
from resnet_builder.reports import page
from resnet_builder.reports.page import render_html, write_report
from resnet_builder.reports.report import Spread, read_report
from resnet_builder.reports.run_curves import read_groups
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.yaml_source import parse_plain
from tests.cli.experiments import call, write_tiny

WITH_REPORT = "run.report=true"  # the experiment of the tests says false, to save time
LOADING = {"src", "srcset", "data", "poster", "action", "background"}


@dataclass
class Page(HTMLParser):
    """What a test looks at in a page."""

    html: str
    texts: list[str] = field(default_factory=list)
    values: list[tuple[str, str]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.loaded += re.findall(r"url\((.*?)\)|@import", self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.loaded += [value for name, value in given.items() if name in LOADING]
        self.loaded += [given["href"]] if tag in {"link", "use", "image"} else []
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        if tag == "data":
            self.values.append((given["title"], given["value"]))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two trained runs of one spec, ``seed-0`` and ``seed-1``, and their reports."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        more = [WITH_REPORT] if seed == 0 else []
        train(write_tiny(folder), folder / f"seed-{seed}", overrides=[*more, f"--seed {seed}"])
    return folder


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be damaged."""
    shutil.copytree(runs / "seed-0", tmp_path / "run")
    return tmp_path / "run"


def value_in(run: Path, source: str) -> object:
    """Read the value of a file that the title of a ``<data>`` element names."""
    name, _, key = source.partition(": ")
    text = (run / name).read_text(encoding="utf-8")
    found: Any = json.loads(text) if name.endswith(".json") else parse_plain(text, name)
    if key in found:
        return found[key]
    for split in (key.split("."), [key.partition(".")[0], key.partition(".")[2]]):
        inner: Any = found
        for step in split:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if inner is not None:
            return inner
    return None


def test_page_at_the_end_of_a_training_has_only_numbers_of_the_run_directory(runs: Path) -> None:
    run = runs / "seed-0"
    shown = Page(RunDirectory(run).report.read_text(encoding="utf-8"))
    exact = [
        (source, value) for source, value in shown.values if re.match(r"\w+\.(json|ya)", source)
    ]
    assert len(exact) >= 14
    for source, value in exact:
        assert float(value) == value_in(run, source), source
    assert {source for source, _ in shown.values} - {source for source, _ in exact} == {
        "counted from spec.yaml: depth",
        "expected by the estimate of memory, from spec.yaml and env.json",
        "computed from metrics.jsonl: seconds, images_per_second, data_share",
    }
    result = json.loads((run / "result.json").read_text())
    assert f"{100 * result['test.top1']:.2f} %" in shown.text
    difference = 100 * (result["test.top1"] - 0.5)
    assert f"{difference:+.2f}".replace("-", "\N{MINUS SIGN}") in shown.text
    assert "nobody" in shown.text


def test_page_loads_nothing_and_its_links_lead_to_its_sections(runs: Path) -> None:
    for found in (read_report([runs / "seed-0"]), read_report([runs / "seed-0", runs / "seed-1"])):
        shown = Page(render_html(found))
        assert [one for one in shown.loaded if not one.startswith(("#", "data:"))] == []
        assert "script" not in shown.tags
        assert len(shown.ids) == len(set(shown.ids))
        assert {link.removeprefix("#") for link in shown.links} <= set(shown.ids)
        assert shown.tags.count("h1") == 1


def test_several_seeds_are_one_row_with_mean_and_standard_deviation(runs: Path) -> None:
    paths = [runs / "seed-0", runs / "seed-1"]
    found = read_report(paths)
    (group,) = found.groups
    tops = [json.loads((path / "result.json").read_text())["test.top1"] for path in paths]
    assert group.metrics["test.top1"] == Spread.of(tops)
    assert group.metrics["test.top1"].mean == pytest.approx(sum(tops) / 2)
    std = abs(tops[0] - tops[1]) / 2**0.5
    assert group.metrics["test.top1"].std == pytest.approx(std)
    assert found.differences == ()
    assert f"± {100 * std:.2f} %" in Page(render_html(found)).text


def test_other_specs_are_groups_that_are_told_by_what_differs(runs: Path, tmp_path: Path) -> None:
    lower = train(write_tiny(tmp_path), tmp_path / "run", overrides=["--lr 0.01", "--epochs 1"])
    found = read_report([runs / "seed-0", runs / "seed-1", lower.path])
    assert [group.runs for group in found.groups] == [(0, 1), (2,)]
    assert {one.path: one.values for one in found.differences} == {
        "train.epochs": (3, 1),
        "train.optimizer.lr": (0.1, 0.01),
    }
    assert [group.name for group in found.groups] == ["epochs 3, lr 0.1", "epochs 1, lr 0.01"]
    shown = Page(render_html(found)).text
    assert "train.optimizer.lr" in shown
    assert "from published" in shown


def test_copy_of_a_run_is_no_further_seed(runs: Path, copy: Path) -> None:
    lines = [copy, runs / "seed-0", runs / "seed-1"]
    found, known = read_report(lines), read_report([runs / "seed-0", runs / "seed-1"])
    (group,), (expected,) = found.groups, known.groups
    assert (group.runs, group.distinct) == ((0, 1, 2), (0, 2))
    assert group.metrics["test.top1"] == expected.metrics["test.top1"]
    assert found.runs[1].problems == (
        f"it has the spec and the seed 0 of {copy}: means leave it out",
    )
    assert "mean ± standard deviation of 2 runs" in Page(render_html(found)).text
    (curves,) = read_groups(lines, metric="loss", place="steps")
    assert curves.runs == (copy, runs / "seed-1")


def test_runs_on_other_images_are_no_further_seeds(runs: Path, copy: Path) -> None:
    data = json.loads((runs / "seed-1" / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps(data | {"fingerprint": "f" * 64}))
    found = read_report([copy, runs / "seed-1"])
    assert [group.runs for group in found.groups] == [(0,), (1,)]
    (one,) = found.differences
    assert one.path == "data fingerprint"
    assert [group.name for group in found.groups] == [f"data fingerprint {n}" for n in one.values]
    assert one.values == ("f" * 12, data["fingerprint"][:12])
    assert len(read_groups([copy, runs / "seed-1"], metric="loss", place="steps")) == 2


def test_mean_says_of_how_many_finished_runs_it_is(runs: Path, copy: Path) -> None:
    (copy / "result.json").unlink()
    lines = [copy, runs / "seed-1"]
    assert "| 1 of 2 |" in call("report", *lines, "--format", "md").stdout
    (group,) = read_report(lines).groups
    assert (group.finished, group.metrics["test.top1"].n) == (1, 1)
    shown = read_report([copy]).runs[0].predictions
    assert "confusion" not in shown, "predictions.npz without a result is of an older training"


def test_only_a_page_replaces_the_page_of_a_run(copy: Path) -> None:
    page = (copy / "report.html").read_bytes()
    done = call("report", copy, "--format", "md", "-o", copy / "report.html")
    assert done.exit_code == 2
    assert "exists" in done.stderr
    assert (copy / "report.html").read_bytes() == page


def test_formats_give_the_same_numbers(runs: Path, tmp_path: Path) -> None:
    lines = [runs / "seed-0", runs / "seed-1"]
    printed = json.loads(call("report", *lines, "--format", "json").stdout)
    results = [json.loads((path / "result.json").read_text()) for path in lines]
    rows = [json.loads(row) for row in (lines[0] / "metrics.jsonl").read_text().splitlines()]
    assert [run["result"] for run in printed["runs"]] == results
    assert [point["row"] for point in printed["runs"][0]["history"]] == rows
    assert [point["epoch"] for point in printed["runs"][0]["history"]][:4] == [1, 1, 2, 2]
    table = list(csv.DictReader(io.StringIO(call("report", *lines, "--format", "csv").stdout)))
    assert [float(row["test.top1"]) for row in table] == [one["test.top1"] for one in results]
    assert [int(row["seed"]) for row in table] == [0, 1]
    markdown = call("report", *lines, "--format", "md").stdout
    assert all(f"{100 * one['test.top1']:.2f} %" in markdown for one in results)
    assert call("report", *lines, "-o", tmp_path / "all.md").exit_code == 0
    assert (tmp_path / "all.md").read_text(encoding="utf-8") == markdown


def test_command_repeats_the_run(runs: Path) -> None:
    (run,) = read_report([runs / "seed-1"]).runs
    assert run.command == f"resnet-build train {runs / 'seed-1' / 'spec.yaml'}"
    spec = {**parse_plain((runs / "seed-0" / "spec.yaml").read_text(), "spec")}
    assert spec["name"] == "tiny"


@pytest.mark.ci
def test_command_of_a_bundled_spec_sets_what_was_changed(tmp_path: Path) -> None:
    changes = ["--epochs 1", "model.shortcut=projection", "--seed 3"]
    done = train("resnet20_digits", tmp_path / "run", overrides=changes)
    (run,) = read_report([done.path]).runs
    assert run.origin == "resnet20_digits"
    assert {change.path for change in run.changes} == {
        *("train.epochs", "train.seed", "model.shortcut")
    }
    words = "--set model.shortcut=projection --set train.epochs=1 --seed 3"
    assert run.command == f"resnet-build train resnet20_digits {words}"


LATER = {"env.json", "data.json", "changes.jsonl"}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": lambda run: (run / "metrics.jsonl").write_text("{]\n"),
    "result.json": lambda run: (run / "result.json").write_text("{}"),
    "env.json": lambda run: (run / "env.json").unlink(),
    "data.json": lambda run: (run / "data.json").write_bytes(b"\xff"),
    "spec.yaml": lambda run: (run / "spec.yaml").write_text("model: [\n"),
    "changes.jsonl": lambda run: (run / "changes.jsonl").mkdir(),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.ci] * (name in LATER)) for name in DAMAGES]
)
def test_damaged_file_is_named_and_the_rest_is_shown(name: str, copy: Path) -> None:
    DAMAGES[name](copy)
    found = call("report", copy)
    assert found.exit_code == 0, found.stderr
    assert name in found.stderr
    shown = Page((copy / "report.html").read_text(encoding="utf-8"))
    assert name in shown.text
    assert "Environment and record" in shown.text


def test_stopped_failed_and_empty_runs_have_a_page(copy: Path) -> None:
    (copy / "result.json").unlink()
    log = copy / "train.log"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:-1], "2026-01-01T00:00:00+00:00 failed: no <b>disk</b>"]))
    shown = Page(render_html(read_report([copy])))
    assert "failed: no <b>disk</b>" in shown.text
    assert f"resnet-build train --resume {copy}" in shown.text
    assert "validation top-1, the best until now" in shown.text
    for name in ("train.log", "metrics.jsonl", "env.json", "data.json"):
        (copy / name).unlink()
    shown = Page(render_html(read_report([copy])))
    assert "There is no evaluation yet." in shown.text
    assert "killed" in shown.text


def test_spec_that_cannot_be_built_any_more_is_told(copy: Path) -> None:
    text = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(text.replace("channels: 3, image", "channels: 0, image"))
    report = read_report([copy])
    assert "spec.yaml" in report.runs[0].problems[0]
    assert "is not drawn" in Page(render_html(report)).text


def test_infinite_losses_interrupt_the_curves(runs: Path, copy: Path) -> None:
    metrics = copy / "metrics.jsonl"
    metrics.write_text(re.sub(r'"val.loss":[\d.]+', '"val.loss":1e999', metrics.read_text()))
    for paths in ([copy], [copy, copy], [copy, runs / "seed-1"]):
        assert "validation loss" in Page(render_html(read_report(paths))).text or len(paths) == 1


def test_run_that_is_trained_now_is_running(copy: Path) -> None:
    (copy / "result.json").unlink()
    with RunDirectory(copy).locked():
        report = read_report([copy])
    assert report.runs[0].state == "running"
    assert "--resume" not in Page(render_html(report)).text


def test_marks_and_trail_tell_of_resumes_and_changes(copy: Path) -> None:
    with (copy / "train.log").open("a") as log:
        log.write("2999-01-01T00:00:00+00:00 from step 8 of 12 on CPU: device cpu\n")
    change = {"schema": 1, "path": "train.epochs", "before": 3, "after": 4, "kind": "trajectory"}
    (copy / "changes.jsonl").write_text(
        json.dumps({**change, "time": "2998-01-01T00:00:00+00:00"}) + "\n"
    )
    report = read_report([copy])
    assert report.runs[0].resumed_at == (8,)
    *_, changed, resumed = report.runs[0].trail
    assert changed.text == "changed: train.epochs: 3 in the run, 4 now"
    assert resumed.step == 8
    shown = Page(render_html(report)).text
    assert changed.text in shown
    assert "resumed" in shown


@pytest.mark.ci
def test_rate_drops_are_found_in_the_metrics(tmp_path: Path) -> None:
    schedule = "train.schedule={type: multistep, milestones: [1, 2]}"
    done = train(write_tiny(tmp_path), tmp_path / "run", overrides=[schedule])
    assert read_report([done.path]).runs[0].rate_drops == (4, 8)


@pytest.mark.ci
def test_run_without_validation_images_has_the_last_weights(tmp_path: Path) -> None:
    overrides = ["data.validation=0", "--epochs 1"]
    done = train(write_tiny(tmp_path), tmp_path / "run", overrides=overrides)
    shown = Page(render_html(read_report([done.path])))
    assert "step 5 , the last" in shown.text
    assert "best on validation" not in shown.text


def test_run_without_test_images_has_its_validation_accuracy(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    kept = {key: value for key, value in result.items() if not key.startswith(("test", "publ"))}
    (copy / "result.json").write_text(json.dumps(kept))
    data = json.loads((copy / "data.json").read_text())
    del data["images"]["test"]
    (copy / "data.json").write_text(json.dumps(data))
    shown = Page(render_html(read_report([copy])))
    assert "There are no test images." in shown.text
    assert f"{100 * result['val.top1']:.2f} % validation top-1" in shown.text


def test_run_of_several_labels_is_about_their_precision(copy: Path) -> None:
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**result, "test.map": 0.75, "val.map": 0.5}))
    report = read_report([copy])
    assert report.main_metric == "test.map"
    assert "75.00 % test mAP" in Page(render_html(report)).text


def test_names_of_users_are_text(tmp_path: Path, copy: Path) -> None:
    bad = "<script>alert(1)</script>"
    data = json.loads((copy / "data.json").read_text())
    data["classes"] = [bad, '"><img src=x>', "{{ 7 * 7 }}", "\x1b[31m\n"]
    (copy / "data.json").write_text(json.dumps(data))
    spec = (copy / "spec.yaml").read_text().replace("source: nobody", f"source: '{bad}'")
    (copy / "spec.yaml").write_text(spec)
    odd = tmp_path / "<script>"
    copy.rename(odd)
    for paths in ([odd], [odd, odd]):
        shown = Page(render_html(read_report(paths)))
        assert "script" not in shown.tags
        assert "img" not in shown.tags
    assert bad in Page(render_html(read_report([odd]))).text
    assert "\x1b" not in render_html(read_report([odd]))
    assert "\\<script>" not in call("report", odd, "--format", "md").stdout


def test_plugin_without_consent_leaves_out_the_network_alone(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')\n")
    text = (copy / "spec.yaml").read_text()
    (copy / "spec.yaml").write_text(text.replace("plugins: []", f"plugins: ['{tmp_path}/mine.py']"))
    found = call("report", copy)
    assert found.exit_code == 0
    assert "--plugin" in found.stderr
    assert "is not drawn" in Page((copy / "report.html").read_text(encoding="utf-8")).text


def full_disk(*names: str) -> Callable[[str, str], None]:
    """Stand-in for ``os.replace`` on a disk that is full for files of these names."""
    rename = os.replace

    def replace(source: str, target: str) -> None:
        if Path(target).name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    return replace


def test_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    line = ("train", write_tiny(tmp_path), "--out", run, "--set", WITH_REPORT)
    with monkeypatch.context() as full:
        full.setattr("os.replace", full_disk("report.html", "metrics.csv"))
        result = call(*line, "--log", "csv")
    assert result.exit_code == 0
    assert [one for one in result.stderr.splitlines() if one.startswith("warning: ")] == [
        f"warning: tracker csv: cannot write {run / 'metrics.csv'}: No space left on device; "
        "training goes on without it",
        f"warning: the report was not written: cannot write {run / 'report.html'}: No space left "
        "on device",
    ]
    assert (run / "result.json").exists()
    with monkeypatch.context() as broken:
        broken.setattr(page, "render_html", lambda report: 1 / 0)
        result = call(*line, "--resume")
    assert result.exit_code == 0
    assert "warning: the report was not written: division by zero\n" in result.stderr
    monkeypatch.setattr("os.replace", full_disk("report.html"))
    result = call("report", run)
    assert result.exit_code == 7
    assert result.stderr == (
        f"error: cannot write {run / 'report.html'}: No space left on device; -o FILE writes the "
        "page to another place\n"
    )


def test_resuming_a_finished_run_writes_what_is_missing(copy: Path) -> None:
    """A kill behind ``result.json`` leaves no page, and a user may remove the predictions."""
    files = {name: (copy / name).read_bytes() for name in ("predictions.npz", "result.json")}
    complete = f"{copy} is already complete\n"
    wrote = {name: f"wrote {copy / name}\n" for name in (*files, "report.html")}
    for removed in (["report.html"], [], ["predictions.npz"], ["predictions.npz", "report.html"]):
        for name in removed:
            (copy / name).unlink()
        told = wrote["predictions.npz"] * ("predictions.npz" in removed)
        told += wrote["report.html"] * bool(removed)
        assert call("train", "--resume", copy).stderr == f"{complete}{told}"
        assert {name: (copy / name).read_bytes() for name in files} == files
        assert "confusion" in Page((copy / "report.html").read_text(encoding="utf-8")).ids
    (copy / "report.html").unlink()
    assert call("train", "--resume", copy, "--no-report").stderr == complete
    train(copy / "spec.yaml", copy, resume=True)
    assert (copy / "report.html").is_file()
    # Weights of another accuracy: the images were exchanged, or a file of the run was.
    (copy / "predictions.npz").unlink()
    text = files["result.json"].decode()
    accuracy = json.loads(text)["test.top1"]
    changed = text.replace(f'"test.top1": {accuracy}', '"test.top1": 0.99', 1)
    (copy / "result.json").write_text(changed)
    said = call("train", "--resume", copy)
    assert said.exit_code == 0
    assert f"not written: the weights have a test top-1 of {accuracy:.4f} now, " in said.stderr
    assert f"and {copy / 'result.json'} says 0.9900" in said.stderr


def test_no_report_is_asked_for(tmp_path: Path) -> None:
    line = ("train", write_tiny(tmp_path), "--out", tmp_path / "run", "--epochs", "1")
    assert call(*line, "--set", WITH_REPORT, "--no-report").exit_code == 0
    assert not (tmp_path / "run" / "report.html").exists()
    assert "report: false" in (tmp_path / "run" / "spec.yaml").read_text()


def test_training_ends_with_the_place_of_its_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = call("train", write_tiny(tmp_path), "--out", run, "--set", WITH_REPORT)
    assert f"\nreport: {run / 'report.html'}\nnext:\n" in result.stderr


def test_folder_of_runs_stands_for_its_runs(runs: Path) -> None:
    assert call("report", runs).stdout == f"wrote {runs / 'report.html'}\n"
    assert "mean ± standard deviation of 2 runs" in (runs / "report.html").read_text()


def test_what_is_no_run_or_would_be_overwritten_is_refused(runs: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((tmp_path,), "is no run"),
        ((runs / "seed-0" / "report.html",), "is no run: it is a file"),
        ((runs / "seed-0", "-o", runs / "seed-0" / "env.json"), "exists"),
        ((runs / "seed-0", "-o", tmp_path / "page.pdf"), ".html, .md, .csv, .json"),
        ((tmp_path / "missing",), "does not exist"),
    ):
        found = call("report", *arguments)
        assert found.exit_code == 2, arguments
        assert words in found.stderr
    with pytest.raises(UsageError, match="at least one"):
        write_report([], tmp_path / "page.html")
    assert call("report", runs / "seed-0").exit_code == 0  # its own page is written again
    assert os.path.getsize(runs / "seed-0" / "report.html") < 200_000


def test_page_of_one_run_shows_its_predictions_and_json_their_numbers(runs: Path) -> None:
    shown = Page((runs / "seed-0" / "report.html").read_text(encoding="utf-8"))
    assert {"classes", "confusion", "calibration", "mistakes", "batch"} <= set(shown.ids)
    printed = json.loads(call("report", runs / "seed-0", "--format", "json").stdout)
    (run,) = printed["runs"]
    accuracies = [one["accuracy"] for one in run["predictions"]["classes"]["classes"]]
    by_class = run["result"]["test.by_class"].values()
    assert accuracies == [one["recall"] for one in by_class]


@pytest.mark.ci
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_browser_opens_the_pages_without_a_request_or_a_message(runs: Path, tmp_path: Path) -> None:
    write_report([runs / "seed-0", runs / "seed-1"], tmp_path / "both.html")
    log = tmp_path / "net.json"
    for file in (runs / "seed-0" / "report.html", tmp_path / "both.html"):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        line = ["chromium", *flags, f"--log-net-log={log}", f"--user-data-dir={tmp_path}/profile"]
        done = subprocess.run(
            [*line, "--dump-dom", f"file://{file}"], capture_output=True, text=True, check=True
        )
        assert "CONSOLE" not in done.stderr
        assert done.stdout.count("<section") >= 6
        asked = re.findall(r'"url":"\w+://([^/"]*)', log.read_text(encoding="utf-8"))
        own = (".google.com", ".googleapis.com", ".gvt1.com")  # of Chromium itself
        assert not [host for host in asked if not host.endswith(own)]


@pytest.mark.slow
def test_report_of_thirty_runs_takes_seconds_and_megabytes_at_most(
    runs: Path, tmp_path: Path
) -> None:
    paths = []
    for number in range(30):
        run = tmp_path / f"run-{number}"
        shutil.copytree(runs / f"seed-{number % 2}", run)
        spec = (run / "spec.yaml").read_text()
        (run / "spec.yaml").write_text(spec.replace("lr: 0.1", f"lr: {1 + number // 3}"))
        paths.append(run)
    started = time.monotonic()
    write_report(paths, tmp_path / "all.html")
    assert time.monotonic() - started < 20
    assert (tmp_path / "all.html").stat().st_size < 5_000_000
    assert len(read_report(paths).groups) == 10
