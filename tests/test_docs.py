"""Commands, outputs and code in README and docs are real.

``REGENERATE_GOLDEN=1 pytest tests/test_docs.py`` writes the messages in docs/reference/errors.md
again: read the difference.
"""

import inspect
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from resnet_builder import SpecError, build_from_spec, errors, load_spec
from resnet_builder.blocks.interfaces import BLOCKS
from resnet_builder.testing import check_block
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


def test_readme_python_runs() -> None:
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(code, names)
    model, features = names["model"], names["features"]
    assert model.fc(features(torch.ones(1, 3, 32, 32))).shape == (1, 10)  # type: ignore[attr-defined, operator]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_links_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_tutorial_spec_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml", (ROOT / "docs/tutorials/first-network.md").read_text(encoding="utf-8"))
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    assert call("validate", str(tmp_path / "tiny.yaml")).exit_code == 0


def test_own_images_spec_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml", (ROOT / "docs/how-to/own-images.md").read_text(encoding="utf-8"))
    (tmp_path / "pets.yaml").write_text(text, encoding="utf-8")
    assert call("validate", str(tmp_path / "pets.yaml")).exit_code == 0


def test_example_block_keeps_the_contract_and_builds_with_consent_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/how-to/add-a-block.md").read_text(encoding="utf-8")
    (tmp_path / "scaled.py").write_text(blocks("python", text)[0], encoding="utf-8")
    (tmp_path / "my_spec.yaml").write_text(blocks("yaml", text)[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    with pytest.raises(SpecError, match=r"--plugin scaled\.py"):
        build_from_spec("my_spec.yaml")
    network = build_from_spec("my_spec.yaml", plugins=["scaled.py"])
    made = list(network.get_submodule("layer2").children())
    assert [type(block).__name__ for block in made] == ["ScaledBlock"] * 3
    assert all(block.scale == 0.1 for block in made)
    check_block(type(made[0]), scale=0.1)


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
