"""The program's entry: exit codes, messages, and what costs time."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest

from resnet_builder import errors
from resnet_builder.cli.main import main
from tests.cli.experiments import call, write_tiny

COMMANDS = (
    "bench",
    "diff",
    "evaluate",
    "export",
    "import",
    "init",
    "list",
    "predict",
    "schema",
    "summary",
    "train",
    "validate",
)
HEAVY = ("torch", "numpy")


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Call the program in a process of its own."""
    command = [sys.executable, "-m", "resnet_builder", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def commands() -> dict[str, click.Command]:
    """Return the commands by name."""
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def every_command() -> list[click.Command]:
    """Return the commands, and those below them."""
    found = list(commands().values())
    for command in commands().values():
        if isinstance(command, click.Group):
            found += command.commands.values()
    return found


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """Call a command whose work raises an error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("resnet_builder.builder.read_spec", fail)
    return call("summary", "resnet20", *flags)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.SpecError([]), 2),
        (errors.RegistryError("x"), 2),
        (errors.PartError("x"), 2),
        (errors.DataError("x"), 3),
        (errors.CheckpointError("x"), 4),
        (errors.NonFiniteError("x"), 5),
        (errors.ResourceError("x"), 6),
        (errors.StorageError("x"), 7),
        (errors.BusyError("x"), 8),
        (errors.ProcessLostError("x"), 9),
        (errors.Stopped("x"), 130),
        (errors.ResnetBuilderError("x"), 1),
        (MemoryError(), 6),
        (OSError(28, "No space left on device"), 7),
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = failing(error, monkeypatch)
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_error_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(errors.DataError("no images in x"), monkeypatch)
    assert result.stderr == "error: no images in x\n"


def test_error_shows_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(errors.DataError("\x1b[2J\nsecond line"), monkeypatch)
    assert result.stderr == "error: \\x1b[2J\nsecond line\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(errors.DataError("no images"), monkeypatch, "--debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr


def test_bug_is_one_line_and_a_crash_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = failing(ZeroDivisionError("oh"), monkeypatch)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("internal error: ZeroDivisionError: oh; ")
    [log] = tmp_path.iterdir()
    assert str(log) in result.stderr
    assert "Traceback" in log.read_text()


def test_bug_in_a_run_is_logged_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("resnet_builder.training.trainer.fit", fail)
    result = call("train", write_tiny(folder))
    assert result.exit_code == 1
    assert "ZeroDivisionError" in (folder / "runs" / "tiny-001" / "crash.log").read_text()


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--nope"], ["summary"], ["list", "x"]])
def test_command_line_that_cannot_be_meant_is_2(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage: resnet-build" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert tuple(re.findall(r"^  ([a-z]+)  +\w", result.stdout, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples(command: str) -> None:
    result = call(command, "-h")
    assert result.exit_code == 0
    assert f"resnet-build {command}" in result.stdout.partition("Examples:")[2]
    assert "..." not in commands()[command].get_short_help_str(limit=60)


def test_examples_name_flags_that_there_are() -> None:
    for command in commands().values():
        known = {flag for parameter in command.params for flag in parameter.opts}
        if isinstance(command, click.Group):
            known |= {
                flag for sub in command.commands.values() for p in sub.params for flag in p.opts
            }
        assert set(re.findall(r" (--[a-z-]+)", command.epilog or "")) <= known


def test_version_is_shown() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("resnet-build ")


def test_flags_are_few() -> None:
    """The spec is the interface: a new flag should be a decision."""
    flags = {
        flag
        for command in every_command()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for flag in parameter.opts
    }
    assert flags == {
        *("--set", "--with", "--plugin", "--out", "--resume", "--data-dir", "--json", "--debug"),
        *("--depth", "--split", "--top", "--allow-spec-change", "--allow-inexact"),
        "--nproc",
        "--skip-bad",
        *("--spec", "-o", "--new-head", "--ema", "--allow-missing", "--allow-unexpected"),
        *("--from", "--width", "--groups", "--width-per-group", "--dataset"),
        *("--shortcut", "--block"),
        "--format",
        "--seconds",
    }


def test_every_flag_is_read() -> None:
    for command in every_command():
        callback = command.callback
        assert callback is not None
        code = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(callback))))
        [function] = [node for node in code.body if isinstance(node, ast.FunctionDef)]
        nodes = [node for statement in function.body for node in ast.walk(statement)]
        read = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert {param.name for param in command.params if param.expose_value} <= read


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["import", "--help"],
        ["list", "specs"],
        ["validate", "broken.yaml"],
    ],
    ids=["help", "command help", "import's help", "list", "yaml-syntax"],
)
def test_what_needs_no_torch_imports_none(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model:\n\t- 1\n", encoding="utf-8")
    code = (
        "import sys\n"
        "from resnet_builder.cli.main import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_starting_imports_no_more_than_help_needs() -> None:
    code = (
        "import sys, resnet_builder.cli.main\n"
        "names = ('pydantic', 'yaml', 'rich', 'torch', 'numpy', 'sklearn', 'asyncio')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_completion_knows_commands_specs_and_recipes() -> None:
    def complete(words: str, count: int) -> list[str]:
        variables = {"_RESNET_BUILD_COMPLETE": "bash_complete"}
        variables |= {"COMP_WORDS": f"resnet-build {words}", "COMP_CWORD": str(count)}
        done = run(env={**os.environ, **variables})
        assert done.returncode == 0
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("va", 1) == ["validate"]
    assert complete("train kj56_a", 2) == ["kj56_average"]
    assert complete("train resnet20 --with he", 4) == ["he2015", "he2015_warmup"]
    assert complete("train ./x", 2) == ["./x"]


def test_closed_pipe_ends_other_commands_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "resnet_builder", "list", "specs"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_behind_stdout_is_7() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resnet_builder", "list", "specs"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr


def test_terminal_that_lacks_a_character_shows_its_number(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: [Ж\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = run("validate", str(tmp_path / "spec.yaml"), env=environment)
    assert done.returncode == 2
    assert "    1 | name: [\\u0416" in done.stderr


def test_json_is_one_document(folder: Path) -> None:
    result = call("validate", "resnet20", "nope", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["schema"] == 1
    assert result.stderr == ""
