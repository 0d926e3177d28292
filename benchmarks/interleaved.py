"""Interleaved timing: contenders, each a process of its own, that train or evaluate by turns.

A contender runs only in its turn, and the turns alternate, so that a noisy machine is noisy for
all. ``resnet-build`` of any checkout can be a contender: steps are counted by a hook of torch's
optimizers, and nothing of the package is used but its command line.
"""

import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from torch.optim.optimizer import register_optimizer_step_pre_hook

if TYPE_CHECKING:  # another checkout's package may be the one to import
    from resnet_builder import Spec

HERE = Path(__file__).parent
WARM_UP_STEPS = 12
SETTLE_SECONDS = 1.5
"""Start of a turn that is not timed: until then, the contender of the turn before seems to be a
busy machine, where threads of training sleep instead of spinning."""
IMAGES = 50_000


class Contender:
    """A process that trains in its turns only; starting it includes its warm-up.

    Args:
        name: Name in the report.
        command: Arguments of Python; what they run calls :func:`answer_turns`.
        checkout: Folder of the sources that it imports ``resnet_builder`` from.
        folder: Empty working directory.
        variables: Environment variables besides.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        checkout: Path,
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.rates: list[float] = []
        started = time.monotonic()
        self._log = folder / "contender.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(checkout.resolve()), **(variables or {})},
            )
        self._read()
        self.warm_up_seconds = round(time.monotonic() - started, 1)

    def take_turn(self, seconds: float) -> None:
        """Let it train for some seconds, and note its images per second."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        self.rates.append(float(self._read()))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early:\n{self._log.read_text()}")
        return line

    def summary(self) -> dict[str, object]:
        """Return the median and the quartiles of its turns."""
        low, _, high = (
            statistics.quantiles(self.rates, n=4, method="inclusive")
            if len(self.rates) > 1
            else self.rates * 3
        )
        return {
            "images_per_second.median": round(statistics.median(self.rates), 1),
            "quartiles": [round(low, 1), round(high, 1)],
            "start_and_warm_up_seconds": self.warm_up_seconds,
            "turns": [round(rate, 1) for rate in self.rates],
        }


def take_turns(contenders: Sequence[Contender], turns: int, seconds: float) -> None:
    """Let contenders train by turns, and end them."""
    for turn in range(turns):
        for contender in contenders:
            contender.take_turn(seconds)
            print(f"turn {turn + 1}, {contender.name}: {contender.rates[-1]:.0f}", file=sys.stderr)
    for contender in contenders:
        contender.end()


def speed_ups(contenders: Sequence[Contender]) -> dict[str, float]:
    """Return the first contender's speed-up over each of the others, by their medians."""
    medians = {each.name: statistics.median(each.rates) for each in contenders}
    first, *others = medians
    return {name: round(medians[first] / medians[name], 3) for name in others}


def train_command(spec: "Spec", name: str, settings: Sequence[str] = ()) -> list[str]:
    """Return the command of a contender that trains a spec as ``resnet-build train`` does.

    Args:
        spec: The spec.
        name: Its name, or a path.
        settings: What ``--set`` changes besides: the images are synthetic, and without end.
    """
    assert spec.train is not None
    model = spec.model
    size = model.image_size or 32
    size = size if isinstance(size, int) else list(size)
    shape = f"num_classes: {model.num_classes}, image_size: {size}"
    changes = [
        f"data.dataset={{type: synthetic, train: {IMAGES}, test: 1, {shape}}}",
        "data.validation=0",
        "train.steps=10000000",
        "train.schedule=constant",
        "train.checkpoint_every={seconds: 1e9}",
        *settings,
    ]
    options = [option for change in changes for option in ("--set", change)]
    return [__file__, str(spec.train.batch_size), name, "--out", "run", *options]


def answer_turns(batch_size: int) -> None:
    """Have the optimizer of this process train in turns from now on, and report to the parent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print goes to the log
    register_optimizer_step_pre_hook(_Turns(batch_size, answers))


class _Turns:
    """Hook of an optimizer's step: trains in turns, and waits for the next turn in between."""

    def __init__(self, batch_size: int, answers: TextIO) -> None:
        self._batch_size = batch_size
        self._answers = answers
        self._steps = 0
        self._is_warm = False
        self._is_settled = False
        self._seconds = 0.0
        self._started = 0.0

    def __call__(self, *_: object) -> None:
        now = time.perf_counter()
        if not self._is_warm:
            self._is_warm = self._steps >= WARM_UP_STEPS
            if self._is_warm:
                self._wait("warm")
        elif not self._is_settled:
            self._is_settled = now >= self._started + SETTLE_SECONDS
            if self._is_settled:
                self._steps, self._started = 0, now
        elif now >= self._started + self._seconds:
            self._wait(f"{self._steps * self._batch_size / (now - self._started):.2f}")
        self._steps += 1

    def _wait(self, answer: str) -> None:
        print(answer, file=self._answers, flush=True)
        self._seconds = float(sys.stdin.readline())
        self._is_settled = False
        self._steps, self._started = 0, time.perf_counter()


def answer_evaluations(spec: str, images: int) -> None:
    """Be a contender that evaluates as many test images in each turn, of whatever length."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    dataset = f"data.dataset={{type: synthetic, train: 256, test: {images}}}"
    changes = (dataset, "data.validation=0", "train.steps=1", "train.schedule=constant")
    options = [option for change in changes for option in ("--set", change)]
    with suppress(SystemExit):
        run_command("train", spec, "--out", "run", *options)
    rate = "warm"
    while True:
        print(rate, file=answers, flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        try:
            run_command("evaluate", "run", "--json")
        except SystemExit as end:
            if end.code:
                raise
        rate = f"{images / (time.perf_counter() - started):.2f}"


def run_command(*arguments: str) -> None:
    """Run ``resnet-build`` in this process."""
    sys.argv = ["resnet-build", *arguments]
    runpy.run_module("resnet_builder", run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "evaluate":
        answer_evaluations(sys.argv[2], int(sys.argv[3]))
    answer_turns(int(sys.argv[1]))
    run_command("train", *sys.argv[2:])
