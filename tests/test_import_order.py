"""Import order: a module imports only from its own package and from packages below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "resnet_builder"

IMPORT_ORDER = (
    {"errors"},
    {"system"},
    {"registry"},
    {"spec", "blocks", "device", "losses"},
    {"model"},
    {"experiment"},
    {"data", "runs"},
    {"trackers"},
    {"plugins", "weights", "parts"},
    {"checks", "dry_run"},
    {"builder", "cpu"},
    {"memory"},
    {"summary", "testing"},
    {"training", "importing", "prediction_table"},
    {"inference"},
    {"comparison", "export", "prediction", "reports"},
    {"publishing"},
    {"api", "bench", "launch"},
    {"cli"},
)
"""Lowest first; packages of one line do not import each other."""

FREE = {"__init__", "__main__", "py.typed"}
"""Entry points, which may import everything."""

LEVELS = {name: level for level, names in enumerate(IMPORT_ORDER) for name in names}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if package_of(path) not in FREE)


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of what a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_nothing_from_above_or_beside(path: Path) -> None:
    own = package_of(path)
    for name in imported(path):
        top, _, inside = name.partition(".")
        other = inside.partition(".")[0]
        if top == "resnet_builder" and other in LEVELS and other != own:
            assert LEVELS[other] < LEVELS[own], f"{own} imports {other}"


def test_cpu_kernels_are_called_by_the_step_and_by_evaluation_alone() -> None:
    callers = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if package_of(path) != "cpu" and "resnet_builder.cpu.accelerate" in set(imported(path))
    }
    assert callers == {"training/step.py", "training/evaluation.py"}


def test_only_the_console_prints() -> None:
    """It escapes what comes from files. Bars are drawn by rich."""
    printing = {Path(f"cli/{name}.py") for name in ("console", "progress", "group_progress")}
    for path in modules():
        if path.relative_to(PACKAGE) not in printing:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
            names = {name.rpartition(".")[2] for name in calls}
            assert not names & {"print", "echo", "secho", "confirm", "prompt"}, path


def test_program_starts_without_the_packages_that_take_long_to_import() -> None:
    code = (
        "import sys, resnet_builder.cli.main;"
        "print(*{'pydantic', 'rich', 'torch', 'yaml'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
