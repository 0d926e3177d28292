"""``resnet-build schema``."""

import json
from pathlib import Path

import pytest

from resnet_builder.blocks import BLOCKS
from resnet_builder.parts import REGISTRIES
from resnet_builder.spec.json_schema import json_schema_text
from tests.cli.experiments import call


def test_schema_is_printed_and_nothing_else() -> None:
    result = call("schema")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == json_schema_text(REGISTRIES)


def test_file_is_written_and_how_specs_name_it_is_said(folder: Path) -> None:
    result = call("schema", "-o", "my.schema.json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (folder / "my.schema.json").read_text(encoding="utf-8") == json_schema_text(REGISTRIES)
    assert "`# yaml-language-server: $schema=my.schema.json`" in result.stderr
    assert "`# $schema: my.schema.json`" in result.stderr


def test_file_is_written_anew(folder: Path) -> None:
    (folder / "my.schema.json").write_text("{}", encoding="utf-8")
    assert call("schema", "-o", "my.schema.json").exit_code == 0
    assert (folder / "my.schema.json").read_text(encoding="utf-8") == json_schema_text(REGISTRIES)


def test_file_that_cannot_be_written_is_7(folder: Path) -> None:
    result = call("schema", "-o", "nowhere/my.schema.json")
    assert result.exit_code == 7
    assert result.stderr.startswith("error: cannot write nowhere/my.schema.json: ")


def test_plugin_s_part_is_in_the_schema(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    (folder / "twisted.py").write_text(
        "from resnet_builder.blocks import BLOCKS\n"
        "@BLOCKS.register('twisted')\n"
        "def twisted(in_channels, channels, *, stride, shortcut, twist: int = 3):\n"
        "    '''Twist.\n\n    Args:\n        twist: By how much.\n    '''\n",
        encoding="utf-8",
    )
    assert "twisted" not in call("schema").stdout
    document = json.loads(call("schema", "--plugin", "twisted.py").stdout)
    choices = document["$defs"]["block"]["anyOf"]
    [part] = [choice for choice in choices if choice.get("title") == "twisted"]
    assert part["properties"]["twist"] == {
        "type": "integer",
        "description": "By how much.",
        "default": 3,
    }


def test_help_says_how_specs_name_the_schema() -> None:
    lines = call("schema", "--help").stdout.splitlines()
    assert any("# yaml-language-server: $schema=resnet-builder.schema.json" in x for x in lines)
    assert any("# $schema: resnet-builder.schema.json" in x for x in lines)
