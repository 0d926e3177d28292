"""``resnet-build validate``."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny


def test_good_specs_get_a_line_each() -> None:
    result = call("validate", "resnet20", "resnet20_digits")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == (
        "resnet20: 269,722 parameters, depth 20, 40,551,040 MACs\n"
        "resnet20_digits: 269,434 parameters, depth 20, 2,516,608 MACs\n"
    )


def test_problems_of_all_specs_are_reported_together(folder: Path) -> None:
    one = write_tiny(folder, "expect: {parameters: 1}", name="one.yaml")
    two = write_tiny(folder, "trian: {}", name="two.yaml")
    result = call("validate", one, "resnet20", two)
    assert result.exit_code == 2
    assert result.stdout == "resnet20: 269,722 parameters, depth 20, 40,551,040 MACs\n"
    assert f"{one}:18:22: error[expect]: expect.parameters: the network has" in result.stderr
    assert f"{two}:18:1: error[unknown-key]: trian: there is no such key" in result.stderr
    assert "did you mean: train" in result.stderr


def test_macs_are_checked(folder: Path) -> None:
    result = call("validate", write_tiny(folder, "expect: {macs: 5}"))
    assert result.exit_code == 2
    assert "MACs an image, not 5" in result.stderr


def test_row26_override_is_named_as_the_place() -> None:
    result = call("validate", "resnet20", "--set", "model.stages.7.blocks=3")
    assert result.exit_code == 2
    assert result.stderr.startswith("<command line>:--set: error[")


def test_layers_are_merged_and_notices_shown() -> None:
    result = call("validate", "resnet20", "--set", "model.shortcut=projection", "--with", "kj60")
    assert result.exit_code == 0
    assert result.stdout == "resnet20: 272,474 parameters, depth 20, 40,813,184 MACs\n"
    assert result.stderr.startswith("resnet20: `expect` and `published` left out")


def test_json_has_counts_and_problems(folder: Path) -> None:
    path = write_tiny(folder, "trian: {}")
    result = call("validate", "resnet20", path, "--json")
    assert result.exit_code == 2
    assert result.stderr == ""
    good, bad = json.loads(result.stdout)["specs"]
    assert good == {
        "source": "resnet20",
        "name": "resnet20",
        "parameters": 269722,
        "depth": 20,
        "macs": 40551040,
        "problems": [],
        "notices": [],
    }
    [problem] = bad["problems"]
    assert problem["code"] == "unknown-key"
    assert (problem["file"], problem["line"], problem["col"]) == (str(path), 18, 1)
    assert problem["suggestion"] == "train"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_row01_unreadable_spec_is_7(folder: Path) -> None:
    path = write_tiny(folder)
    path.chmod(0)
    assert call("validate", "resnet20", path).exit_code == 7


@pytest.mark.parametrize("name", ["missing.yaml", "folder.yaml"])
def test_row01_missing_spec_is_2(name: str, folder: Path) -> None:
    (folder / "folder.yaml").mkdir()
    result = call("validate", name)
    assert result.exit_code == 2
    assert name in result.stderr
