"""Training throughput, augmentation included: ours against *stock* and *tuned stock*.

    python benchmarks/throughput.py resnet20 [--turns 7] [--seconds 20] [--contenders ours stock]

writes ``benchmarks/results/KIND/throughput_SPEC.json``. Each contender is a process of its own that
trains only in its turns; the turns alternate, so that a noisy machine is noisy for all.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import opponents
from machine import describe
from results import own_results, write

from resnet_builder.builder import build, read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.schema import Spec
from resnet_builder.training.callbacks import Silent, Start
from resnet_builder.training.fit import fit
from resnet_builder.training.runtime import set_backend_flags

CONTENDERS = {
    "ours": "as `resnet-build train` does it by default",
    "ours, eager": "the same with run.compile=false",
    "ours, compiled": "the same with run.compile=true",
    "stock": "per-sample PIL, fp32",
    "tuned stock": "the same with channels-last, bf16 and torch.compile",
}
WARM_UP_STEPS = 12


def main() -> None:
    """Take turns, and write each contender's rates and the ratios of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--contenders", nargs="+", default=["ours", "stock", "tuned stock"])
    parser.add_argument("--work", help="be this contender")
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.spec)
        return
    workers = {name: Worker(name, given.spec) for name in given.contenders}
    rates = take_turns(workers, given.turns, given.seconds)
    write(own_results() / f"throughput_{given.spec}.json", report(given, rates, workers))


class Worker:
    """A contender's process; starting it includes its warm-up and whatever it compiles.

    Args:
        name: What it is called.
        spec: What it trains.
        script: Called with ``SPEC --work NAME``, trains it with a :class:`Turns` as its stop.
    """

    def __init__(self, name: str, spec: str, script: str = __file__) -> None:
        command = [sys.executable, script, spec, "--work", name]
        started = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        self.warm_up_seconds = round(time.monotonic() - started, 1)

    def turn(self, seconds: float) -> float:
        """Let it train for some seconds; return its images per second."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._answer())

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self._process.wait()}")
        return line


def take_turns(workers: dict[str, Worker], turns: int, seconds: float) -> dict[str, list[float]]:
    """Let workers train by turns, and end them; return the images per second of each turn."""
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, worker in workers.items():
            rates[name].append(worker.turn(seconds))
    for worker in workers.values():
        worker.end()
    return rates


class Turns:
    """Called before every step: trains in turns, and waits for the next one in between.

    Args:
        batch_size: Images a step.
        trying: Whether steps come first that only find out how to compute; see :class:`Beginning`.
    """

    def __init__(self, batch_size: int, *, trying: bool = False) -> None:
        self.trying = trying
        self._batch_size = batch_size
        self._steps = 0
        self._warm = False
        self._started = self._end = 0.0

    def __call__(self) -> bool:
        """Count a step; wait if the turn is over."""
        if self.trying:
            return False
        now = time.perf_counter()
        if not self._warm:
            self._warm = self._steps >= WARM_UP_STEPS
            if self._warm:
                self._wait("warm")
        elif now >= self._end:
            self._wait(f"{self._steps * self._batch_size / (now - self._started):.2f}")
        self._steps += 1
        return False

    def _wait(self, answer: str) -> None:
        print(answer, flush=True)
        seconds = float(sys.stdin.readline())
        self._steps, self._started = 0, time.perf_counter()
        self._end = self._started + seconds


class Beginning(Silent):
    """Has turns begin with the training itself."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def started(self, start: Start) -> None:
        """Begin."""
        self._turns.trying = False


def work(name: str, spec_name: str) -> None:
    """Be a contender."""
    spec = spec_of(name, spec_name)
    assert spec.train is not None
    assert spec.model.image_size is not None
    turns = Turns(spec.train.batch_size, trying=name.startswith("ours"))
    network = build(spec, seed=0)
    if name.startswith("ours"):
        set_backend_flags(threads=None)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory.create(Path(folder, "run"))
            splits = load_data(spec)
            try:
                fit(network, splits, spec, run, observer=Beginning(turns), stop=turns)
            except Stopped:
                return
    opponents.train(
        network,
        size=spec.model.image_size,
        batch_size=spec.train.batch_size,
        tuned=name == "tuned stock",
        stop=turns,
    )


def spec_of(contender: str, name: str) -> Spec:
    """Return a spec's network and recipe on as many images as CIFAR-10 has, in memory."""
    model = read_spec(name).model
    shape = f"num_classes: {model.num_classes}, image_size: {model.image_size}"
    data = f"{{type: synthetic, train: {opponents.IMAGES}, test: 1, {shape}}}"
    overrides = [
        f"data.dataset={data}",
        "data.validation=0",
        "train.steps=10000000",
        "train.schedule=constant",
        "train.checkpoint_every={seconds: 1e9}",
    ]
    if contender in {"ours, eager", "ours, compiled"}:
        overrides.append(f"run.compile={str(contender == 'ours, compiled').lower()}")
    return read_spec(name, overrides=overrides)


def report(
    given: argparse.Namespace, rates: dict[str, list[float]], workers: dict[str, Worker]
) -> dict[str, object]:
    """Sum the turns up: medians, quartiles, and ours over each of the others."""
    contenders = {
        name: {"what": CONTENDERS[name], **sums(values, workers[name])}
        for name, values in rates.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "what": f"images per second of training {given.spec}, augmentation included",
        "turns": given.turns,
        "seconds": given.seconds,
        "machine": describe(),
        "contenders": contenders,
        "ours_over": {
            name: round(medians["ours"] / median, 2)
            for name, median in medians.items()
            if name != "ours" and "ours" in medians
        },
    }


def sums(rates: list[float], worker: Worker) -> dict[str, object]:
    """Sum the turns of a contender up."""
    low, _, high = (
        statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    )
    return {
        "images_per_second.median": round(statistics.median(rates), 1),
        "quartiles": [round(low, 1), round(high, 1)],
        "start_and_warm_up_seconds": worker.warm_up_seconds,
        "turns": [round(rate, 1) for rate in rates],
    }


if __name__ == "__main__":
    main()
