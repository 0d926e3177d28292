"""Commands, outputs and code in README and docs are real.

``REGENERATE_GOLDEN=1 pytest tests/test_docs.py`` writes the messages in docs/reference/errors.md
again: read the difference.
"""

import inspect
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_builder import SpecError, build_from_spec, errors, load_spec
from resnet_builder.parts import REGISTRIES
from resnet_builder.spec.keys import FLAGS
from tests.cli.experiments import call
from tests.launch.stand_in import train_in_process

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOK = ROOT / "docs" / "tutorials" / "why-residual.ipynb"
ERRORS = ROOT / "docs" / "reference" / "errors.md"
EXAMPLE = re.compile(r"```yaml\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def blocks(language: str, text: str = README) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks("console"))
def test_readme_command_prints_what_is_shown(block: str) -> None:
    command, _, wanted = block.partition("\n")
    assert printed(command) == wanted


def printed(command: str) -> str:
    """Return what a command of a page prints, without spaces at the ends of lines."""
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "resnet-build"
    return "".join(f"{line.rstrip()}\n" for line in call(*arguments).output.splitlines())


def test_readme_spec_is_the_bundled_resnet32(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
    assert load_spec(tmp_path / "shown.yaml").model == load_spec("resnet32").model


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_commands_and_flags_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in "".join(blocks("sh", text)).replace("\\\n", "").splitlines():
        if line.startswith("resnet-build"):
            command, *arguments = shlex.split(line, comments=True)[1:]
            help_text = call(command, "--help").stdout
            for flag in (word for word in arguments if word.startswith("-")):
                assert flag in help_text, line


def write_images(folder: Path) -> None:
    """Make the folders of own-images.md, with just enough images for two batches."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 2)):
        for name in ("cat", "dog"):
            (folder / "my_images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"my_images/{split}/{name}/{number}.jpg")


def write_checkpoints(folder: Path) -> None:
    """Save the checkpoints of fine-tune.md as other programs do."""
    akamaster = {
        f"module.{name.replace('fc.', 'linear.')}": tensor
        for name, tensor in build_from_spec("resnet20").state_dict().items()
    }
    torch.save({"state_dict": akamaster, "best_prec1": 91.7}, folder / "resnet20.th")
    for name in ("resnet18", "resnet50"):
        torch.save(build_from_spec(name).state_dict(), folder / f"{name}.pth")


def train_digits(folder: Path) -> None:
    """Train the run of runs.md and export.md, for one step."""
    result = call("train", "resnet20_digits", "--steps", 1, "--out", folder / "runs" / "digits")
    assert result.exit_code == 0, result.output


def write_parquet(folder: Path) -> None:
    """Write a table as the Hub's datasets have it, with one image."""
    parquet = pytest.importorskip("pyarrow.parquet")
    image = (ROOT / "examples" / "digit.png").read_bytes()
    rows = [{"image": {"bytes": image}, "label": 3}]
    table = sys.modules["pyarrow"].Table.from_pylist(rows)
    parquet.write_table(table, folder / "train.parquet")


EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "plot": ("matplotlib",),
    "dev": ("timm",),
}
"""Packages that README's first command does not install; a page that names the extra has them."""


@pytest.mark.ci
@pytest.mark.parametrize(
    ("page", "files", "prepare"),
    [
        ("README.md", ["resnet32.yaml"], lambda folder: None),
        ("docs/index.md", [], lambda folder: None),
        ("docs/tutorials/first-network.md", ["tiny.yaml"], lambda folder: None),
        ("docs/tutorials/why-residual.md", ["small20.yaml", "small56.yaml"], lambda folder: None),
        ("docs/how-to/own-images.md", ["pets.yaml"], write_images),
        ("docs/how-to/rare-classes.md", ["rare.yaml"], lambda folder: None),
        ("docs/how-to/fine-tune.md", [], write_checkpoints),
        ("docs/how-to/draw.md", [], lambda folder: None),
        ("docs/how-to/publish.md", [], lambda folder: None),
        ("docs/how-to/report.md", [], lambda folder: None),
        ("docs/how-to/plot.md", [], lambda folder: None),
        ("docs/how-to/resume.md", [], lambda folder: None),
        ("docs/how-to/several-processes.md", [], lambda folder: None),
        (
            "docs/how-to/seeds-and-sweeps.md",
            ["shortcuts.yaml", "depths.yaml", "rates.yaml"],
            lambda folder: None,
        ),
        ("docs/tutorials/add-a-block.md", ["scaled.py", "my_spec.yaml"], lambda folder: None),
        ("docs/how-to/track.md", ["steps.py"], lambda folder: None),
        ("docs/how-to/add-a-loss.md", ["brier.py", "my_spec.yaml"], lambda folder: None),
        (
            "docs/how-to/add-an-augmentation.md",
            ["solarize.py", "my_spec.yaml"],
            lambda folder: None,
        ),
        ("docs/reference/spec.md", [], lambda folder: None),
        ("docs/reference/data.md", [], write_parquet),
        ("docs/reference/runs.md", [], train_digits),
        pytest.param("docs/reference/export.md", [], train_digits, marks=pytest.mark.slow),
        ("docs/reference/checkpoints.md", [], write_checkpoints),
    ],
)
def test_page_runs_as_written_in_a_fresh_folder(
    page: str,
    files: list[str],
    prepare: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the packages that README's first command does not install.

    ``files`` are what the page tells to save, in its order.
    """
    told = (ROOT / page).read_text(encoding="utf-8")
    for extra, packages in EXTRAS.items():
        for package in packages:
            if f"resnet-builder[{extra}]" not in told:
                monkeypatch.setitem(sys.modules, package, None)
    parts = {registry: dict(registry._parts) for registry in REGISTRIES.values()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    train_in_process(monkeypatch)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    prepare(tmp_path)
    names: dict[str, object] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", told, re.DOTALL | re.MULTILINE):
        for registry, registered in parts.items():  # each block is a process of its own
            monkeypatch.setattr(registry, "_parts", dict(registered))
        for module in [name for name in sys.modules if name.startswith("resnet_builder_plugin_")]:
            monkeypatch.delitem(sys.modules, module)
        if files and {"yaml": ".yaml", "python": ".py"}.get(language) == Path(files[0]).suffix:
            Path(files.pop(0)).write_text(block, encoding="utf-8")
        elif language == "python":
            exec(re.sub(r"--epochs \d+", "--steps 2", block), names)
        elif language == "console" and page != "README.md":
            command, _, wanted = block.partition("\n")  # a part of the output suffices
            assert wanted in printed(command)
        elif language == "sh":
            for line in block.replace("\\\n", "").splitlines():
                run(line.rpartition("&& ")[2])
    assert not files
    if page == "README.md":
        model, features = names["model"], names["features"]
        assert model.fc(features(torch.ones(1, 3, 32, 32))).shape == (1, 10)  # type: ignore[attr-defined, operator]


def test_every_page_with_commands_is_run() -> None:
    [mark] = [one for one in test_page_runs_as_written_in_a_fresh_folder.pytestmark if one.args]  # type: ignore[attr-defined]
    run = {getattr(row, "values", row)[0] for row in mark.args[1]}
    for page in (ROOT / "docs").rglob("*.md"):
        commands = re.search(r"^```(sh|console|python)$", page.read_text(encoding="utf-8"), re.M)
        assert not commands or page.name == "commands.md" or str(page.relative_to(ROOT)) in run


@pytest.mark.ci
def test_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with two steps for each training; the slow test has a kernel."""
    drawn: list[str] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = lambda: None
    vars(display)["SVG"] = drawn.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in with_two_steps(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        exec("".join(cell["source"]), names)
    assert len(drawn) == 2
    assert all(ElementTree.fromstring(picture).tag.endswith("svg") for picture in drawn)


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with_two_steps(notebook.cells)
    nbclient.execute(notebook, cwd=str(tmp_path), timeout=100)  # an error in a cell is raised
    drawn = [cell for cell in notebook.cells if "image/svg+xml" in str(cell.get("outputs"))]
    assert len(drawn) == 2


def with_two_steps(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the code cells of the notebook; a training has two steps, and no report."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    epochs = '"train": {"epochs": EPOCHS}'
    steps = '"train": {"epochs": None, "steps": 2}, "run": {"report": False}'
    sources = ["".join(cell["source"]) for cell in code]
    assert sum(epochs in source for source in sources) == 1
    for cell, source in zip(code, sources, strict=True):
        cell["source"] = source.replace(epochs, steps)
    return code


def run(line: str) -> None:
    """Run a command of a page: two steps of a training; only a check where data are downloaded."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "resnet-build":
        return
    if "--push" in arguments or any("hf-hub:" in argument for argument in arguments):
        return  # tests/publishing has these, with a stand-in
    command = arguments.pop(0)
    if command == "train" and arguments[0] == "--resume":
        return  # a run that took a download
    if command == "train":
        spec, flags = arguments[0], arguments[1:]
        dataset = load_spec(spec).data.dataset.type  # type: ignore[union-attr]
        if dataset.startswith("cifar") and "--data" not in arguments:
            known = {"--set", "--with", "--plugin", *(f"--{name}" for name in FLAGS)}
            changes = [f"{flag}={value}" for flag, value in pairwise(flags) if flag in known]
            checked = call("validate", spec, *changes)
            assert checked.exit_code == 0, checked.output
            return
        if "--epochs" in arguments:
            at = arguments.index("--epochs")
            arguments[at : at + 2] = ["--steps", "2"]
        elif not any("train.epochs=" in argument for argument in arguments):
            arguments += ["--steps", "2"]  # warm-up and milestones shrink with it
        arguments += ["--set", "run.threads=1", "--set", "run.report=false"]
        if "--seeds" in arguments:
            arguments[arguments.index("--seeds") + 1] = "0"
    if command == "sweep" and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    if command == "bench":
        arguments += ["--seconds", "0.1"]
    result = call(command, *arguments)
    assert result.exit_code == 0, (line, result.output)


def test_reliability_names_tests_that_exist() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text)) - {"benchmarks/slow.py"}
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / "tests" / name).is_file()]


def error_sections() -> dict[str, str]:
    """Return the section of each error code."""
    text = ERRORS.read_text(encoding="utf-8")
    return dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", text, re.M | re.S))


@pytest.mark.parametrize("code", error_sections())
def test_error_example_gives_its_message(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = ERRORS.read_text(encoding="utf-8")
    base = re.search(r"```yaml\n(# base\.yaml\n.*?)```\n", text, re.DOTALL)
    example = EXAMPLE.search(error_sections()[code])
    assert base is not None
    assert example is not None
    Path("base.yaml").write_text(base[1], encoding="utf-8")
    Path("example.yaml").write_text(example[1], encoding="utf-8")

    with pytest.raises(SpecError) as raised:
        build_from_spec("example.yaml")

    assert [problem.code for problem in raised.value.errors] == [code]
    if os.environ.get("REGENERATE_GOLDEN"):
        new = f"```yaml\n{example[1]}```\n\n```text\n{raised.value}\n```\n"
        ERRORS.write_text(text.replace(example[0], new), encoding="utf-8")
    else:
        assert example[2] == f"{raised.value}\n"


def test_exit_codes_of_the_errors_page_are_those_of_the_classes() -> None:
    rows = re.findall(
        r"^\| +(\d+) \| .*? \| (.*?) ?\|$", ERRORS.read_text(encoding="utf-8"), re.MULTILINE
    )
    table = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    raised = {
        name: error.exit_code
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.ResnetBuilderError)
    }
    table["Stopped"] = 130  # the signal decides between 130 and 143
    assert table == raised
