"""``resnet-build schema``."""

from pathlib import Path

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


def test_file_that_cannot_be_written_is_7(folder: Path) -> None:
    result = call("schema", "-o", "nowhere/my.schema.json")
    assert result.exit_code == 7
    assert result.stderr.startswith("error: cannot write nowhere/my.schema.json: ")
