"""Trackers: what they are given, what their libraries read back, and that they never disturb."""

import csv
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.errors import Stopped, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.spec.section import Part
from resnet_builder.trackers import TRACKERS, Outcome, Split, TrackedRun, Tracker, check_packages
from resnet_builder.training import meter, tracking
from resnet_builder.training.callbacks import Callback, Progress
from resnet_builder.training.distributed import DistributedContext
from tests.training.runs import Recorder, after, experiment, outcome, train

Points = dict[str, list[tuple[int, float]]]
"""Steps and values by the names of ``metrics.jsonl``, in the order in which they were written."""


class Memory(Tracker):
    """Tracker that keeps what it is given."""

    calls: list[tuple[Any, ...]]
    broken: tuple[str, ...] = ()
    error: type[BaseException] = RuntimeError

    def __init__(self, *, label: str = "none") -> None:
        self.calls.append(("label", label))

    def _note(self, name: str, *values: object) -> None:
        self.calls.append((name, *values))
        if name in self.broken:
            raise self.error("no network\nmore")

    def start(self, run: TrackedRun) -> None:
        self._note("start", run)

    def log(self, split: Split, step: int, metrics: Mapping[str, float]) -> None:
        self._note("log", split, step, dict(metrics))

    def finish(self, result: Mapping[str, float], weights: Path) -> None:
        assert weights.is_file()
        self._note("finish", dict(result))

    def close(self, outcome: Outcome) -> None:
        self._note("close", outcome)


@pytest.fixture
def memory() -> Iterator[type[Memory]]:
    class Fresh(Memory):
        """Tracker of a test."""

        calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    with TRACKERS.temporary("memory", Fresh):
        yield Fresh


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report at every step, and not once a second."""
    monkeypatch.setattr(meter, "REPORT_SECONDS", 0.0)


def logging(*log: Any, **more: Any) -> Experiment:
    return experiment(run={"log": log}, schedule="linear", **more)


def test_tracker_is_given_what_the_run_records(
    tmp_path: Path, memory: type[Memory], every_step: None
) -> None:
    result = train(tmp_path / "run", logging({"type": "memory", "label": "x"}))
    (label, (_, tracked), *points, finish, close) = memory.calls
    assert label == ("label", "x")
    assert (tracked.directory, tracked.step) == (tmp_path / "run", 0)
    assert (tracked.name, tracked.group) == ("run", None)
    (tmp_path / "group.json").write_text("{}")
    assert (tracked.name, tracked.group) == (f"{tmp_path.name}/run", tmp_path.name)
    values = tracked.hyperparameters
    assert values["train.optimizer.lr"] == 0.05
    assert values["model.stages.0.channels"] == 8
    assert values["run.log.0.label"] == "x"
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    steps = [step for _, split, step, _ in points if split == "train"]
    assert steps == list(range(1, 13))
    assert [values["lr"] for _, split, _, values in points if split == "train"] == pytest.approx(
        [0.05 * (11 - step) / 11 for step in range(12)]
    )
    assert [(step, found) for _, split, step, found in points if split == "val"] == [
        (row.step, {"val.loss": row.val_loss, "val.top1": row.val_top1})
        for row in rows
        if row.event == "validation"
    ]
    assert [(split, step) for _, split, step, _ in points][-1] == (
        "test",
        result.record.selected_step,
    )
    assert finish[1]["test.top1"] == result.record.test_top1
    assert finish[1]["steps"] == 12
    assert close == ("close", "finished")


@pytest.mark.parametrize("places", [("start",), ("log",), ("finish", "close")])
def test_tracker_that_fails_warns_once_and_changes_nothing(
    tmp_path: Path, memory: type[Memory], every_step: None, places: tuple[str, ...]
) -> None:
    memory.broken, memory.error = places, SystemExit if "log" in places else RuntimeError
    recorder = Recorder()
    train(tmp_path / "run", logging("memory", "csv"), callbacks=[recorder])
    assert recorder.warnings == [
        f"tracker memory: {memory.error.__name__}: no network; training goes on without it"
    ]
    assert len(read_csv(tmp_path / "run")["train.loss"]) == 12
    log = RunDirectory(tmp_path / "run").log.read_text()
    assert log.count("warning: tracker memory") == 1
    tries = [call for call in memory.calls if call[0] == "log"]
    assert len(tries) == (0 if "start" in places else 12 + 3 + 1)
    if "log" in places:
        train(tmp_path / "plain", experiment(schedule="linear"))
        tracked, plain = outcome(tmp_path / "run"), outcome(tmp_path / "plain")
        assert (tracked["rows"], tracked["checkpoint"]) == (plain["rows"], plain["checkpoint"])


def test_training_does_not_wait_for_a_tracker(
    tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("CLOSE_SECONDS", "STOP_SECONDS"):
        monkeypatch.setattr(tracking, limit, 0.05)
    release = threading.Event()
    monkeypatch.setattr(memory, "start", lambda self, run: release.wait(20))
    recorder = Recorder()
    with pytest.raises(Stopped):
        train(tmp_path / "run", logging("memory"), callbacks=[recorder], should_stop=after(3))
    result = train(tmp_path / "run", logging("memory"), callbacks=[recorder])
    release.set()
    assert result.record.steps == 12
    assert [one.partition(" within")[0] for one in recorder.warnings] == [
        "tracker memory: it did not end",
        "tracker memory: it did not end",
    ]


def test_stopped_training_closes_its_trackers(tmp_path: Path, memory: type[Memory]) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "run", logging("memory"), should_stop=after(3))
    assert memory.calls[-1] == ("close", "stopped")
    train(tmp_path / "run", logging("memory"))
    starts = [call[1].step for call in memory.calls if call[0] == "start"]
    assert starts == [0, 3]


def test_only_the_main_process_tracks(tmp_path: Path, memory: type[Memory]) -> None:
    run, other = RunDirectory(tmp_path), DistributedContext(rank=1, world_size=2)
    tracking.run_callbacks([], logging("memory"), run, other).on_progress(None)  # type: ignore[arg-type]
    assert not memory.calls
    assert not list(tmp_path.iterdir())


def test_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError) as caught:
        check_packages([Part(type="csv"), Part(type="wandb")])
    assert str(caught.value) == (
        "run.log: the tracker wandb needs the extra \"wandb\": pip install 'resnet-builder[wandb]'"
    )


def test_csv_that_cannot_be_written_is_a_warning(tmp_path: Path, every_step: None) -> None:
    (tmp_path / "run" / "metrics.csv").mkdir(parents=True)
    recorder = Recorder()
    train(tmp_path / "run", logging("csv"), callbacks=[recorder])
    [warning] = recorder.warnings
    assert warning.startswith("tracker csv: ")


# ---- read back by the libraries ------------------------------------------------------------------


class Crash(Callback):
    """Callback that ends a training at a step, as a kill would: nothing is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_progress(self, progress: Progress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


def read_csv(run: Path) -> Points:
    points: Points = {}
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    points.setdefault(name, []).append((int(row["step"]), float(value)))
    return points


def read_tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        name.replace("/", "."): [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def read_wandb(run: Path) -> Points:
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    numbers: list[int] = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            items = record.history.item
            row = {(one.key or "/".join(one.nested_key)): one.value_json for one in items}
            numbers.append(int(row["_step"]))
            for name, value in row.items():
                if not name.startswith("_") and name != "step":
                    key = name.replace("/", ".")
                    points.setdefault(key, []).append((int(row["step"]), float(value)))
    assert numbers == sorted(set(numbers))
    return points


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log, W&B's file, which begins with a header of 7 bytes."""
    block, place, record = 32_768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield record
            record = b""


def read_mlflow(run: Path) -> Points:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=mlflow.get_tracking_uri())
    found = client.get_experiment_by_name("resnet-builder")
    [one] = client.search_runs([found.experiment_id])
    assert one.info.status == "FINISHED"
    assert one.data.params["train.optimizer.lr"] == "0.05"
    return {
        name.replace("/", "."): [
            (point.step, point.value) for point in client.get_metric_history(one.info.run_id, name)
        ]
        for name in one.data.metrics
    }


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("csv", read_csv),
        pytest.param("tensorboard", read_tensorboard, marks=pytest.mark.ci),
        pytest.param("wandb", read_wandb, marks=pytest.mark.slow),
        pytest.param("mlflow", read_mlflow, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore")  # those of other packages
def test_points_of_a_killed_and_resumed_run_are_there_once(
    name: str,
    read: Callable[[Path], Points],
    tmp_path: Path,
    every_step: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name in {"wandb", "mlflow"}:
        pytest.importorskip(name)
        monkeypatch.setattr(tracking, "CLOSE_SECONDS", 100.0)
        monkeypatch.setattr(tracking, "STOP_SECONDS", 100.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = logging(name, checkpoint_every={"steps": 3})
    recorder = Recorder()
    for step in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", spec, callbacks=[Crash(step), recorder])
    result = train(tmp_path / "run", spec, callbacks=[recorder])
    assert not recorder.warnings
    assert [start.step for start in recorder.starts] == [0, 0, 6]
    points = read(tmp_path / "run")
    assert [step for step, _ in points["train.loss"]] == list(range(1, 13))
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    val = [(row.step, row.val_top1) for row in rows if row.event == "validation"]
    test = [(result.record.selected_step, result.record.test_top1)]
    for split, recorded in (("val", val), ("test", test)):
        steps, values = zip(*points[f"{split}.top1"], strict=True)
        assert steps == tuple(step for step, _ in recorded)
        assert values == pytest.approx([value for _, value in recorded])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of other packages
def test_wandb_and_mlflow_keep_settings_and_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, mlflow = pytest.importorskip("wandb"), pytest.importorskip("mlflow")
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 100.0)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    recorder = Recorder()
    both = (
        {"type": "wandb", "project": "p", "name": "n", "group": "g", "weights": True},
        {"type": "mlflow", "experiment": "e", "name": "n", "weights": True},
    )
    result = train(tmp_path / "run", logging(*both), callbacks=[recorder])
    assert not recorder.warnings
    Record = wandb.proto.wandb_internal_pb2.Record
    [file] = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in log_records(file.read_bytes())]
    [run] = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_group) == ("p", "n", "g")
    config = {one.key or one.nested_key[0]: one.value_json for one in run.config.update}
    assert config["train.optimizer.lr"] == "0.05"
    client = mlflow.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    [run] = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.run_name == "n"
    assert run.data.metrics["result/test.top1"] == result.record.test_top1
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["best.safetensors"]
