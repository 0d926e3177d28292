"""Exit codes, messages and help of the program, and what starting it costs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from resnet_builder import errors
from resnet_builder.cli.main import COMMANDS
from tests.cli.experiments import call, write_tiny

NAMES = sorted(COMMANDS)


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Call the program in a process of its own."""
    command = [sys.executable, "-m", "resnet_builder", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, **more)


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Result:
    """Call a command whose work raises an error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("resnet_builder.builder.check_source", fail)
    return call("summary", "resnet20", *flags)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.UsageError("x"), 2, "error: x\n"),
        (errors.SpecError([errors.Problem("limit", "", "x", file="f")]), 2, "f: error[limit]: x\n"),
        (errors.RegistryError("x"), 2, "error: x\n"),
        (errors.PartError("x"), 2, "error: x\n"),
        (errors.DataError("\x1b[2J\nerror: x", "y"), 3, "error: \\x1b[2J\\x0aerror: x\ny\n"),
        (errors.CheckpointError("x"), 4, "error: x\n"),
        (errors.NonFiniteError("x"), 5, "error: x\n"),
        (errors.ResourceError("x"), 6, "error: x\n"),
        (errors.StorageError("x"), 7, "error: x\n"),
        (errors.BusyError("x"), 8, "error: x\n"),
        (errors.ProcessLostError("x"), 9, "error: x\n"),
        (errors.Stopped("stopped after step 3"), 130, "stopped after step 3\n"),
        (errors.ResnetBuilderError("x"), 1, "error: x\n"),
        (MemoryError(), 6, "error: out of memory\n"),
        (OSError(28, "No space left"), 7, "error: [Errno 28] No space left\n"),
        (click.UsageError("x"), 2, "error: x\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_has_its_exit_code_and_a_message_without_control_characters(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = failing(error, monkeypatch)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.endswith(text)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["init", "init --from", "schema", "export", "import"])
def test_no_command_writes_over_a_file(command: str, folder: Path, finished_run: Path) -> None:
    """A link that leads nowhere is a file, too."""
    weights = finished_run / "best.safetensors"
    lines: dict[str, list[object]] = {
        "init": ["init", "resnet", "--depth", "20"],
        "init --from": ["init", "--from", "resnet20"],
        "schema": ["schema"],
        "export": ["export", weights],
        "import": ["import", weights, "--spec", finished_run / "spec.yaml"],
    }
    old, link = folder / "old.pt2", folder / "link.pt2"
    old.write_text("mine")
    link.symlink_to("nowhere")
    for file in (old, link):
        result = call(*lines[command], "-o", file.name)
        assert result.exit_code == 2
        assert result.stderr == (
            f"error: {file.name} exists and is not overwritten: name another file, or remove it\n"
        )
    assert (old.read_text(), os.readlink(link)) == ("mine", "nowhere")
    assert sorted(folder.iterdir()) == [link, old]


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
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    result = failing(ZeroDivisionError("oh"), monkeypatch)
    assert result.stderr.endswith(
        "please report it with what --debug shows; no log could be written: No such file or "
        "directory\n"
    )


def test_bug_in_a_run_is_logged_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("resnet_builder.training.trainer.fit", fail)
    assert call("train", write_tiny(folder)).exit_code == 1
    assert "ZeroDivisionError" in (folder / "runs" / "tiny-001" / "crash.log").read_text()


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("trian", "train"),
        ("list spces", "specs"),
        ("train --nprocs 2", "--nproc"),
        ("evaluate --splt val", "--split"),
        ("train --hlep", "--help"),
        # What other programs have as a flag is a key of the spec.
        ("summary resnet20 --epochs 3", "--set train.epochs=..."),
        ("bench --epoch 3", "--epochs"),
        ("train --num-epochs 3", "--epochs"),
        ("train --learning-rate 0.1", "--lr"),
        ("train --bs 3", "--batch-size"),
        ("validate --gpu 0", "--device"),
        ("train --gpus 2", "--nproc"),
        ("train --weight-decay 0.1", "--set train.optimizer.weight_decay=..."),
        ("train --wd 0.1", "--set train.optimizer.weight_decay=..."),
        ("train --lr-schedule cosine", "--set train.schedule=..."),
        ("train --workers 4", "--set run.threads=..."),
        ("summary --num-classes 3", "--set model.num_classes=..."),
        ("export --epochs 3", None),
        ("train --nope", None),
        ("summary", None),
        ("list x", None),
    ],
)
def test_invalid_command_line_is_2_and_what_was_meant_is_named(
    line: str, meant: str | None
) -> None:
    result = call(*line.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: resnet-build")
    found = re.findall("did you mean: (.*)$", result.stderr, re.MULTILINE)
    assert found == ([] if meant is None else [meant])


def test_list_alone_shows_what_can_be_listed() -> None:
    assert call("list").exit_code == 0
    assert call("list").stdout == call("list", "--help").stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert re.findall(r"^  ([a-z]+)  +\w", result.stdout, re.MULTILINE) == NAMES
    assert "..." not in result.stdout.partition("Commands:")[2], "no line is cut"


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_has_examples_whose_flags_exist(name: str) -> None:
    text, _, examples = call(name, "-h").stdout.partition("Examples:")
    assert f"resnet-build {name}" in examples
    if name == "list":  # its flags are those of the commands below it
        text += call("list", "parts", "-h").stdout
    assert set(re.findall(r" (--[a-z-]+)", examples)) <= set(re.findall(r"--[a-z-]+", text))


def test_flags_are_few() -> None:
    """The spec is the interface: a new flag should be a decision."""
    lines = [[name] for name in NAMES] + [["list", name] for name in ("specs", "parts", "runs")]
    shown = "".join(call(*line, "--help").stdout for line in lines)
    assert set(re.findall(r"^  (?:-., )?(--?[a-z-]+)", shown, re.MULTILINE)) == {
        *(
            "--set",
            "--with",
            "--plugin",
            "--out",
            "--resume",
            "--data",
            "--data-dir",
            "--json",
            "--debug",
        ),
        *("--depth", "--split", "--top", "--allow-spec-change", "--allow-inexact", "--nproc"),
        *("--spec", "--new-head", "--ema", "--allow-missing", "--allow-unexpected", "--help"),
        *("--from", "--width", "--groups", "--width-per-group", "--dataset", "--shortcut"),
        *("--block", "--sort", "--format", "--seconds", "--skip-bad", "--full", "--no-report"),
        *("--schedule", "--batch", "--metric", "--x", "--label", "--ylim"),
        *("--license", "--name", "--overwrite", "--private", "--push", "--report"),
        *("--to", "--unfinished", "--seeds", "--sweep", "--jobs", "--dry-run"),
        *("--epochs", "--steps", "--lr", "--batch-size", "--seed", "--device", "--log"),
        *("--adapt-channels", "--preprocess", "--normalize", "--softmax", "--opset", "--dynamic"),
    }


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--version"], ("rich", "torch", "numpy")),
        (["--help"], ("torch", "numpy")),
        (["import", "--help"], ("torch", "numpy")),
        (["list", "specs"], ("torch", "numpy")),
        (["validate", "broken.yaml"], ("torch", "numpy")),
    ],
)
def test_what_needs_no_torch_imports_none(
    arguments: list[str], modules: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text("model:\n\t- 1\n", encoding="utf-8")
    code = (
        "import sys\n"
        "from resnet_builder.cli.main import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {modules} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_completion_knows_commands_specs_and_recipes() -> None:
    def complete(words: str, count: int) -> list[str]:
        variables = {"_RESNET_BUILD_COMPLETE": "bash_complete"}
        variables |= {"COMP_WORDS": f"resnet-build {words}", "COMP_CWORD": str(count)}
        done = run(env={**os.environ, **variables}, stdout=subprocess.PIPE)
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
        done = run("list", "specs", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["summary resnet20", "train resnet20_digits", "list runs"])
def test_current_folder_that_was_removed_is_7(command: str, tmp_path: Path) -> None:
    """Intel's MKL would end the process with words about one of its libraries."""
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); "
    code += "from resnet_builder.cli.main import main; main()"
    line = [sys.executable, "-P", "-c", code, *command.split()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == "error: cannot find the current folder: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "tiny.yaml", "--out", "run\udcff"),
        ("train", "--resume", "run\udcff"),
        ("evaluate", "run\udcff"),
        ("validate", "tiny\udcff.yaml"),
        ("validate", "tiny.yaml", "--set", "name=\udcff"),
    ],
)
def test_name_that_is_not_utf8_is_refused(arguments: tuple[str, ...], folder: Path) -> None:
    """safetensors cannot open such a file, and a resumed run would blame its checkpoints."""
    write_tiny(folder)
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith("' is not UTF-8: give the file or folder another name\n")
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_behind_stdout_is_7() -> None:
    with open("/dev/full", "w") as full:
        done = run("list", "specs", stdout=full)
    assert done.returncode == 7
    assert "Traceback" not in done.stderr


def test_terminal_that_lacks_a_character_shows_its_number(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: [Ж\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = run("validate", str(tmp_path / "spec.yaml"), env=environment)
    assert done.returncode == 2
    assert "    1 | name: [\\u0416" in done.stderr


@pytest.mark.parametrize(("rank", "printed"), [("0", "warning: it is\\x1b[0m late\n"), ("1", "")])
def test_what_the_package_logs_is_printed_by_one_process(
    rank: str, printed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    log = "import logging; logging.getLogger('resnet_builder.system').warning('it is\\x1b[0m late')"
    (folder / f"talk_{rank}.py").write_text(log, encoding="utf-8")
    result = call("list", "parts", "--plugin", f"talk_{rank}.py")
    assert (result.exit_code, result.stderr) == (0, printed)
