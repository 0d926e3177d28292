"""Names and paths in specs: they make no files elsewhere, and mean what is written."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.experiments import call, write_tiny
from tests.data.folders import write_pets, write_pets_spec

NAMES = {
    "parent": "../../x",
    "absolute": "/abs",
    "slash": "a/b",
    "backslash": "a\\\\b",
    "device": "CON",
    "device-with-ending": "nul.txt",
    "dot": ".",
    "dots": "..",
    "hidden": ".x",
    "long": "x" * 300,
    "escape": "\\x1b[2J",
    "null": "a\\0b",
    "line": "a\\nb",
    "dash": "-rf",
    "home": "~",
    "empty": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"row34-{name}")
def test_name_that_is_no_plain_file_name_makes_nothing(
    name: str, folder: Path, tmp_path: Path
) -> None:
    spec = write_tiny(folder)
    quoted = f'"{NAMES[name]}"'
    text = spec.read_text().replace("name: tiny", f"name: {quoted}")
    (folder / "named.yaml").write_text(text)
    before = everything(tmp_path)
    for line in ((folder / "named.yaml",), (spec, "--set", f"name={quoted}")):
        result = call("train", *line)
        assert result.exit_code == 2
        assert "error[out-of-range]: name: " in result.stderr
        assert "\x1b" not in result.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize("stem", ["CON", "a b", ".hidden", "-x"], ids=lambda stem: f"row34-{stem}")
def test_name_of_a_file_is_held_to_the_same_rule(stem: str, folder: Path) -> None:
    """A spec without `name` is called as its file."""
    spec = folder / f"{stem}.yaml"
    spec.write_text(write_tiny(folder).read_text().replace("name: tiny\n", ""))
    result = call("train", f"./{spec.name}")
    assert result.exit_code == 2
    assert "error[" in result.stderr
    assert not (folder / "runs").exists()


LITERAL = ("${HOME}", "~/x", "{{ x }}", "%(x)s", "$(touch canary)")


@pytest.mark.parametrize("text", LITERAL, ids=lambda text: f"row36-{text}")
def test_path_of_a_data_set_is_literal(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are in the home folder, and then in a folder of that very name."""
    home = folder / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    write_pets(home)
    write_pets(home / "x")
    spec = write_pets_spec(folder)
    written = spec.read_text().replace("path: pets", f"path: '{text}/pets'")
    spec.write_text(written)
    missing = train(spec, folder)
    assert missing.exit_code == 3
    assert f"{folder / text / 'pets' / 'train'} is no folder" in missing.stderr
    write_pets(folder / text)
    assert train(spec, folder, "--out", "run").exit_code == 0
    assert f"path: {text}/pets" in (folder / "run" / "spec.yaml").read_text().replace("'", "")
    assert not (folder / "canary").exists()


def train(spec: Path, folder: Path, *more: object) -> Any:
    return call("train", spec, "--data-dir", folder, *more)


@pytest.mark.parametrize("key", ["plugins=[TEXT]", "model.weights={path: TEXT}"])
@pytest.mark.parametrize("text", ["${HOME}/x.py", "~/x.py"])
def test_row36_other_paths_are_literal(
    key: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    home.mkdir()
    (home / "x.py").write_text("open('canary', 'w')\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    change = key.replace("TEXT", f"'{text}'")
    result = call("train", write_tiny(folder), "--set", change)
    assert result.exit_code == 2
    assert text in result.stderr
    assert not (folder / "canary").exists()
    assert not (folder / "runs").exists()
