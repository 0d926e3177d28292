"""Status of a run: whether it is finished, runs, was stopped or failed, and how far it came."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet_builder.errors import ResnetBuilderError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, ResultRecord
from resnet_builder.spec.yaml_source import parse_plain
from resnet_builder.system import open_regular

FAILED = "failed"
"""Word that a line of ``train.log`` begins with, behind the time, if training failed."""

State = Literal[
    "finished",
    "finished early",
    "running",
    "stopped",
    "failed",
    "killed",
    "unreadable",
    "waiting",
    "pruned",
]

_STARTED = re.compile(r"from step (\d+) of (\d+) ")
_TAIL_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of ``train.log``.

    Attributes:
        time: Time, in UTC.
        text: Text behind the time.
    """

    time: str
    text: str

    @property
    def start(self) -> int | None:
        """Step from which a process trained on; ``None`` of other lines."""
        found = _STARTED.match(self.text)
        return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Status of a run, as far as its files tell it.

    Attributes:
        path: Run directory.
        state: ``finished``; ``finished early`` by early stopping; ``running``; ``stopped`` by a
            signal; ``failed`` by an error; ``killed``, that is, ended without a word;
            ``unreadable``; or, of the runs of a group, ``waiting`` or ``pruned``.
        step: Steps done; those of the newest checkpoint, if the run has ended without a result.
        total_steps: Steps of the recipe.
        seed: Seed of the recipe.
        seconds: Training time so far.
        val_top1: Best top-1 accuracy on the validation images.
        val_map: Best mean average precision on them, where images have several labels.
        result: Result of a finished run.
        error: Reason of a failure, or why the run cannot be read.
    """

    path: Path
    state: State
    step: int | None = None
    total_steps: int | None = None
    seed: int | None = None
    seconds: float | None = None
    val_top1: float | None = None
    val_map: float | None = None
    result: ResultRecord | None = None
    error: str | None = None

    @property
    def test_top1(self) -> float | None:
        """Top-1 accuracy on the test images."""
        return None if self.result is None else self.result.test_top1

    @property
    def test_map(self) -> float | None:
        """Mean average precision on the test images, where images have several labels."""
        return None if self.result is None else self.result.test_map

    @property
    def test_top1_difference(self) -> float | None:
        """Difference from the published accuracy."""
        published = None if self.result is None else self.result.published
        return None if published is None else published.test_top1_difference


def find_runs(folder: Path) -> Iterator[RunStatus]:
    """Status of each run directory in a folder, by name."""
    for spec in sorted(folder.glob("*/spec.yaml")):
        yield run_status(RunDirectory(spec.parent))


def run_status(run: RunDirectory) -> RunStatus:
    """Status of a run. A file that is damaged or missing leaves out what it would tell."""
    try:
        if run.is_finished:
            return _finished(run, ResultRecord.read(run.result))
        return _unfinished(run)
    except (ResnetBuilderError, OSError) as error:
        return RunStatus(run.path, "unreadable", error=str(error))


def _finished(run: RunDirectory, result: ResultRecord) -> RunStatus:
    return RunStatus(
        run.path,
        "finished early" if result.early_stopped else "finished",
        step=result.steps,
        total_steps=result.planned_steps,
        seed=result.seed,
        seconds=result.seconds,
        val_top1=result.val_top1,
        val_map=result.val_map,
        result=result,
    )


def resume_command(
    run: Path, data_dir: Path | None = None, plugins: Sequence[str] = (), processes: int = 1
) -> str:
    """Command that resumes a run: what the run directory does not record is given again."""
    words = ["resnet-build", "train", "--resume", str(run)]
    words += [] if data_dir is None else ["--data-dir", str(data_dir)]
    words += [word for plugin in plugins for word in ("--plugin", plugin)]
    words += [] if processes == 1 else ["--nproc", str(processes)]
    return shlex.join(words)


def read_log(log: Path, size: int) -> list[LogLine]:
    """Return the last lines of a ``train.log``; none, if it cannot be read.

    Args:
        log: The file.
        size: Bytes at its end that are read.
    """
    try:
        with open_regular(log) as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except (OSError, ResnetBuilderError):
        return []
    parts = (line.partition(" ") for line in lines)
    return [LogLine(time, text) for time, _, text in parts]


def _unfinished(run: RunDirectory) -> RunStatus:
    rows = MetricsLog(run).read() if run.metrics.exists() else []
    log = [line.text for line in read_log(run.log, _TAIL_BYTES)]
    starts = [found for line in log if (found := _STARTED.match(line))]
    last = log[-1] if log else ""
    state: State = "killed"
    error = None
    if run.is_locked:
        state = "running"
    elif last.startswith(f"{FAILED}: "):
        state, error = "failed", last.removeprefix(f"{FAILED}: ")
    elif last.startswith("stopped"):
        state = "stopped"
    steps = [row.step for row in rows[-1:]] if state == "running" else []
    return RunStatus(
        run.path,
        state,
        step=max([*steps, *run.checkpoint_files()], default=None),
        total_steps=int(starts[-1][2]) if starts else None,
        seed=_seed(run.spec),
        seconds=next((row.seconds for row in reversed(rows) if row.seconds is not None), None),
        val_top1=max((row.val_top1 for row in rows if row.val_top1 is not None), default=None),
        val_map=max((row.val_map for row in rows if row.val_map is not None), default=None),
        error=error,
    )


def _seed(spec: Path) -> int | None:
    try:
        with open_regular(spec) as file:
            values = parse_plain(file.read().decode("utf-8", "replace"), str(spec))
    except (OSError, ResnetBuilderError):
        return None
    train = values.get("train") if isinstance(values, dict) else None
    seed = train.get("seed") if isinstance(train, dict) else None
    return seed if isinstance(seed, int) else None
