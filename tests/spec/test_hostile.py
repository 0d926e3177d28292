"""Files that are no specs, and specs made to do harm: how each of them ends."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.builder import check_source
from resnet_builder.errors import MAX_PRINTED, render
from resnet_builder.spec import yaml_source
from resnet_builder.spec.load import read_draft
from tests.cli.experiments import call
from tests.spec.texts import FULL, write


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        pytest.param("none.yaml", 2, "there is no such file", id="missing"),
        pytest.param("x" * 5000 + ".yaml", 2, "there is no such file", id="long"),
        pytest.param("folder.yaml", 2, "it is a directory, not a regular file", id="directory"),
        pytest.param("fifo.yaml", 2, "it is a FIFO, not a regular file", id="fifo"),
        pytest.param("secret.yaml", 7, "Permission denied", id="secret"),
    ],
)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_cannot_be_read_ends_with_its_code_path_and_cause(
    name: str, code: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:  # root may open everything
        raise PermissionError(13, "Permission denied")

    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "fifo.yaml")
    write(tmp_path, FULL, "secret.yaml")
    if name == "secret.yaml":
        monkeypatch.setattr(yaml_source, "open_regular", refuse)
    result = call("validate", tmp_path / name)
    assert result.exit_code == code
    assert str(tmp_path / name) in result.stderr
    assert reason in result.stderr


def test_thousand_problems_take_no_second(tmp_path: Path) -> None:
    keys = "".join(f"  wrong_batch_size_{n}: 1\n" for n in range(1000))
    path = write(tmp_path, FULL.replace("data:\n", f"data:\n{keys}"))
    start = time.process_time()
    shown = render(read_draft(path).problems)
    assert time.process_time() - start < 1
    assert shown.count("error[unknown-key]") == MAX_PRINTED == 20
    result = call("validate", path)
    assert result.exit_code == 2
    assert result.stderr.count("error[unknown-key]") == 20
    assert result.stderr.endswith("\n\nand 980 more\n")


SLOTS = [
    "model.stem", "model.block", "model.shortcut", "model.norm", "model.activation",
    "model.attention", "model.antialias", "model.head", "model.init",
    "model.stages.0.block", "data.dataset", "data.augment.0", "data.preprocess",
    "train.optimizer", "train.schedule", "train.loss",
]  # fmt: skip


@pytest.mark.parametrize("name", ["canary", "canary.thing", "canary:thing", "./canary.py"])
def test_no_name_of_a_part_imports_a_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "raise SystemExit(1)", "canary.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, FULL)
    for slot in SLOTS:
        value = f"[{name!r}]" if slot == "data.preprocess" else repr(name)
        problems = check_source(path, overrides=[f"{slot}={value}"]).problems
        assert {"unknown-name", "out-of-range"} & {problem.code for problem in problems}, slot
    assert "canary" not in sys.modules


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, below in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(f'*{below}' for _ in range(9))}]")
    return "\n".join(lines)


BOMBS: dict[str, tuple[Callable[[], str], str]] = {
    "laughs": (_laughs, "limit"),
    "lists-1000": (lambda: "[" * 1_000, "limit"),
    "lists-100000": (lambda: "[" * 100_000, "limit"),
    "mappings": (lambda: "{a: " * 60_000, "limit"),
    "dashes": (lambda: "- " * 100_000, "limit"),
    "indents": (lambda: "".join(f"{' ' * n}a:\n" for n in range(600)), "limit"),
    "scalar": (lambda: "a: " + "x" * 50_000_000, "limit"),
    "keys": (lambda: "".join(f"k{n}: 0\n" for n in range(1_000_000)), "limit"),
}
FILES = {"100-megabytes": "limit", "dev-zero": "wrong-type"}

MEMORY = 2**29
"""Bytes of address space that the child has; Python and pydantic take half of them."""

CHILD = """\
import json, pathlib, re, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
from resnet_builder.errors import SpecError
from resnet_builder.spec.load import load_spec
load_spec("resnet20")
found = {}
for path in sys.argv[2:]:
    start = time.process_time()
    try:
        load_spec(path)
    except SpecError as error:
        codes = sorted({problem.code for problem in error.errors})
        found[path] = (codes, time.process_time() - start)
status = pathlib.Path("/proc/self/status").read_text()
memory = int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024
print(json.dumps([found, memory, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Let a process with little memory read every bomb: its problems' codes and its seconds."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (text, _) in BOMBS.items():
        write(folder, text(), f"{name}.yaml")
    with (folder / "100-megabytes.yaml").open("wb") as file:
        file.truncate(100_000_000)
    (folder / "dev-zero.yaml").symlink_to("/dev/zero")
    paths = [str(folder / f"{name}.yaml") for name in (*BOMBS, *FILES)]
    child = [sys.executable, "-c", CHILD, str(MEMORY), *paths]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found, memory, has_torch = json.loads(done.stdout)
    assert memory < 300 * 2**20
    assert not has_torch
    return {Path(path).stem: outcome for path, outcome in found.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="address space cannot be limited here")
@pytest.mark.parametrize("name", [*BOMBS, *FILES])
def test_bomb_is_refused_in_little_time_and_memory(name: str, refused: dict[str, Any]) -> None:
    codes, seconds = refused[name]
    assert (BOMBS[name][1] if name in BOMBS else FILES[name]) in codes
    assert seconds < 0.5
