"""Names and paths in specs: they make no files elsewhere, and are taken literally."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.experiments import call, write_tiny
from tests.data.folders import write_pets, write_pets_spec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["../../x", "CON", "\\x1b[2J"])
def test_name_that_is_no_plain_file_name_makes_nothing(
    name: str, folder: Path, tmp_path: Path
) -> None:
    spec = write_tiny(folder)
    text = spec.read_text().replace("name: tiny", f'name: "{name}"')
    (folder / "named.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    for line in (["named.yaml"], [spec, "--set", f'name="{name}"']):
        result = call("train", *line)
        assert result.exit_code == 2
        assert "error[out-of-range]: name: " in result.stderr
        assert "\x1b" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home directory."""
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder / "home"))
    (folder / "home").mkdir()
    return folder / "home"


def train(spec: Path, folder: Path, *more: object) -> Any:
    return call("train", spec, "--data-dir", folder, *more)


@pytest.mark.parametrize("text", ["${HOME}", "~/x", "$(touch canary)"])
def test_path_of_a_dataset_is_literal(text: str, folder: Path, home: Path) -> None:
    """The images are in the home directory, and then in a folder of that very name."""
    write_pets(home)
    write_pets(home / "x")
    spec = write_pets_spec(folder)
    spec.write_text(spec.read_text().replace("path: pets", f"path: '{text}/pets'"))
    missing = train(spec, folder)
    assert missing.exit_code == 3
    assert f"{folder / text / 'pets' / 'train'} does not exist" in missing.stderr
    write_pets(folder / text)
    assert train(spec, folder, "--out", "run").exit_code == 0
    assert f"path: {text}/pets" in (folder / "run" / "spec.yaml").read_text().replace("'", "")
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("key", ["plugins=['TEXT']", "model.weights={path: 'TEXT'}"])
@pytest.mark.parametrize("text", ["${HOME}/x.py", "~/x.py"])
def test_other_paths_are_literal(key: str, text: str, folder: Path, home: Path) -> None:
    (home / "x.py").write_text("open('canary', 'w')\n")
    result = call("train", write_tiny(folder), "--set", key.replace("TEXT", text))
    assert result.exit_code == 2
    assert text in result.stderr
    assert not (folder / "canary").exists()
    assert not (folder / "runs").exists()
