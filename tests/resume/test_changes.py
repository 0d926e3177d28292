"""Changes since a run was stopped: the same, or refused, or allowed by a flag and recorded.

A resume that is refused, or has nothing to do, changes no byte of the run directory.
"""

import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import ResultRecord
from resnet_builder.training.step import TrainStep
from tests.cli.experiments import call
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.resume.conftest import Interrupted
from tests.resume.runs import contents, resume, stopping_after


def changes_of(run: RunDirectory) -> dict[str, tuple[Any, Any, str]]:
    """Return what ``changes.jsonl`` says: value before and after, and kind, by place."""
    rows = [json.loads(line) for line in run.changes.read_text().splitlines()]
    return {row["path"]: (row.get("before"), row.get("after"), row["kind"]) for row in rows}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an experiment of two epochs, of seven steps each, to the end."""
    folder = tmp_path_factory.mktemp("trained")
    spec = write_experiment(folder, "plain", epochs=2, schedule={"type": "cosine"})
    assert call(*train_line(spec, folder / "run")).exit_code == 0
    return folder / "run"


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> RunDirectory:
    """Return a copy of the run that was trained to the end."""
    shutil.copytree(trained, tmp_path / "finished")
    return RunDirectory(tmp_path / "finished")


@pytest.mark.ci
def test_finished_run_with_more_epochs_trains_on(finished: RunDirectory, tmp_path: Path) -> None:
    old = finished.result.read_bytes()
    longer = ("--set", "train.epochs=4")
    result = resume(finished, *longer)
    assert result.exit_code == 2
    assert "train.epochs: 2 in the run, 4 now\nadd --allow-spec-change" in result.stderr
    result = resume(finished, *longer, "--allow-spec-change")
    assert result.exit_code == 0, result.stderr
    assert "changed: train.epochs: 2 in the run, 4 now" in result.stderr
    assert (
        "training on from step 14 to 28, on the schedule of the recipe as it is now: the learning "
        "rate is 0.04"
    ) in result.stderr
    assert finished.earlier_result(14).read_bytes() == old
    assert ResultRecord.read(finished.result).steps == 28
    # The same line has nothing to do any more, and neither has the run's own.
    before = contents(finished)
    for line in ((), longer, (*longer, "--allow-spec-change")):
        result = resume(finished, *line)
        assert result.exit_code == 0, result.stderr
        assert "is already complete" in result.stderr
    assert contents(finished) == before


@pytest.mark.ci
def test_finished_run_trains_on_from_its_last_weights_to_the_same_bits(
    trained: Path, tmp_path: Path
) -> None:
    """Stopped on the way or not, and as a run that had four epochs from the third on."""
    lines = ("--set", "train.epochs=4", "--allow-spec-change")
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "stopped")]
    for run in runs:
        shutil.copytree(trained, run.path)
    whole, stopped = runs
    assert resume(whole, *lines).exit_code == 0
    with stopping_after(5):
        assert resume(stopped, *lines).exit_code == 130
    assert not stopped.is_finished
    assert resume(stopped).exit_code == 0
    assert_same_outcome(stopped.path, outcome_of(whole.path))


@pytest.mark.parametrize("name", ["best.safetensors", "result.json"])
def test_weights_or_result_of_a_finished_run_that_were_lost_are_made_again(
    name: str, finished: RunDirectory
) -> None:
    lost = finished.path / name
    before = contents(finished)
    lost.unlink()
    assert resume(finished).exit_code == 0
    after = contents(finished)
    assert after["best.safetensors"] == before["best.safetensors"]
    assert ResultRecord.read(finished.result).steps == 14
    assert "already complete" in resume(finished).stderr
    lost.unlink()
    shutil.rmtree(finished.checkpoints)
    files = contents(finished)
    if name == "best.safetensors":
        result = resume(finished)
        assert result.exit_code == 2
        assert "is complete, and it has no checkpoint to train on from" in result.stderr
        assert contents(finished) == files


def test_damaged_result_of_a_finished_run_says_what_to_do(finished: RunDirectory) -> None:
    finished.result.write_text("{")
    result = resume(finished)
    assert result.exit_code == 4
    assert "remove the file, and resume the run: it is made again from the last" in result.stderr


def edited(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("activation: relu", "activation: gelu", "is of another network:"),
        ("lr: 0.1", "lr: 0.2", "train.optimizer.lr: 0.1 in the run, 0.2 now\nadd --allow-spec-ch"),
        ("precision: fp32", "precision: bf16", "runtime.precision was fp32 and is bf16; restore"),
        ("seed: 0", "seed: zero", "error[wrong-type]: data.dataset.seed"),
    ],
)
def test_spec_of_a_run_that_was_edited_by_hand_is_compared_with_the_checkpoint(
    before: str, after: str, message: str, interrupted: Interrupted
) -> None:
    run = interrupted.run
    edited(run.spec, before, after)
    files = contents(run)
    result = resume(run)
    assert result.exit_code == 2
    assert message in result.stderr
    assert contents(run) == files
    edited(run.spec, after, before)
    assert resume(run).exit_code == 0
    assert_same_outcome(run.path, interrupted.expected)


def test_spec_that_is_edited_while_a_run_trains_is_not_that_of_its_result(
    interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted.run
    digest = hashlib.sha256(run.spec.read_bytes()).hexdigest()
    real = TrainStep.__call__

    def edit_and_step(*arguments: Any, **options: Any) -> Any:
        run.spec.write_text(run.spec.read_text().replace("lr: 0.1", "lr: 0.2"))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", edit_and_step)
        assert resume(run).exit_code == 0
    assert ResultRecord.read(run.result).spec_sha256 == digest
    result = resume(run)
    assert result.exit_code == 2
    assert "train.optimizer.lr: 0.1 in the run, 0.2 now" in result.stderr


@pytest.mark.parametrize("name", ["env.json", "data.json"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "edited"])
def test_records_beside_a_checkpoint_are_copies_that_are_written_again(
    name: str, damage: str, interrupted: Interrupted
) -> None:
    path = interrupted.run.path / name
    sound = path.read_bytes()
    other = {"env.json": (b'"threads": 1', b'"threads": 7'), "data.json": (b"train", b"other")}
    if damage == "removed":
        path.unlink()
    else:
        changes = {
            "truncated": sound[:50],
            "edited": sound.replace(*other[name]),
        }
        path.write_bytes(changes[damage])
    result = resume(interrupted.run)
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes() == sound
    assert_same_outcome(interrupted.run.path, interrupted.expected)


@pytest.mark.ci
def test_run_that_crashed_after_an_allowed_change_needs_no_flag_again(
    interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is recorded just before a checkpoint, which may fail to be written."""

    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    run = interrupted.run
    changes = ("--set", "train.optimizer.lr=0.2", "--set", "run.threads=2")
    with monkeypatch.context() as patch:
        patch.setattr("resnet_builder.training.checkpoint.save_checkpoint", crash)
        assert resume(run, *changes, "--allow-spec-change", "--allow-inexact").exit_code == 1
    recorded = {
        "train.optimizer.lr": (0.1, 0.2, "trajectory"),
        "run.threads": (1, 2, "cosmetic"),
        "runtime.threads": (1, 2, "environment"),
    }
    assert changes_of(run) == recorded
    result = resume(run)
    assert result.exit_code == 0, result.stderr
    assert changes_of(run) == recorded
    edited(run.spec, "lr: 0.2", "lr: 0.1")
    result = resume(run)
    assert result.exit_code == 2, "the finished run was trained with 0.2"


@pytest.mark.parametrize("failure", ["memory", "rate"])
@pytest.mark.parametrize("state", ["interrupted", "finished"])
def test_change_that_fails_before_the_next_checkpoint_is_not_recorded(
    failure: str,
    state: str,
    interrupted: Interrupted,
    finished: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run's own line goes on as if nothing had been tried."""

    def run_out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    run = interrupted.run if state == "interrupted" else finished
    records = [run.spec, run.env, run.data, run.result, run.changes]
    before = {path: path.read_bytes() for path in records if path.exists()}
    checkpoints = sorted(run.checkpoints.iterdir())
    changes = ["--set", "train.epochs=4", "--allow-spec-change"]
    changes += ["--set", "train.optimizer.lr=1e39"] if failure == "rate" else []
    with monkeypatch.context() as patch:
        if failure == "memory":
            patch.setattr(TrainStep, "__call__", run_out_of_memory)
        result = resume(run, *changes)
    assert result.exit_code == {"memory": 6, "rate": 5}[failure], result.stderr
    assert {path: path.read_bytes() for path in records if path.exists()} == before
    assert sorted(run.checkpoints.iterdir()) == checkpoints
    result = resume(run)
    assert result.exit_code == 0, result.stderr
    if state == "interrupted":
        assert_same_outcome(run.path, interrupted.expected)
    else:
        assert "is already complete" in result.stderr


@pytest.mark.parametrize(
    ("state", "change", "message"),
    [
        ("interrupted", "train.epochs=1", "and this recipe ends after 7; give a longer recipe"),
        ("finished", "train.epochs=1", "and this recipe ends after 7; give a longer recipe"),
        ("finished", "train.optimizer.lr=0.2", "is already complete, after 14 steps; to train on"),
    ],
)
def test_change_that_no_flag_allows_is_refused_as_such_at_once(
    state: str,
    change: str,
    message: str,
    interrupted: Interrupted,
    finished: RunDirectory,
) -> None:
    run = interrupted.run if state == "interrupted" else finished
    for flags in ((), ("--allow-spec-change",)):
        result = resume(run, "--set", change, *flags)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "add --allow-spec-change" not in result.stderr


PLUGIN = """
from torch import nn
from resnet_builder.blocks.interfaces import ACTIVATIONS

ACTIVATIONS.register("soft_{name}")(nn.Softplus)
"""


@pytest.mark.parametrize("kind", ["file", "module", "helper of a module"])
def test_plugin_that_was_edited_is_refused_or_allowed_and_recorded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "edited_" + kind.replace(" ", "_")
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN.format(name=name))
    (package / "helper.py").write_text("")
    (tmp_path / f"{name}.py").write_text(PLUGIN.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    plugin = str(tmp_path / f"{name}.py") if kind == "file" else name
    code = {
        "file": tmp_path / f"{name}.py",
        "module": package / "__init__.py",
        "helper of a module": package / "helper.py",
    }[kind]
    spec = write_experiment(tmp_path, "plain", epochs=2)
    consent = ("--plugin", plugin, "--set", f"model.activation=soft_{name}")
    run = RunDirectory(tmp_path / "run")
    with stopping_after(5):
        assert call(*train_line(spec, run.path, *consent)).exit_code == 130
    code.write_text(code.read_text() + "# another version\n")
    files = contents(run)
    result = resume(run, "--plugin", plugin)
    assert result.exit_code == 2
    assert f"contents of {plugin}: " in result.stderr
    assert "add --allow-spec-change" in result.stderr
    assert contents(run) == files
    result = resume(run, "--plugin", plugin, "--allow-spec-change")
    assert result.exit_code == 0, result.stderr
    assert changes_of(run).keys() == {f"contents of {plugin}"}


@pytest.mark.ci
def test_run_that_early_stopping_ended_says_so_and_trains_on_only_without_it(
    tmp_path: Path,
) -> None:
    spec = write_experiment(tmp_path, "early", early_stop={"patience": 1, "min_delta": 1.0})
    run = RunDirectory(tmp_path / "runs" / "early")
    result = call(*train_line(spec, run.path))
    assert result.exit_code == 0, result.stderr
    assert "of 8, stopped early (60 planned): best on validation" in result.stdout
    assert "stopped early after step 8 of 60: " in result.stderr
    record = ResultRecord.read(run.result)
    assert (record.steps, record.planned_steps, record.early_stopped) == (8, 60, True)
    assert "finished early" in call("list", "runs", tmp_path / "runs").stdout
    files = contents(run)
    result = resume(run, "--set", "train.epochs=20", "--allow-spec-change")
    assert result.exit_code == 2
    assert "would end it again; to train on, raise its patience or set it to null" in result.stderr
    assert contents(run) == files
    result = resume(run, "--set", "train.early_stop=null", "--allow-spec-change")
    assert result.exit_code == 0, result.stderr
    assert ResultRecord.read(run.result).steps == 60


@pytest.mark.ci
@pytest.mark.parametrize("is_relative", [True, False])
def test_printed_line_resumes_the_run_as_it_is_printed(
    is_relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a folder of data, a plugin, and names with spaces and quotes."""
    folder = tmp_path / "it's mine"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    spec = write_experiment(folder, "held", epochs=2)
    name = f"printed_{is_relative}".lower()
    (folder / "my plugin.py").write_text(PLUGIN.format(name=name))
    base = Path(folder.name) if is_relative else folder
    activation = f"model.activation=soft_{name}"
    consent = ("--plugin", base / "my plugin.py", "--set", activation)
    line = ("train", spec, "--out", base / "run", "--data-dir", base, *consent)
    with stopping_after(5):
        result = call(*line)
    assert result.exit_code == 130
    program, *words = shlex.split(result.stderr.rpartition("to resume: ")[2])
    assert program == "resnet-build"
    result = call(*words)
    assert result.exit_code == 0, result.stderr
    assert call("train", spec, "--out", "whole", "--data-dir", base, *consent).exit_code == 0
    assert_same_outcome(folder / "run", outcome_of(Path("whole")))
