"""The example in CONTRIBUTING.md, followed to the letter."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resnet_builder.blocks import BLOCKS
from resnet_builder.builder import build_from_spec
from resnet_builder.errors import SpecError
from resnet_builder.testing import check_block

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    """Return the first example in a language."""
    match = re.search(rf"```{language}\n(.*?)```", TEXT.partition("## Add a block")[2], re.DOTALL)
    assert match is not None
    return match[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scaled.py").write_text(example("python"), encoding="utf-8")
    (tmp_path / "my_spec.yaml").write_text(example("yaml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # What is registered for the length of a test alone can be registered again by the next.
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    return tmp_path


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_example_block_keeps_the_contract(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scaled", raising=False)
    module = imported(folder / "scaled.py")
    check_block(module.ScaledBlock, scale=0.1)
    monkeypatch.delitem(sys.modules, "scaled")


def test_example_spec_builds_with_consent_only(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"--plugin scaled\.py"):
        build_from_spec("my_spec.yaml")
    network = build_from_spec("my_spec.yaml", plugins=["scaled.py"])
    blocks = list(network.get_submodule("layer2").children())
    assert [type(block).__name__ for block in blocks] == ["ScaledBlock"] * 3
    assert all(block.scale == 0.1 for block in blocks)


def test_example_is_as_short_as_it_claims() -> None:
    assert len(example("python").splitlines()) < 50
