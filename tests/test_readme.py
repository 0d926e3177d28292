"""What README shows is what happens."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch

from resnet_builder.spec.bundled import find_spec
from resnet_builder.spec.loading import load_spec, load_spec_text
from tests.cli.experiments import call

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks("console"))
def test_command_prints_what_is_shown(block: str) -> None:
    command, _, wanted = block.partition("\n")
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "resnet-build"
    result = call(*arguments)
    shown = result.stdout + result.stderr
    assert [line.rstrip() for line in shown.splitlines()] == wanted.splitlines()


def test_python_examples_run() -> None:
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(code, names)  # our own file
    model, features = names["model"], names["features"]
    assert model.fc(features(torch.ones(1, 3, 32, 32))).shape == (1, 10)  # type: ignore[attr-defined, operator]


def test_spec_example_is_the_bundled_network() -> None:
    (text,) = blocks("yaml")
    assert load_spec_text(text).model == load_spec(find_spec("resnet32")).model


def test_commands_name_flags_and_specs_that_exist() -> None:
    for line in "".join(blocks("sh")).replace("\\\n", "").splitlines():
        if line.startswith("resnet-build"):
            command, *arguments = shlex.split(line, comments=True)[1:]
            if command == "train" and not arguments[0].startswith("runs/"):
                find_spec(arguments[0])
            for flag in (word for word in arguments if word.startswith("-")):
                assert flag in call(command, "--help").stdout


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import what writes the tables, which is a script beside others."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


def test_tables_are_what_the_benchmarks_found(tables: ModuleType) -> None:
    """If not: ``python benchmarks/tables.py``."""
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.refreshed(text) == text


def test_table_is_written_anew_from_its_file_and_all_else_is_left(tables: ModuleType) -> None:
    results = ROOT / "benchmarks" / "results"
    found = json.loads((results / "amx" / "memory_resnet110.json").read_text(encoding="utf-8"))
    ours, stock = (found["mib"][who]["added by steps"] for who in ("ours", "stock"))
    ratio = found["ratio of what the steps add"]
    text = "before\n<!-- table: memory -->\nold\n<!-- end -->\nafter\n"
    lines = tables.refreshed(text).splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == (
        *("before", "<!-- table: memory -->"),
        *("<!-- end -->", "after"),
    )
    assert "old" not in lines
    (row,) = [line for line in lines if line.startswith("| AMX | `resnet110` |")]
    assert row == f"| AMX | `resnet110` | {ours:,.0f} | {stock:,.0f} | {ratio:.2f} |"


def test_table_that_there_is_not_is_an_error(tables: ModuleType) -> None:
    with pytest.raises(KeyError):
        tables.refreshed("<!-- table: nothing -->\n<!-- end -->")
