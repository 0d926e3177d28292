"""Which file a SPEC argument means."""

from pathlib import Path

import pytest

from resnet_builder.errors import SpecError
from resnet_builder.spec import bundled
from resnet_builder.spec.bundled import bundled_names, find_spec, is_path, recipe_names
from tests.spec.texts import MINIMAL, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("resnet20", "resnet110", "resnet9", "wrn"):
        write(tmp_path, MINIMAL, f"{name}.yaml")
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", "", "he2015.yaml")
    monkeypatch.setattr(bundled, "_directory", lambda: tmp_path)
    return tmp_path


def test_names_are_ordered_by_their_numbers(folder: Path) -> None:
    assert bundled_names() == ("resnet9", "resnet20", "resnet110", "wrn")
    assert recipe_names() == ("he2015",)


@pytest.mark.parametrize("source", ["x.yaml", "x.yml", "./resnet20", "a/b", "/resnet20"])
def test_separator_or_ending_makes_a_path(source: str, folder: Path) -> None:
    assert is_path(source)
    assert find_spec(source) == Path(source)


def test_anything_else_is_a_bundled_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = tmp_path / "working"
    working.mkdir()
    write(working, MINIMAL, "resnet20")
    monkeypatch.chdir(working)
    assert find_spec("resnet20") == folder / "resnet20.yaml"


def test_unknown_name_gets_a_suggestion(folder: Path) -> None:
    with pytest.raises(SpecError) as raised:
        find_spec("resnet19")
    [problem] = raised.value.errors
    assert (problem.code, problem.file) == ("unknown-name", "resnet19")
    assert problem.message == "no bundled spec is named 'resnet19'"
    assert (problem.allowed, problem.suggestion) == (bundled_names(), "resnet9")


def test_file_that_looks_like_a_name_is_mentioned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, MINIMAL, "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"for the file of that name write \./mine"):
        find_spec("mine")


def test_recipe_is_no_spec(folder: Path) -> None:
    with pytest.raises(SpecError, match="no bundled spec is named 'he2015'"):
        find_spec("he2015")


def test_specs_lie_beside_the_package_in_a_checkout() -> None:
    assert bundled._directory() == Path(bundled.__file__).parents[2] / "specs"


def test_specs_lie_inside_the_package_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "resnet_builder" / "specs"
    inside.mkdir(parents=True)
    monkeypatch.setattr(bundled, "__file__", str(inside.parent / "spec" / "bundled.py"))
    assert bundled._directory() == inside
