"""Time that the program and the library take to start, and the memory that they hold.

    python benchmarks/startup.py [--turns 7]

writes ``benchmarks/results/startup.json``: medians of processes that were started in turns, and of
building bundled specs. Memory is the most that a process held. Not for Windows.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

BUILD = """
import time
from resnet_builder import build_from_spec
build_from_spec("resnet20")  # imports what building needs
started = time.perf_counter()
build_from_spec({spec!r}, seed=0)
print(time.perf_counter() - started)
"""

PROGRAM = (sys.executable, "-m", "resnet_builder")
STARTS: dict[str, tuple[str, ...]] = {
    "python": (sys.executable, "-c", "pass"),
    "import torch": (sys.executable, "-c", "import torch"),
    "import resnet_builder": (sys.executable, "-c", "import resnet_builder"),
    "resnet-build --help": (*PROGRAM, "--help"),
    "resnet-build list specs": (*PROGRAM, "list", "specs"),
    "resnet-build validate resnet20": (*PROGRAM, "validate", "resnet20"),
    "resnet-build summary resnet20": (*PROGRAM, "summary", "resnet20"),
}
SPECS = ("resnet20", "resnet110", "resnet1202", "resnet50", "resnet152", "wrn28_10")


def main() -> None:
    """Start everything in turns, and write medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    builds = {spec: (sys.executable, "-c", BUILD.format(spec=spec)) for spec in SPECS}
    runs: dict[str, list[Run]] = {name: [] for name in (*STARTS, *builds)}
    for _ in range(given.turns):
        for name, command in {**STARTS, **builds}.items():
            runs[name].append(run(command))
        # Not before: it imports torch, and a process counts what its parent held at its start.
        from common import RESULTS, describe_machine, write

    report = {
        "what": f"seconds and MiB of starting and of building, medians of {given.turns}",
        "machine": describe_machine(),
        "starts": {name: figures(runs[name]) for name in STARTS},
        "builds": {
            name: {**figures(runs[name]), "seconds": median([float(one.out) for one in runs[name]])}
            for name in builds
        },
    }
    write(RESULTS / "startup.json", report)


@dataclass(frozen=True, slots=True)
class Run:
    """A process that has ended.

    Attributes:
        seconds: From its start to its end.
        mib: The most memory that it held.
        out: What it printed.
    """

    seconds: float
    mib: float
    out: str


def run(command: tuple[str, ...]) -> Run:
    """Run a command to its end."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Run(time.perf_counter() - started, usage.ru_maxrss / unit, out)


def figures(runs: list[Run]) -> dict[str, float]:
    """Sum up a command that ran several times."""
    return {
        "seconds": median([one.seconds for one in runs]),
        "mib": round(statistics.median(one.mib for one in runs), 1),
    }


def median(seconds: list[float]) -> float:
    """Return the median as it is written down."""
    return round(statistics.median(seconds), 4)


if __name__ == "__main__":
    main()
