"""Commands, outputs and code in README and docs are real.

``REGENERATE_GOLDEN=1 pytest tests/test_docs.py`` writes the messages in docs/reference/errors.md
again: read the difference.
"""

import inspect
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_builder import SpecError, build_from_spec, errors, load_spec
from resnet_builder.parts import REGISTRIES
from resnet_builder.spec.keys import FLAGS
from tests.cli.experiments import call

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ERRORS = ROOT / "docs" / "reference" / "errors.md"
EXAMPLE = re.compile(r"```yaml\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def blocks(language: str, text: str = README) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks("console"))
def test_readme_command_prints_what_is_shown(block: str) -> None:
    command, _, wanted = block.partition("\n")
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "resnet-build"
    result = call(*arguments)
    shown = result.stdout + result.stderr
    assert [line.rstrip() for line in shown.splitlines()] == wanted.splitlines()


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
    torch.save(build_from_spec("resnet50").state_dict(), folder / "resnet50.pth")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("page", "files", "prepare"),
    [
        ("README.md", ["resnet32.yaml"], lambda folder: None),
        ("docs/tutorials/first-network.md", ["tiny.yaml"], lambda folder: None),
        ("docs/how-to/own-images.md", ["pets.yaml"], write_images),
        ("docs/how-to/rare-classes.md", ["rare.yaml"], lambda folder: None),
        ("docs/how-to/fine-tune.md", [], write_checkpoints),
        ("docs/how-to/draw.md", [], lambda folder: None),
        ("docs/how-to/publish.md", [], lambda folder: None),
        ("docs/how-to/report.md", [], lambda folder: None),
        ("docs/how-to/plot.md", [], lambda folder: None),
        ("docs/how-to/resume.md", [], lambda folder: None),
        ("docs/tutorials/add-a-block.md", ["scaled.py", "my_spec.yaml"], lambda folder: None),
        ("docs/how-to/track.md", ["steps.py"], lambda folder: None),
        ("docs/how-to/add-a-loss.md", ["brier.py", "my_spec.yaml"], lambda folder: None),
        (
            "docs/how-to/add-an-augmentation.md",
            ["solarize.py", "my_spec.yaml"],
            lambda folder: None,
        ),
    ],
)
def test_page_runs_as_written_in_a_fresh_folder(
    page: str,
    files: list[str],
    prepare: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the packages that README's first command does not install, unless it is of them.

    ``files`` are what the page tells to save, in its order.
    """
    told = (ROOT / page).read_text(encoding="utf-8")
    packages = ["onnx", "onnxscript", "onnxruntime", "timm"]
    for package in [*packages, *([] if "resnet-builder[plot]" in told else ["matplotlib"])]:
        monkeypatch.setitem(sys.modules, package, None)
    parts = {registry: dict(registry._parts) for registry in REGISTRIES.values()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    prepare(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for registry, registered in parts.items():  # each block is a process of its own
            monkeypatch.setattr(registry, "_parts", dict(registered))
        if files and {"yaml": ".yaml", "python": ".py"}.get(language) == Path(files[0]).suffix:
            Path(files.pop(0)).write_text(block, encoding="utf-8")
        elif language == "python":
            exec(block, names)
        elif language == "sh":
            for line in block.replace("\\\n", "").splitlines():
                run(line.rpartition("&& ")[2])
    assert not files
    if page == "README.md":
        model, features = names["model"], names["features"]
        assert model.fc(features(torch.ones(1, 3, 32, 32))).shape == (1, 10)  # type: ignore[attr-defined, operator]


def run(line: str) -> None:
    """Run a command of a page: one epoch of a training; only a check where data are downloaded."""
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
        changes = [f"--set={value}" for flag, value in pairwise(flags) if flag == "--set"]
        changes += [f"--with={value}" for flag, value in pairwise(flags) if flag == "--with"]
        changes += [f"{flag}={value}" for flag, value in pairwise(flags) if flag[2:] in FLAGS]
        changes += [f"--data={value}" for flag, value in pairwise(flags) if flag == "--data"]
        changes += [f"--plugin={value}" for flag, value in pairwise(flags) if flag == "--plugin"]
        checked = call("validate", spec, *changes)
        assert checked.exit_code == 0, checked.output
        dataset = load_spec(spec).data.dataset.type  # type: ignore[union-attr]
        if dataset.startswith("cifar") and "--data" not in arguments:
            return
        if "--epochs" in arguments:
            arguments[arguments.index("--epochs") + 1] = "1"
        elif not any("train.epochs=" in argument for argument in arguments):
            arguments += ["--epochs", "1"]  # warm-up and milestones shrink with it
        arguments += ["--set", "run.threads=1"]
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
