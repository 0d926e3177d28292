"""Several processes of one training, of which some are killed, asked to stop, or fail."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.runs.records import EnvRecord, ResultRecord
from tests.crash.experiments import Trial, train_line
from tests.crash.program import Child, CommandLine, Fault, Server, family, kill, wait_until

pytestmark = pytest.mark.ci

SOON = 30.0
"""Seconds that a hang is told by; a lost process is noticed at once."""

STEP = "resnet_builder.training.step:TrainStep.__call__"
BATCH = "resnet_builder.data.loader:Pipeline.__call__"
STARTED = "training from step"
ENDLESS = ("--set", "train.epochs=100000", "--set", "run.compile=false")


class Launch(Trial):
    """An experiment that two processes train."""

    def start(self, *more: object, rank: str | None = None, fault: Fault = (), **how: Any) -> Child:
        """Train the run, from where it is, with a fault in one of the processes or in both."""
        return super().start(*more, "--nproc", 2, faults=[("forking", rank, *fault)])

    @property
    def resume_command(self) -> str:
        """Command that a run prints when it is stopped."""
        return f"{super().resume_command} --nproc 2"


@pytest.fixture
def launch(server: Server, tmp_path: Path) -> Launch:
    return Launch(server, tmp_path, "plain")


def test_leader_alone_prints_and_writes(launch: Launch) -> None:
    end = launch.train("--json", "--set", "train.epochs=1")
    assert end.code == 0, end.stderr
    assert json.loads(end.stdout)["steps"] == 7
    for line in ("run directory: ", STARTED, "step 7: test loss"):
        assert end.stderr.count(line) == 1, end.stderr
    assert "1 thread in each of 2 processes" in end.stderr
    assert launch.run.log.read_text().count("finished after 7 steps") == 1
    assert EnvRecord.read(launch.run.env).runtime.world_size == 2
    again = launch.train("--set", "train.epochs=1")
    assert again.code == 0
    assert again.stderr == f"{launch.run.path} is already complete\n"


@pytest.mark.parametrize("rank", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_killed_process_ends_all_and_the_run_can_go_on(rank: str, launch: Launch) -> None:
    end = launch.train(rank=rank, fault=("in_call", STEP, 11, "SIGKILL"))
    assert end.code == 9
    gone, ended = end.stderr.splitlines()[-2:]
    assert gone == (
        "error: a process of this training is gone, or has not answered for 30 minutes; "
        f"to resume: {launch.resume_command}"
    )
    assert ended == f"process {rank} was ended by signal 9 (Killed)"
    assert launch.steps == [6, 9]

    alone = Trial.start(launch).wait()
    assert alone.code == 0, alone.stderr
    assert (
        "the run resumes, but not to the same bits: runtime.world_size was 2 and is 1\n"
        in alone.stderr
    )
    assert "training from step 9 of 84" in alone.stderr
    assert ResultRecord.read(launch.run.result).steps == 84


PHASES = {
    "loading": ("0", "resnet_builder.training.session:load_data"),
    "building": ("1", "resnet_builder.training.session:build"),
    "setting up": ("0", "resnet_builder.training.resume:resolve_environment"),
    "evaluating": ("1", "resnet_builder.training.trainer:evaluate_images"),
    "finishing": ("0", "resnet_builder.training.trainer:finalize"),
}


# A process that is lost and one that fails end the others by one path, in each phase.
KILLED = ("loading", "finishing")


@pytest.mark.parametrize(
    "phase",
    [pytest.param(one, marks=[] if one in KILLED else pytest.mark.slow) for one in PHASES],
)
def test_process_that_is_killed_in_any_phase_ends_all(phase: str, launch: Launch) -> None:
    rank, call = PHASES[phase]
    fault = ("in_call", call, 1, "SIGKILL")
    end = launch.train("--set", "train.epochs=1", rank=rank, fault=fault)
    assert end.code == 9
    assert end.stderr.splitlines()[-1] == f"process {rank} was ended by signal 9 (Killed)"
    assert end.stderr.count("error: ") <= 1
    assert ("to resume: " in end.stderr) is (phase in {"evaluating", "finishing"})


@pytest.mark.parametrize(
    "phase",
    [pytest.param(one, marks=pytest.mark.slow if one in KILLED else []) for one in PHASES],
)
def test_error_of_one_process_in_any_phase_is_told_once(phase: str, launch: Launch) -> None:
    rank, call = PHASES[phase]
    fault = ("raising", "ResourceError", "no memory left", call, 1)
    end = launch.train("--set", "train.epochs=1", rank=str(1 - int(rank)), fault=fault)
    assert end.code == 6
    assert end.stderr.count("error: ") == 1
    assert end.stderr.endswith("error: no memory left\n")


@pytest.mark.parametrize(
    ("name", "code", "to"),
    [
        ("SIGINT", 130, "group"),
        ("SIGTERM", 143, "launcher"),
        pytest.param("SIGINT", 130, "launcher", marks=pytest.mark.slow),
        pytest.param("SIGTERM", 143, "group", marks=pytest.mark.slow),
    ],
)
def test_signal_stops_all_after_one_step(name: str, code: int, to: str, launch: Launch) -> None:
    """A process of the group is sent the signal twice, which is no second request."""
    child = launch.start(*ENDLESS)
    child.wait_for(STARTED)
    number = getattr(signal, name)
    (os.killpg if to == "group" else os.kill)(child.pid, number)
    end = launch.ended(child)
    assert end.code == code
    last = end.stderr.splitlines()[-1]
    step = max(launch.steps)
    assert last == (
        f"stopped after step {step}, which is saved; to resume: {launch.resume_command}"
    )


def test_signal_to_one_process_stops_all(launch: Launch) -> None:
    end = launch.train(rank="1", fault=("in_call", STEP, 5, "SIGTERM"))
    assert end.code == 143
    assert end.stderr.count("stopped after step 5,") == 1
    assert max(launch.steps) == 5


def test_second_signal_ends_all_at_once(launch: Launch) -> None:
    """The first cannot be obeyed: one process is halted in the middle of a step."""
    child = launch.start(rank="1", fault=("in_call", STEP, 2, "SIGSTOP"))
    child.wait_for(STARTED)
    time.sleep(2)  # until the process is halted
    kill(child, signal.SIGINT)
    time.sleep(0.5)  # or the two would be one
    kill(child, signal.SIGINT)
    end = launch.ended(child)
    assert end.code == 130


def test_processes_end_with_who_started_them(launch: Launch) -> None:
    child = launch.start(*ENDLESS)
    child.wait_for(STARTED)
    kill(child)
    assert child.wait().code == -signal.SIGKILL
    wait_until(lambda: not family(child), SOON)
    assert "stopped after step" in child.stderr.read_text()
    assert launch.steps
    assert not launch.run.is_locked


@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_error_of_one_process_is_told_once_with_its_code(rank: str, launch: Launch) -> None:
    fault = ("raising", "DataError", "image 5 is broken", BATCH, 4)
    end = launch.train(rank=rank, fault=fault)
    assert end.code == 3
    assert end.stderr.count("error: ") == 1
    assert end.stderr.endswith("error: image 5 is broken\n")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("train.optimizer.lr=1e30", 5, "is not finite"),
        ("train.batch_size=13", 2, "13 images cannot be divided among 2 processes; give a mul"),
        ("train.learning_rate=1", 2, "error[unknown-key]"),
        ("run.device=cuda", 2, "there is no device 'cuda' here"),
    ],
)
def test_error_of_all_is_told_once(change: str, code: int, message: str, launch: Launch) -> None:
    end = launch.train("--set", change)
    assert end.code == code
    assert end.stderr.count(message) == 1, end.stderr
    assert len(re.findall(r"\berror[:\[]", end.stderr)) == 1, end.stderr


def test_bug_of_one_process_is_told_once_and_logged(launch: Launch) -> None:
    end = launch.train(fault=("raising", "AttributeError", "no such thing", BATCH, 4))
    assert end.code == 1
    assert end.stderr.count("internal error: AttributeError: no such thing") == 1
    assert "no such thing" in launch.run.crash_log.read_text()


def test_processes_that_something_else_started_train_too(
    server: Server, launch: Launch, tmp_path: Path
) -> None:
    """As ``torchrun`` does it on two machines, where no agent keeps the store."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    line = train_line(launch.spec, launch.run.path, "--set", "train.epochs=1")
    children = [
        server.start(*line, folder=tmp_path, faults=[("among", "2", str(rank), str(port))])
        for rank in range(2)
    ]
    leader, other = (child.wait(SOON) for child in children)
    assert (leader.code, other.code) == (0, 0), leader.stderr + other.stderr
    assert "step 7: test loss" in leader.stderr
    assert (other.stdout, other.stderr) == ("", "")


def test_nproc_must_agree_with_torchrun(launch: Launch) -> None:
    line = train_line(launch.spec, launch.run.path, "--nproc", 3)
    end = launch.server.call(*line, folder=launch.folder, faults=[("among", "2", "1", "1")])
    assert end.code == 2
    assert end.stderr == "error: --nproc 3: this is already one of 2 processes; leave it out\n"


@pytest.mark.parametrize("starter", ["--nproc", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_true_command_line_trains(starter: str, launch: Launch) -> None:
    """Imports and all: its processes share nothing with the one that starts them."""
    line = train_line(launch.spec, launch.run.path, "--set", "train.epochs=1")
    if starter == "--nproc":
        process = CommandLine(*line, "--nproc", 2, folder=launch.folder)
    else:
        torchrun = ("torch.distributed.run", "--nproc-per-node", 2, "-m", "resnet_builder")
        process = CommandLine(*line, folder=launch.folder, module=torchrun)
    end = process.wait()
    assert end.code == 0, end.stderr
    assert end.stdout.count("test top-1") == 1
    assert end.stderr.count("1 thread in each of 2 processes") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_that_waits_for_the_others_ends_at_once(
    number: int, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    alone = CommandLine(*train_line(launch.spec, launch.run.path), folder=launch.folder)

    def is_waiting() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", int(port))) == 0

    wait_until(is_waiting, 60)
    time.sleep(0.5)
    os.kill(alone.pid, number)
    assert alone.wait(10).code == -number
