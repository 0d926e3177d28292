"""Signals: the first is obeyed when it can be, the second at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from resnet_builder.cli.signals import Interrupted, Signals
from resnet_builder.data.interfaces import AUGMENTATIONS
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.weights.file import read_weights
from tests.cli.experiments import call, write_tiny

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent by os.kill")


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", NAMES)
def test_signal_interrupts_where_nothing_has_to_be_finished(name: str) -> None:
    with Signals() as handled, pytest.raises(Interrupted) as raised:
        send(name)
    assert raised.value.exit_code == handled.exit_code == CODES[name]


@pytest.mark.parametrize("name", NAMES)
def test_signal_is_noticed_by_polling(name: str) -> None:
    with Signals() as handled, handled.polled() as stop:
        assert not stop()
        send(name)
        assert stop()
    assert handled.exit_code == CODES[name]


def test_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with Signals() as handled, handled.polled():
        send("SIGTERM")
        assert ended == []
        send("SIGINT")
    assert ended == [130]


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as handled:
            send("SIGHUP")
        assert handled.exit_code is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_process_of_several_takes_a_second_signal_for_the_first() -> None:
    with Signals() as handled, handled.polled() as stop:
        handled.is_polled = True
        send("SIGTERM")
        send("SIGINT")
        assert stop()
    assert handled.exit_code == 143


def test_outside_the_main_thread_nothing_is_handled() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def enter() -> None:
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


PLUGIN = """\
import os, signal
from resnet_builder.data.interfaces import AUGMENTATIONS

@AUGMENTATIONS.register("sending")
class Sending:
    works_on = "any"
    calls = 0

    def __call__(self, batch, draws):
        Sending.calls += 1
        if Sending.calls == 6:
            os.kill(os.getpid(), signal.SIGNAL)
        return batch
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signal_while_training_saves_and_says_how_to_go_on(
    name: str, code: int, folder: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run comes to the weights of one that was never interrupted."""
    monkeypatch.setattr(AUGMENTATIONS, "_parts", dict(AUGMENTATIONS._parts))
    (folder / "sending.py").write_text(PLUGIN.replace("SIGNAL", name))
    spec = write_tiny(folder)
    augment = "data.augment=[horizontal_flip, sending]"
    interrupted = call("train", spec, "--out", "run", "--set", augment, "--plugin", "sending.py")
    assert interrupted.exit_code == code
    assert interrupted.stdout == ""
    assert interrupted.stderr.endswith(
        ", which is saved; to resume: resnet-build train --resume run\n"
    )
    assert list(RunDirectory(Path("run")).checkpoints.glob("step-*"))

    resumed = call("train", "--resume", "run", "--plugin", "sending.py")
    assert resumed.exit_code == 0, resumed.stderr
    resumed_weights, _ = read_weights(folder / "run" / "last.safetensors")
    weights, _ = read_weights(finished_run / "last.safetensors")
    assert all(torch.equal(resumed_weights[key], weights[key]) for key in weights)


SLOW = """\
import sys, time
print("importing", file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_signal_while_starting_ends_soon(tmp_path: Path) -> None:
    """A process of its own, whose signal comes in the middle of an import."""
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    spec = str(write_tiny(tmp_path))
    command = [sys.executable, "-m", "resnet_builder", "train", spec, "--plugin", "slow.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 143
    assert stderr == ""
    assert not (tmp_path / "runs").exists()
