"""Signals: the first is obeyed when it can be, the second at once; see also ``tests/crash``."""

import os
import signal
import sys
import threading

import pytest

from resnet_builder.cli.signals import Interrupted, Signals

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143, "SIGUSR1": 143}
NAMES = [name for name in CODES if hasattr(signal, name)]

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
