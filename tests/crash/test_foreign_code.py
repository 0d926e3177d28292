"""Code that another user, or whoever made the current folder, has planted: it never runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.experiments import train_line, write_experiment
from tests.crash.program import ENVIRONMENT, ROOT

NOBODY = 12345
"""A user that the password file does not know."""

PLANTED = """
import pathlib
pathlib.Path({canary!r}).touch()
raise SystemExit("planted code ran")
"""
SHADOWED = ("click", "json", "multiprocessing", "numpy", "pickle", "random", "torch", "typing")

READ_AHEAD = """
from resnet_builder.cli.main import main
from resnet_builder.data import sources

if __name__ == "__main__":
    sources.MIN_FILES_FOR_WORKERS = 0
    main()
"""

HOMELESS = """
import os, pwd

def nobody(user):
    raise KeyError(user)

pwd.getpwuid = nobody
del os.environ["HOME"]

from resnet_builder.cli.main import main

main()
"""

NEEDS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root acts as other users"
)


def call(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call Python in a folder."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A current folder with files that are called as modules of Python and of others."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(PLANTED.format(canary=str(tmp_path / name)))
    return folder


def ran(planted: Path) -> list[str]:
    """Return the modules of the current folder that were imported."""
    return [name for name in SHADOWED if (planted.parent / name).exists()]


def test_program_imports_nothing_from_the_current_folder(planted: Path) -> None:
    end = call("-m", "resnet_builder", "list", "specs", folder=planted)
    assert (end.returncode, ran(planted)) == (0, []), end.stderr


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("image workers", marks=pytest.mark.slow),
        pytest.param("several processes", marks=pytest.mark.slow),
        pytest.param("compile", marks=pytest.mark.slow),
    ],
)
def test_processes_import_nothing_from_the_current_folder(
    way: str, planted: Path, tmp_path: Path
) -> None:
    experiment = {"image workers": "streamed", "compile": "compiled"}.get(way, "plain")
    spec = write_experiment(tmp_path, experiment, epochs=1)
    line = train_line(spec, tmp_path / "run")
    (tmp_path / "read_ahead.py").write_text(READ_AHEAD)
    program = ["-m", "resnet_builder"] if way != "image workers" else [tmp_path / "read_ahead.py"]
    more = ["--nproc", 2] if way == "several processes" else []
    end = call(*program, *line, *more, folder=planted)
    assert (end.returncode, ran(planted)) == (0, []), end.stderr


@pytest.mark.slow
def test_program_runs_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """An empty entry of PATH, as in ``PATH=:/bin``, is the current folder."""
    spec = write_experiment(tmp_path, "plain", epochs=1)
    here, canary = tmp_path / "here", tmp_path / "canary"
    here.mkdir()
    for name in ("as", "c++", "g++", "gcc", "ld", "ldconfig", "uname"):
        (here / name).write_text(f'#!/bin/sh\necho "$0" >> "{canary}"\nexit 1\n')
        (here / name).chmod(0o755)
    line = ("-m", "resnet_builder", *train_line(spec, tmp_path / "run"))
    path = f":.:{os.environ['PATH']}"
    end = call(*line, folder=here, PATH=path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert end.returncode == 0, end.stderr
    assert not canary.exists(), canary.read_text()
    assert list((tmp_path / "cache" / "resnet-builder" / "kernels").glob("*.so"))


@pytest.mark.slow
@NEEDS_ROOT
def test_compiled_code_of_another_user_does_not_run(tmp_path: Path) -> None:
    spec = write_experiment(tmp_path, "compiled", epochs=1)
    kept, canary = tmp_path / "kept", tmp_path / "canary"
    line = ("-m", "resnet_builder", *train_line(spec, tmp_path / "run"))
    first = call(*line, folder=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(kept))
    assert first.returncode == 0, first.stderr
    modules = list(kept.rglob("*.py"))
    assert modules
    for module in modules:
        module.write_text(module.read_text() + PLANTED.format(canary=str(canary)))
    for path in (kept, *kept.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    shutil.rmtree(tmp_path / "run")
    again = call(*line, folder=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(kept))
    assert again.returncode == 0, again.stderr
    assert not canary.exists()
    reason = f"compiled code is kept for this process only: {kept}: it belongs to another user"
    assert reason in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "home",
    [
        "unknown",
        pytest.param("another user's", marks=NEEDS_ROOT),
    ],
)
def test_user_without_a_home_trains_with_a_notice(home: str, tmp_path: Path) -> None:
    (tmp_path / "homeless.py").write_text(HOMELESS)
    own = tmp_path / "home"
    own.mkdir()
    os.chown(own, NOBODY if home != "unknown" else -1, -1)
    line = ("train", "resnet20_digits", "--out", "run", "--set", "train.epochs=1")
    more = ("--set", "train.schedule=constant", "--set", "train.ema=null")
    end = call(
        *((tmp_path / "homeless.py",) if home == "unknown" else ("-m", "resnet_builder")),
        *(*line, *more),
        folder=tmp_path,
        HOME=str(own),
        XDG_CACHE_HOME="",
        CXX=shutil.which("false") or "",  # no time for kernels
    )
    assert end.returncode == 0, end.stderr
    notice = {
        "unknown": "the home directory is not known, so that nothing is cached beyond this process",
        "another user's": "compiled code is kept for this process only: "
        f"{own}: it belongs to another user",
    }[home]
    assert end.stderr.count(notice) == 1, end.stderr
    assert not list(own.iterdir())
