"""Names and paths in specs: they make no files elsewhere, and are taken literally."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder import load_spec
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
    assert f"there is no {folder / text / 'pets'}, nor " in missing.stderr
    assert "`~` and variables are not expanded in a spec: write the path in full" in missing.stderr
    write_pets(folder / text)
    assert train(spec, folder, "--out", "run").exit_code == 0
    data = load_spec(folder / "run" / "spec.yaml").data
    assert data is not None
    assert data.dataset.options["path"] == f"{folder}/{text}/pets"
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


EVIL = r"\e]0;title\a\nerror: forged\x9b\u202e"
"""Text, as YAML writes it, that a terminal would obey and that begins a line of its own."""


@pytest.mark.parametrize(
    "override",
    [
        "name=TEXT",
        "plugins=[TEXT]",
        "model.block=TEXT",
        "model.block={type: basic, TEXT: 1}",
        "model.weights=TEXT",
        "data.dataset={type: image_folder, path: TEXT}",
        "train.freeze=[TEXT]",
        "run.device=TEXT",
        "published.source=TEXT",
    ],
)
def test_no_text_of_a_spec_reaches_the_terminal_raw(override: str, folder: Path) -> None:
    spec = write_tiny(folder)
    written = folder / "evil.yaml"
    key, _, value = override.replace("TEXT", f'"{EVIL}"').partition("=")
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{word}:" for depth, word in enumerate([*sections, last])]
    written.write_text("extends: ./tiny.yaml\n" + "\n".join(lines) + f" {value}\n")
    for line in (
        ["validate", written],
        ["validate", spec, "--set", f"{key}={value}"],
        ["diff", spec, written],
    ):
        result = call(*line)
        shown = result.stdout + result.stderr
        assert all(text.isprintable() for text in shown.split("\n")), shown
        assert "\nerror: forged" not in shown


def test_no_name_of_a_file_reaches_the_terminal_raw(folder: Path) -> None:
    name = "\x1b]0;title\a\nerror: forged\x9b.yaml"
    tiny = write_tiny(folder).read_text()
    for text in (tiny, tiny.replace("name: tiny", ""), "trian: 1", "[", None):
        if text is not None:
            (folder / name).write_text(text)
        else:
            (folder / name).unlink()
        for line in (["validate", name], ["diff", name, "tiny.yaml"], ["train", name]):
            if line[0] == "train" and text == tiny:
                continue
            result = call(*line)
            shown = result.stdout + result.stderr
            assert all(text.isprintable() for text in shown.split("\n")), shown
            assert "\nerror: forged" not in shown
