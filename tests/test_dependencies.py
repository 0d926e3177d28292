"""Imports of the package against the dependencies and extras that pyproject.toml lists."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

DISTRIBUTIONS = {"PIL": "pillow", "pydantic_core": "pydantic", "yaml": "pyyaml"}
"""Names on the package index, where those of the imports differ; pydantic pins its core."""

OF_THE_USER = {"IPython", "timm"}
"""Packages that are used if the user has them, and that no extra installs."""


def imports(node: ast.AST, *, is_at_top: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield imported packages, and whether the import is executed with the module."""
    if isinstance(node, ast.Import):
        yield from ((name.name.partition(".")[0], is_at_top) for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield (node.module or "").partition(".")[0], is_at_top
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "import_module"
        and isinstance(node.args[0], ast.Constant)
    ):
        yield str(node.args[0].value).partition(".")[0], is_at_top
    is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    for child in ast.iter_child_nodes(node):
        yield from imports(child, is_at_top=is_at_top and not is_late)


def listed(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in requirements)
    return {re.sub(r"[-_.]+", "-", one[0]).lower() for one in found if one}


def test_each_import_is_a_dependency_and_those_of_extras_are_late() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = listed(project["dependencies"])
    extras = project["optional-dependencies"]
    extra = listed(
        [line for name in extras if name not in {"dev", "docs"} for line in extras[name]]
    )
    extra |= {name.removesuffix("-skinny") for name in extra}
    missing, early, used = set(), set(), set[str]()
    for path in (ROOT / "resnet_builder").rglob("*.py"):
        for name, is_at_top in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name in {*sys.stdlib_module_names, *OF_THE_USER, "resnet_builder"}:
                continue
            package = DISTRIBUTIONS.get(name, name.replace("_", "-"))
            used.add(package)
            if package not in base | extra:
                missing.add((path.name, package))
            elif package not in base and is_at_top:
                early.add((path.name, package))
    assert (missing, early) == (set(), set())
    assert base <= used, "a dependency that nothing imports"
    assert all(re.search(r">=\d", line) for line in project["dependencies"])
