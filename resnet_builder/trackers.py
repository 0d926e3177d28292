"""Trackers: metrics of a training for other programs (CSV, TensorBoard, W&B, MLflow).

Each is a small class that a spec names under ``run.log``. It is given plain numbers, in a thread
of its own; :mod:`resnet_builder.training.tracking` drives it. The libraries are imported only
inside :meth:`Tracker.start`.
"""

import csv
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError

from resnet_builder.errors import UsageError, the_extra
from resnet_builder.registry import Registry
from resnet_builder.runs.files import append_line, write_atomically
from resnet_builder.runs.group import is_group
from resnet_builder.spec.section import Part

Scalar = str | int | float | bool
Split = Literal["train", "val", "test"]
Outcome = Literal["finished", "stopped", "failed"]

PROJECT = "resnet-builder"
"""Project of W&B and experiment of MLflow, if neither spec nor environment names one."""

Label = Annotated[str, Field(min_length=1, max_length=128)]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Run that a tracker is started for.

    Attributes:
        directory: Run directory.
        step: Steps done by earlier processes; 0 for a new run. Steps after it are computed again.
        hyperparameters: Values of the resolved spec, by dotted keys as ``train.optimizer.lr``.
    """

    directory: Path
    step: int
    hyperparameters: Mapping[str, Scalar]

    @property
    def group(self) -> str | None:
        """Name of the seeds or of the sweep that the run belongs to."""
        folder = self.directory.resolve().parent
        return folder.name if is_group(folder) else None

    @property
    def name(self) -> str:
        """Name of the run: that of its directory, with its group's before it."""
        name = self.directory.resolve().name
        return name if self.group is None else f"{self.group}/{name}"


class Tracker:
    """Base class of trackers; a subclass registers itself in :data:`TRACKERS`.

    Its keyword-only arguments are its options. All methods are called in one thread, which is not
    the training's: a tracker may be slow, and an error of it becomes a warning. A point is never
    to be shown twice: after a resume, the steps behind ``run.step`` come again.

    Attributes:
        requires: Package that must be installed.
    """

    requires: ClassVar[str | None] = None

    def start(self, run: TrackedRun) -> None:
        """Start tracking a run, or continue with it."""

    def log(self, split: Split, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of the weights after ``step`` steps.

        Args:
            split: Images that they are of. ``"test"`` comes once, at the end.
            step: Steps done.
            metrics: Values by the names of ``metrics.jsonl``: ``train.loss``, ``lr``, ``val.top1``.
        """

    def finish(self, result: Mapping[str, float], weights: Path) -> None:
        """Log the result of a finished run.

        Args:
            result: Numbers of ``result.json``, by their names there.
            weights: File of the selected weights.
        """

    def close(self, outcome: Outcome) -> None:
        """Write what is not written yet: training has ended; if stopped, it may be resumed."""


TRACKERS: Registry[Callable[..., Tracker]] = Registry("tracker")


def check_packages(log: Iterable[Part]) -> None:
    """Check that the packages of trackers are installed; nothing is imported.

    Args:
        log: Trackers, ``run.log`` of a spec.

    Raises:
        UsageError: One is missing.
    """
    for part in log:
        package = getattr(TRACKERS.get(part.type), "requires", None)
        if package is None or find_spec(package) is not None:
            continue
        needed = f"the package {package}: pip install {package}"
        if package in {"tensorboard", "wandb", "mlflow"}:
            needed = the_extra(package)
        raise UsageError(f"run.log: the tracker {part.type} needs {needed}")


@TRACKERS.register("csv")
class Csv(Tracker):
    """Table ``metrics.csv`` in the run directory, one row for each report."""

    columns = (
        "step",
        *("epoch", "lr", "images_per_second", "train.loss", "train.top1"),
        *(
            f"{split}.{name}"
            for split in ("val", "test")
            for name in ("loss", "top1", "top5", "map")
        ),
    )

    def start(self, run: TrackedRun) -> None:
        """Write the header; of an older file, keep the rows up to the step, without the test's."""
        self._path = run.directory / "metrics.csv"
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if _is_kept(row, run.step)]
        lines = [",".join(self.columns), *(",".join(row.values()) for row in rows)]
        write_atomically(self._path, ["".join(f"{line}\n" for line in lines).encode()])

    def log(self, split: Split, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row."""
        values = {"step": step, **metrics}
        append_line(self._path, ",".join(str(values.get(name, "")) for name in self.columns))


def _is_kept(row: Mapping[str, str | None], step: int) -> bool:
    """Whether a row of an older file stays: a row that was half written does not."""
    number = row.get("step") or ""
    is_test = any(value for name, value in row.items() if str(name).startswith("test."))
    return number.isdecimal() and int(number) <= step and None not in row.values() and not is_test


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """TensorBoard's event files, in ``tensorboard/`` of the run directory.

    The options are a table under HPARAMS. After a resume, TensorBoard leaves out the steps that are
    computed again (``purge_step`` of ``torch.utils.tensorboard``).
    """

    requires = "tensorboard"

    def start(self, run: TrackedRun) -> None:
        """Open a file of events."""
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        folder = str(run.directory / "tensorboard")
        self._writer: Any = SummaryWriter(folder, purge_step=run.step + 1)

    def log(self, split: Split, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars; slashes in their names make groups."""
        for name, value in metrics.items():
            self._writer.add_scalar(_grouped(name), value, step)
        self._writer.flush()

    def finish(self, result: Mapping[str, float], weights: Path) -> None:
        """Write the hyperparameters with the result: one row of the table under HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        # Only accuracies, whose names have dots: each is a chart of one point, too.
        numbers = {f"result/{name}": value for name, value in result.items() if "." in name}
        for summary in hparams(dict(self._run.hyperparameters), numbers):
            self._writer.file_writer.add_summary(summary)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, int(result["steps"]))

    def close(self, outcome: Outcome) -> None:
        """Close the file."""
        self._writer.close()


class _Position(BaseModel):
    """Place in a tracker's own store: what a resumed run needs to go on there.

    Attributes:
        id: Identifier of the run in the store.
        uri: Address of the store, or of the run in it.
        steps: Last step that was logged, by split.
        points: Number of points that were logged.
    """

    id: str
    uri: str = ""
    steps: dict[str, int] = {}
    points: int = 0


class _AppendOnly(Tracker):
    """Base of trackers whose stores take no point back: one that is there is not sent again.

    ``NAME.json`` in the run directory keeps the position.
    """

    _position: _Position
    _path: Path

    def _read(self, path: Path) -> _Position | None:
        self._path = path
        try:
            return _Position.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _write(self) -> None:
        write_atomically(self._path, [self._position.model_dump_json().encode() + b"\n"])

    def _is_new(self, split: Split, step: int) -> bool:
        """Whether a point was not logged yet; it counts as logged from now on."""
        is_new = step > self._position.steps.get(split, -1)
        if is_new:
            self._position.steps[split] = step
            self._position.points += 1
        return is_new


@TRACKERS.register("wandb")
class WeightsAndBiases(_AppendOnly):
    """Weights & Biases, in ``wandb/`` of the run directory; offline, unless WANDB_MODE says online.

    Only the environment decides whether anything is sent: a spec may come from anywhere.
    ``wandb sync RUN/wandb/offline-run-*`` sends what was tracked offline.

    Args:
        project: Project; by default WANDB_PROJECT, else `resnet-builder`.
        name: Name of the run; by default that of its directory.
        group: Group of runs; by default the directory of several seeds, or of a sweep.
        weights: Whether the selected weights are logged as an artifact.
    """

    requires = "wandb"

    def __init__(
        self,
        *,
        project: Label | None = None,
        name: Label | None = None,
        group: Label | None = None,
        weights: bool = False,
    ) -> None:
        self._project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._name, self._group, self._weights = name, group, weights

    def start(self, run: TrackedRun) -> None:
        """Make a run of W&B, or continue with the one of the run directory."""
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if mode == "online" and not wandb.login(prompt=False):  # a training asks no questions
            raise ConnectionError("there is no API key; run `wandb login`")
        self._position = self._read(run.directory / "wandb.json") or _Position(id=_new_id())
        self._run: Any = wandb.init(
            project=self._project,
            name=self._name or run.name,
            group=self._group or run.group,
            id=self._position.id,
            resume="allow",
            config=dict(run.hyperparameters),
            allow_val_change=True,
            dir=run.directory,
            mode=mode,
            reinit="create_new",  # a run of the caller's own stays as it is
            settings=wandb.Settings(silent=True, console="off"),
        )
        if mode == "online":
            self._position.uri = self._run.url or ""
        self._run.define_metric("*", step_metric="step")
        self._write()

    def log(self, split: Split, step: int, metrics: Mapping[str, float]) -> None:
        """Log a point, with `step` as the axis: W&B's own counter must rise with each point."""
        if self._is_new(split, step):
            # Given, as W&B would count from 0 again when an offline run is resumed.
            self._run.log({"step": step, **_all_grouped(metrics)}, step=self._position.points)
            self._write()

    def finish(self, result: Mapping[str, float], weights: Path) -> None:
        """Write the result into the run's summary."""
        self._run.summary.update({f"result/{name}": value for name, value in result.items()})
        if self._weights:
            import wandb

            artifact = wandb.Artifact(f"{self._run.id}-weights", type="model")
            artifact.add_file(str(weights))
            self._run.log_artifact(artifact)

    def close(self, outcome: Outcome) -> None:
        """End the run of W&B."""
        self._run.finish(exit_code=int(outcome != "finished"))


@TRACKERS.register("mlflow")
class Mlflow(_AppendOnly):
    """MLflow, in the store that MLflow itself chooses.

    That is MLFLOW_TRACKING_URI, else `mlflow.db` in the working directory, where `mlflow ui` looks.
    A resumed run continues in the store where it was begun.

    Args:
        experiment: Experiment; by default MLFLOW_EXPERIMENT_NAME, else `resnet-builder`.
        name: Name of the run; by default that of its directory.
        weights: Whether the selected weights are logged as an artifact.
    """

    requires = "mlflow"

    def __init__(
        self,
        *,
        experiment: Label | None = None,
        name: Label | None = None,
        weights: bool = False,
    ) -> None:
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self._name, self._weights = name, weights

    def start(self, run: TrackedRun) -> None:
        """Make a run of MLflow, or continue with the one that the run directory names."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # not into the progress bars
        import mlflow
        from mlflow.entities import Param

        found = self._read(run.directory / "mlflow.json")
        uri = found.uri if found else mlflow.get_tracking_uri()
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        if found is None:
            made = self._client.create_run(
                self._experiment_id(),
                run_name=self._name or run.name,
                tags={"resnet_builder.run": str(run.directory.resolve())},
            )
            found = _Position(id=made.info.run_id, uri=uri)
        self._position = found
        self._client.update_run(found.id, status="RUNNING")
        # A parameter of MLflow never changes: another value is a tag beside it.
        logged = self._client.get_run(found.id).data.params
        values = {name: str(value)[:6000] for name, value in run.hyperparameters.items()}
        new = [Param(name, value) for name, value in values.items() if name not in logged]
        for first in range(0, len(new), 100):
            self._client.log_batch(found.id, params=new[first : first + 100])
        for name, value in values.items():
            if logged.get(name, value) != value:
                self._client.set_tag(found.id, f"changed.{name}", value)
        self._write()

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return found.experiment_id if found else self._client.create_experiment(self._experiment)

    def log(self, split: Split, step: int, metrics: Mapping[str, float]) -> None:
        """Log a point."""
        if self._is_new(split, step):
            self._log_batch(_all_grouped(metrics), step)
            self._write()

    def finish(self, result: Mapping[str, float], weights: Path) -> None:
        """Log the result, as metrics at the last step."""
        numbers = {f"result/{name}": value for name, value in result.items()}
        self._log_batch(numbers, int(result["steps"]))
        if self._weights:
            self._client.log_artifact(self._position.id, str(weights))

    def _log_batch(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time() * 1000)
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._position.id, metrics=points)

    def close(self, outcome: Outcome) -> None:
        """End the run of MLflow."""
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self._client.set_terminated(self._position.id, status)


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def _grouped(name: str) -> str:
    """Name with a slash, by which charts are grouped: ``train/loss``."""
    return name.replace(".", "/", 1)


def _all_grouped(metrics: Mapping[str, float]) -> dict[str, float]:
    return {_grouped(name): value for name, value in metrics.items()}
