"""Import order: a module imports only from its own package and from packages below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "resnet_builder"

IMPORT_ORDER = (
    {"errors"},
    {"system", "registry"},
    {"spec", "blocks", "device"},
    {"model"},
    {"experiment"},
    {"data", "runs"},
    {"plugins", "weights", "parts"},
    {"checks"},
    {"builder", "cpu"},
    {"memory"},
    {"summary", "testing"},
    {"training"},
    {"inference"},
    {"comparison", "export"},
    {"bench"},
    {"cli"},
)
"""Lowest first; packages of one line do not import each other."""

FREE = {"__init__", "__main__", "py.typed"}
"""Entry points, which may import everything."""

TORCH_FREE = {"errors", "registry", "spec", "plugins"}


def levels() -> dict[str, int]:
    return {name: level for level, names in enumerate(IMPORT_ORDER) for name in names}


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


def test_there_are_modules_in_many_packages() -> None:
    assert len({package_of(path) for path in modules()}) > 8


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_nothing_from_above_or_beside(path: Path) -> None:
    own, level = package_of(path), levels()
    for name in imported(path):
        top, _, inside = name.partition(".")
        other = inside.partition(".")[0]
        if top == "resnet_builder" and other in level and other != own:
            assert level[other] < level[own], f"{own} imports {other}"


@pytest.mark.parametrize("package", sorted(TORCH_FREE))
def test_torch_free_package_imports_no_torch(package: str) -> None:
    for path in (path for path in modules() if package_of(path) == package):
        packages = {name.partition(".")[0] for name in imported(path)}
        assert not packages & {"torch", "torchvision", "numpy"}, path


def test_cpu_kernels_are_called_by_the_step_and_by_evaluation_alone() -> None:
    callers = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if package_of(path) != "cpu" and "resnet_builder.cpu.accelerate" in set(imported(path))
    }
    assert callers == {"training/step.py", "training/evaluation.py"}


def test_only_the_command_line_prints() -> None:
    for path in (path for path in modules() if package_of(path) != "cli"):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {
            node.func.id
            for node in calls
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not names & {"print", "exit", "quit"}, path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_importing_a_module_acts_on_nothing(path: Path) -> None:
    """Workers import the program again; none needs a terminal or reads the command line."""
    acting = {"popen", "run", "Popen", "system", "check_output", "get_terminal_size", "main"}
    acting |= {"parse_args", "exit", "input", "print"}
    defining = (ast.FunctionDef, ast.ClassDef)
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        guarded = isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
        if not guarded and not isinstance(statement, defining):
            calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
            assert not {ast.unparse(call.func).rpartition(".")[2] for call in calls} & acting
