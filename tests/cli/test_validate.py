"""``resnet-build validate``."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny


def test_good_networks_get_a_line_each() -> None:
    result = call("validate", "resnet20", "resnet20_digits", "--set", "train=null")
    assert result.exit_code == 0
    assert result.stdout == (
        "resnet20: 269,722 parameters, depth 20, 40,551,040 MACs\n"
        "resnet20_digits: 269,434 parameters, depth 20, 2,516,608 MACs\n"
    )


def test_good_specs_need_no_words_of_warning() -> None:
    result = call("validate", "resnet20", "resnet20_digits")
    assert (result.exit_code, result.stderr) == (0, "")
    names = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert names == ["resnet20", "resnet20", "resnet20_digits", "resnet20_digits"]


def test_problems_of_all_specs_are_reported_together(folder: Path) -> None:
    one = write_tiny(folder, "expect: {parameters: 1}", name="one.yaml")
    two = write_tiny(folder, "trian: {}", name="two.yaml")
    result = call("validate", one, "resnet20", two)
    assert result.exit_code == 2
    assert result.stdout.startswith("resnet20: 269,722 parameters, depth 20, 40,551,040 MACs\n")
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
    assert result.stdout.startswith("resnet20: 272,474 parameters, depth 20, 40,813,184 MACs\n")
    assert result.stderr.startswith("resnet20: `expect` and `published` left out")


def test_json_has_counts_and_problems(folder: Path) -> None:
    path = write_tiny(folder, "trian: {}")
    result = call("validate", "resnet20", path, "--json")
    assert result.exit_code == 2
    assert result.stderr == ""
    good, bad = json.loads(result.stdout)["specs"]
    assert all(good.pop(f"{what}_bytes") > 2**20 for what in ("memory", "activation", "disk"))
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


COUNTS = "parameters: 440, depth: 4, macs: 25360"


def test_expected_counts_are_written_and_told(folder: Path) -> None:
    path = write_tiny(folder, "expect: {parameters: 450, depth: 4} # of ours", "# the end")
    before = path.read_text(encoding="utf-8")
    result = call("validate", "--expect", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(
        f"{path}: expect.parameters: 450 -> 440\n{path}: 440 parameters, depth 4, 25,360 MACs\n"
    )
    assert path.read_text(encoding="utf-8") == before.replace("450", "440")
    assert call("validate", path).exit_code == 0


def test_expected_counts_are_added_where_there_are_none(folder: Path) -> None:
    path = write_tiny(folder)
    before = path.read_bytes()
    result = call("validate", "--expect", path)
    assert result.stdout.startswith(f"{path}: expect.parameters: none -> 440\n")
    assert path.read_bytes() == before + f"expect: {{{COUNTS}}}\n".encode()
    again = call("validate", "--expect", path)
    assert again.stdout.startswith(f"{path}: 440 parameters, depth 4, 25,360 MACs\n")


def test_expected_counts_of_a_file_below_are_left_alone(folder: Path) -> None:
    below = write_tiny(folder, f"expect: {{{COUNTS}}}", name="below.yaml")
    above = folder / "above.yaml"
    above.write_text("extends: ./below.yaml\nmodel: {block: bottleneck}", encoding="utf-8")
    before = below.read_bytes()
    assert call("validate", "--expect", "above.yaml").exit_code == 0
    assert below.read_bytes() == before
    assert above.read_text(encoding="utf-8") == (
        "extends: ./below.yaml\nmodel: {block: bottleneck}\n"
        "expect: {parameters: 456, depth: 5, macs: 21312}"
    )


def test_file_s_mode_and_link_are_kept(folder: Path) -> None:
    path = write_tiny(folder)
    path.chmod(0o640)
    (folder / "link.yaml").symlink_to(path)
    assert call("validate", "--expect", "link.yaml").exit_code == 0
    assert (folder / "link.yaml").is_symlink()
    assert COUNTS in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("expect: {parameters: 450, depht: 4}", "there is no such key"),
        ("expect: {parameters: 0}", "is out of range"),
        ("trian: {}", "there is no such key"),
        ("extends: missing.yaml", "there is no such file"),
    ],
)
def test_spec_that_is_otherwise_wrong_is_not_touched(line: str, message: str, folder: Path) -> None:
    path = write_tiny(folder, line)
    before = path.read_bytes()
    result = call("validate", "--expect", path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "error[expect]" not in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet20"], "resnet20 comes with the program and is not changed: `resnet-build init"),
        (["resnet19"], "no bundled spec is named 'resnet19'"),
        (["tiny.yaml", "--set", "train.seed=1"], "leave out --set and --with"),
        (["tiny.yaml", "--with", "kj60"], "leave out --set and --with"),
    ],
)
def test_only_files_by_themselves_are_changed(
    arguments: list[str], message: str, folder: Path
) -> None:
    before = write_tiny(folder).read_bytes()
    result = call("validate", "--expect", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (folder / "tiny.yaml").read_bytes() == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everything")
def test_read_only_file_is_7(folder: Path) -> None:
    path = write_tiny(folder)
    path.chmod(0o444)
    assert call("validate", "--expect", path).exit_code == 7


def test_json_has_what_changed(folder: Path) -> None:
    path = write_tiny(folder, "expect: {macs: 1}")
    result = call("validate", "--expect", path, "--json")
    [spec] = json.loads(result.stdout)["specs"]
    assert spec["changed"] == [{"key": "macs", "before": 1, "after": 25360}]
    assert "changed" not in json.loads(call("validate", path, "--json").stdout)["specs"][0]
