"""``resnet-build publish``: the folder, its model card, and what it may not tell."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import markdown_it
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from resnet_builder import build_from_spec, load_run
from resnet_builder.inference import load_model
from resnet_builder.publishing import card
from resnet_builder.runs.records import ResultRecord
from resnet_builder.spec.schema import WeightsSpec
from resnet_builder.summary import summarize
from resnet_builder.weights.file import read_weights
from tests.cli.experiments import call, write_tiny
from tests.data.folders import write_image, write_pets

ROOT = Path(__file__).parent.parent.parent
FILES = {"README.md", "model.safetensors", "network.svg", "result.json", "spec.yaml"}


def publish(run: Path, *arguments: object, to: str = "net") -> Path:
    result = call("publish", run, "--to", to, *arguments)
    assert result.exit_code == 0, result.output
    return Path(to)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_folder_has_weights_that_compute_what_the_run_computes(run: Path, folder: Path) -> None:
    net = publish(run)
    assert names(net) == FILES
    refused = call("report", net)
    assert refused.exit_code == 2
    assert "is a published folder, and its report.html is that of the run" in refused.stderr
    ours, theirs = load_model(run), load_model(net)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours.network(images), theirs.network(images))
    assert theirs.header == ours.header
    assert theirs.spec == ours.spec
    opened = load_run(net, normalize=True)
    assert opened.result == load_run(run).result
    assert opened.history == []
    with torch.no_grad():
        assert opened.model(images).shape == (2, 4)
    assert call("evaluate", net).stdout == call("evaluate", run).stdout
    for command in ("summary", "draw"):
        assert call(command, net).exit_code == 0


def test_training_and_import_start_from_a_folder(run: Path, folder: Path) -> None:
    net = publish(run)
    wanted = load_model(run).network.state_dict()
    found = build_from_spec(write_tiny(folder), overrides=["model.weights=net"]).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert call("import", net, "--spec", "tiny.yaml", "-o", "x.safetensors").exit_code == 0
    imported = load_model(Path("x.safetensors"))
    header = load_model(run).header
    assert imported.classes == header.classes
    assert (imported.header.mean, imported.header.std) == (header.mean, header.std)
    assert imported.header.preprocess == header.preprocess
    refused = call("validate", "tiny.yaml", "--set", "model.weights=.")
    assert "this is a directory" in refused.stderr


def test_card_has_the_hub_s_metadata_and_the_figures_of_the_run(run: Path, folder: Path) -> None:
    net = publish(run, "--name", "tiny | <b>net</b>", "--license", "mit", "--dataset", "me/noise")
    result = ResultRecord.read(run / "result.json")
    found = ModelCard.load(net / "README.md")
    assert found.data.pipeline_tag == "image-classification"
    assert (found.data.library_name, found.data.license) == ("resnet-builder", "mit")
    assert (found.data.datasets, found.data.metrics) == (["me/noise"], ["accuracy"])
    assert result.test_top1 is not None
    [first, *_] = found.data.eval_results
    assert (first.metric_type, first.metric_value) == ("accuracy", round(result.test_top1, 6))
    assert (first.dataset_type, first.dataset_split) == ("me/noise", "test")
    entries = yaml.safe_load((net / ".eval_results/resnet-builder.yaml").read_text())
    [entry, *_] = parse_eval_result_entries(entries)
    assert (entry.dataset_id, entry.value) == ("me/noise", round(result.test_top1, 6))
    text = found.text
    assert text.startswith("\n# tiny \\| \\<b\\>net\\</b\\>\n")
    published = result.published
    assert published is not None
    assert published.test_top1_difference is not None
    assert (
        f"| test top-1 | 40 | {100 * result.test_top1:.2f} % | 50.00 % | "
        f"{100 * published.test_top1_difference:+.2f} |"
    ) in text
    assert "The published figures are those of nobody." in text
    assert f"step {result.selected_step} of {result.steps}: those with the best" in text
    assert "on 32 validation images" in text
    assert f"{result.parameters:,} parameters" in text


def test_citation_is_that_of_the_citation_file() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    [paper] = told["references"]
    assert f"title = {{{told['title']}}}" in card.CITATION
    assert f"{{{{{told['authors'][0]['name']}}}}}" in card.CITATION
    assert f"title = {{{paper['title']}}}" in card.CITATION
    assert paper["doi"] in card.CITATION
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in card.CITATION


@pytest.mark.parametrize(
    ("share", "count", "wanted"),
    [(0.5, 100, (0.4038, 0.5962)), (1.0, 360, (0.9894, 1.0)), (0.0, 10, (0.0, 0.2775))],
)
def test_interval_is_wilson_s(share: float, count: int, wanted: tuple[float, float]) -> None:
    assert card.wilson(share, count) == pytest.approx(wanted, abs=1e-4)


def run_card(text: str) -> int:
    """Run the commands and the code of a card, in the current folder; return their number."""
    write_image(Path("image.png"), 0)
    for number in range(80):
        write_image(Path(f"my_images/{('ant', 'bee')[number % 2]}/{number}.png"), number)
    count = 0
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(block, {})
            count += 1
            continue
        for line in block.replace("\\\n", "").splitlines():
            program, *arguments = line.split()
            assert program == "resnet-build"
            result = call(*arguments)
            assert result.exit_code == 0, (line, result.output)
            count += 1
    return count


@pytest.mark.ci
def test_lines_of_the_card_run_in_the_folder(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = publish(run)
    monkeypatch.chdir(net)
    assert run_card(Path("README.md").read_text()) == 4


@pytest.mark.slow
def test_lines_of_the_card_of_own_images_run_in_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = publish(write_own_run(folder), "--plugin", "secret-place/my_augmentation.py")
    text = (net / "README.md").read_text()
    assert "Its images are not published; it starts from weights that are not published." in text
    monkeypatch.chdir(net)
    assert run_card(text) == 4


def test_names_from_data_cannot_change_the_card(run: Path, folder: Path) -> None:
    hostile = ("a|b", "`c`", "<script>alert(1)</script>", "d\n# Title\n![x](http://y/z)")
    found = publication(run, classes=hostile, source="[click](http://y) <b>")
    text = ModelCard(card.model_card(found)).text
    page = markdown_it.MarkdownIt("commonmark").enable("table").render(text)
    assert "<script>" not in page
    assert "http://y/z" not in re.sub(r"<code>.*?</code>", "", page)
    assert "<b>" not in page
    assert 'href="http://y"' not in page
    assert re.findall("<h1>(.*?)</h1>", page) == ["tiny"]
    assert "<code>a\\|b</code>" in page or "<code>a|b</code>" in page


def test_card_says_that_nothing_was_measured(run: Path) -> None:
    found = publication(run, classes=tuple("abcd"), source="x")
    assert found.result is not None
    nothing = {"test_top1": None, "test_top5": None, "val_top1": None, "published": None}
    text = card.model_card(replace(found, result=found.result.model_copy(update=nothing)))
    assert "Nothing was measured" in text
    assert "model-index" not in text


def test_card_names_the_weights_of_the_hub_that_it_started_from(run: Path) -> None:
    found = publication(run, classes=tuple("abcd"), source="x")
    weights = WeightsSpec(path="hf-hub:me/first@v1")
    model = found.spec.model.model_copy(update={"weights": weights})
    changed = replace(found, spec=found.spec.model_copy(update={"model": model}), result=None)
    data = ModelCard(card.model_card(changed)).data.to_dict()  # type: ignore[no-untyped-call]
    assert (data["base_model"], data["base_model_relation"]) == ("me/first", "finetune")
    assert "`hf-hub:me/first@v1`" in card.model_card(changed)


def publication(run: Path, *, classes: tuple[str, ...], source: str) -> card.Publication:
    """Facts of a run, with names that its data and its spec might have."""
    opened = load_run(run)
    assert opened.result is not None
    assert opened.result.published is not None
    published = opened.result.published.model_copy(update={"source": source})
    return card.Publication(
        name="tiny",
        spec=opened.spec,
        header=opened.trained.header.model_copy(update={"classes": classes}),
        summary=summarize(opened.spec),
        result=opened.result.model_copy(update={"published": published}),
        data=None,
        total_steps=None,
        license=None,
        dataset=None,
        repository=None,
        timm=None,
        files={},
        plugins=(),
    )


# What a folder may not tell.


def write_own_run(folder: Path) -> Path:
    """Train on images of a folder, from weights in a file, with a plugin."""
    secret = folder / "secret-place"
    secret.mkdir()
    write_pets(secret)
    torch.save({}, secret / "unused.pth")
    plugin = secret / "my_augmentation.py"
    plugin.write_text("NOTHING = True\n", encoding="utf-8")
    first = write_tiny(secret, name="first.yaml")
    line = ("--data", secret / "pets", "--set", "train.epochs=1", "--set", "train.batch_size=8")
    spec = write_tiny(secret, f"plugins: [{plugin}]", name="second.yaml")
    for source, out, more in (
        (first, "first", ()),
        (
            spec,
            "second",
            (
                *("--set", f"model.weights.path={secret / 'first/best.safetensors'}"),
                *("--plugin", plugin, "--set", "run.report=true"),
            ),
        ),
    ):
        result = call("train", source, *line, "--out", secret / out, *more)
        assert result.exit_code == 0, result.output
    return secret / "second"


@pytest.mark.ci
def test_no_path_of_this_machine_is_published(folder: Path) -> None:
    run = write_own_run(folder)
    place = str(folder / "secret-place")
    written = (run / "report.html").read_text()
    assert place in written
    net = publish(run, "--plugin", f"{place}/my_augmentation.py")
    assert names(net) == FILES | {"report.html", "my_augmentation.py"}
    for path in net.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"secret-place" not in content, path
            assert str(folder).encode() not in content, path
            assert str(Path.home()).encode() + b"/" not in content, path
    assert len((net / "report.html").read_text()) > len(written) / 2
    spec = yaml.safe_load((net / "spec.yaml").read_text())
    assert spec["data"]["dataset"]["path"] == "pets"
    assert spec["model"]["weights"]["path"] == "best.safetensors"
    assert spec["plugins"] == ["my_augmentation.py"]
    assert "`best.safetensors`, SHA-256 " in (net / "README.md").read_text()
    loaded = load_run(net, plugins=[str(net / "my_augmentation.py")])
    assert loaded.classes == ("ant", "bee")


@pytest.mark.ci
def test_report_that_names_a_folder_or_the_machine_is_left_out(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, "run")
    monkeypatch.setattr("platform.node", lambda: "my-laptop")
    for number, place in enumerate(("/home/somebody", "my-laptop")):
        (Path("run") / "report.html").write_text(f"<p>{place}</p>", encoding="utf-8")
        result = call("publish", "run", "--to", f"net{number}")
        assert f"names {place}, so it is not published" in result.stderr
        assert names(Path(f"net{number}")) == FILES
    (Path("run") / "report.html").write_text("<p>fine</p>", encoding="utf-8")
    result = call("publish", "run", "--to", "two", "--no-report")
    assert (names(Path("two")), result.stderr) == (FILES, "")


# Runs and folders that are refused.


def test_unfinished_run_is_published_only_if_asked(run: Path, folder: Path) -> None:
    shutil.copytree(run, "run")
    (Path("run") / "result.json").unlink()
    result = call("publish", "run", "--to", "net")
    assert result.exit_code == 2
    assert "run is not finished" in result.stderr
    assert "--unfinished" in result.stderr
    assert not Path("net").exists()
    net = publish(Path("run"), "--unfinished")
    assert names(net) == FILES - {"result.json"}
    assert "**Its training is not finished.**" in (net / "README.md").read_text()
    assert ModelCard.load(net / "README.md").data.eval_results is None


def test_folder_in_use_is_refused_and_nothing_in_it_changes(run: Path, folder: Path) -> None:
    Path("net").mkdir()
    (Path("net") / "notes.txt").write_text("mine", encoding="utf-8")
    for to, message in (
        ("net", "net is not empty: name another folder; or add --overwrite"),
        ("net/notes.txt", "is a file"),
        (run, "is a run: name another folder"),
        (run / "net", f"is inside the run {run}: name a folder outside it"),
    ):
        before = {path: path.stat().st_mtime_ns for path in Path("net").rglob("*")}
        result = call("publish", run, "--to", to)
        assert result.exit_code == 2
        assert message in result.stderr
        assert {path: path.stat().st_mtime_ns for path in Path("net").rglob("*")} == before
    result = call("publish", run, "--to", run, "--overwrite")
    assert result.exit_code == 2
    (Path("net") / "README.md").write_text("mine", encoding="utf-8")
    for weights in (None, b"another program's", (run / "best.safetensors").read_bytes()):
        others = "README.md" if weights is None else "README.md, model.safetensors"
        if weights is not None:
            (Path("net") / "model.safetensors").write_bytes(weights)
        before = {path: path.stat().st_mtime_ns for path in Path("net").rglob("*")}
        result = call("publish", run, "--to", "net", "--overwrite")
        assert result.exit_code == 2
        assert result.stderr == (
            "error: net has files that publish did not write, and would replace: "
            f"{others}; move them away, or name another folder\n"
        )
        assert {path: path.stat().st_mtime_ns for path in Path("net").rglob("*")} == before


@pytest.mark.ci
def test_overwriting_replaces_own_files_and_keeps_others(run: Path, folder: Path) -> None:
    net = publish(run, "--dataset", "me/noise")
    (net / "notes.txt").write_text("mine", encoding="utf-8")
    (net / "report.html").write_text("mine", encoding="utf-8")
    (net / ".git").mkdir()
    refused = call("publish", run, "--to", net, "--overwrite")
    assert "publish did not write, and would replace: report.html; move" in refused.stderr
    (net / "report.html").unlink()
    publish(run, "--overwrite", "--name", "again")
    assert names(net) == FILES | {"notes.txt"}
    assert "# again" in (net / "README.md").read_text()


@pytest.mark.parametrize(
    "number",
    [
        8,
        pytest.param(9, marks=pytest.mark.ci),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (0, 4, 5, 6, 7, 10)),
    ],
)
def test_folder_is_whole_or_has_no_weights_wherever_writing_fails(
    number: int, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each rename; a process that is killed there leaves the same files."""
    net = publish(run)
    calls = iter(range(100))
    rename, remove = os.replace, shutil.rmtree

    def failing(*arguments: Any, **options: Any) -> None:
        if next(calls) == number:
            raise KeyboardInterrupt
        rename(*arguments, **options)

    monkeypatch.setattr("os.replace", failing)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as after a kill
    result = call("publish", run, "--to", "net", "--overwrite", "--name", "again")
    monkeypatch.setattr("os.replace", rename)
    monkeypatch.setattr(shutil, "rmtree", remove)
    if result.exit_code == 0:
        assert number >= 10, "no file is written by another function"
    if (net / "model.safetensors").exists():
        found = {path.name for path in net.iterdir() if path.is_file()}
        assert found == FILES
        name = "again" if result.exit_code == 0 else "tiny"
        assert f"# {name}" in (net / "README.md").read_text()
        read_weights(net / "model.safetensors")
    publish(run, "--overwrite", "--name", "third")
    assert names(net) == FILES


def test_full_disk_is_told_by_the_names_that_the_user_knows(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = publish(run, to="old")
    before = {name: (net / name).read_bytes() for name in FILES}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    for to in ("net", "old"):
        result = call("publish", run, "--to", to, "--overwrite")
        assert result.exit_code == 7
        told = Path(to) / "README.md"
        assert result.stderr == f"error: cannot write {told}: No space left on device\n"
    assert {path.name for path in folder.iterdir()} == {"old"}
    assert {path.name: path.read_bytes() for path in net.iterdir()} == before


def test_json_names_the_files(run: Path, folder: Path) -> None:
    document = json.loads(call("publish", run, "--to", "net", "--json").stdout)
    assert set(document["files"]) == FILES
    assert document["bytes"] == sum((Path("net") / file).stat().st_size for file in FILES)


def test_missing_library_is_told_before_any_work(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    result = call("publish", run, "--to", "net")
    assert result.exit_code == 2
    assert result.stderr == (
        'error: publish and the Hugging Face Hub need the extra "publish": '
        "pip install 'resnet-builder[publish]'\n"
    )
    assert not Path("net").exists()
