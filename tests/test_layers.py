"""The rooms' order: a module imports from its own room and from those below it only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "resnet_builder"

LAYERS = (
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
    {"bench", "reports"},
    {"cli"},
)
"""Lowest first; rooms of one layer do not know each other."""

FREE = {"__init__", "__main__", "py.typed"}
"""The package's front doors may import everything."""

TORCH_FREE = {"errors", "registry", "spec", "plugins"}


def rooms() -> dict[str, int]:
    return {room: level for level, layer in enumerate(LAYERS) for room in layer}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in FREE)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of what a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_there_are_modules_in_many_rooms() -> None:
    assert len({room_of(path) for path in modules()}) > 8


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_nothing_from_above_or_beside(path: Path) -> None:
    room, levels = room_of(path), rooms()
    for name in imported(path):
        package, _, inside = name.partition(".")
        other = inside.partition(".")[0]
        if package == "resnet_builder" and other in levels and other != room:
            assert levels[other] < levels[room], f"{room} imports {other}"


@pytest.mark.parametrize("room", sorted(TORCH_FREE))
def test_torch_free_room_imports_no_torch(room: str) -> None:
    for path in (path for path in modules() if room_of(path) == room):
        packages = {name.partition(".")[0] for name in imported(path)}
        assert not packages & {"torch", "torchvision", "numpy", "sklearn"}, path


def test_only_the_command_line_prints() -> None:
    for path in (path for path in modules() if room_of(path) != "cli"):
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
