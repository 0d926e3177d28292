"""What can change a result's bits is chosen once, written down, and repeated."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.cpu import KernelSupport
from resnet_builder.device import describe
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import (
    CompileDecision,
    EnvRecord,
    MetricsLog,
    RuntimeConfig,
    versions,
)
from resnet_builder.training import choices, fit
from resnet_builder.training.choices import resolve_runtime
from tests.cpu import HAS_KERNELS, NEEDS_KERNELS
from tests.training.recipes import small_net
from tests.training.runs import Recorder, after, experiment, train
from tests.training.test_compiling import FakeTrial, no_compiler

CPU = torch.device("cpu")
NO_COMPILER = KernelSupport(None, "there is no C++ compiler")
SHORT = FakeTrial(steps=12, eager=1.0, compiled=0.5)


def settled(
    path: Path,
    *,
    run: Any = None,
    allow_inexact: bool = False,
    trial: FakeTrial = SHORT,
    **recipe: Any,
) -> tuple[RuntimeConfig, list[str]]:
    """Settle a run's choices; return them and what was warned of."""
    warnings: list[str] = []
    record = resolve_runtime(
        experiment(run=run, **recipe),
        RunDirectory(path),
        CPU,
        trial=trial,
        allow_inexact=allow_inexact,
        warn=warnings.append,
    )
    assert EnvRecord.read(path / "env.json") == record
    return record.choices, warnings


def test_choices_are_made_from_the_spec_and_the_machine(tmp_path: Path) -> None:
    found, warnings = settled(tmp_path, run={"precision": "bf16"}, accumulate=2)
    assert found == RuntimeConfig(
        device="cpu",
        precision="bf16",
        memory_format="channels_last",
        compile=False,
        fused=True,
        cpu_kernels=HAS_KERNELS,
        threads=torch.get_num_threads(),
        accumulate=2,
        world_size=1,
    )
    assert warnings == []


def test_a_resumed_run_repeats_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = settled(tmp_path)
    monkeypatch.setattr(choices, "pick_precision", lambda precision, device: "bf16")
    monkeypatch.setattr(choices, "memory_format", lambda device: "contiguous")
    assert settled(tmp_path) == (before, [])


def test_what_cannot_be_repeated_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.raises(UsageError) as caught:
        settled(tmp_path)
    assert str(caught.value) == (
        "the run cannot go on to the same bits: threads was 1 and is 7; "
        "make it as it was, or allow an inexact resume"
    )


def test_row72_what_cannot_be_repeated_may_be_allowed_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of threads, here."""
    before, _ = settled(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    found, warnings = settled(tmp_path, allow_inexact=True)
    assert found == before.model_copy(update={"threads": 7})
    assert warnings == [
        "the run goes on, but not to the same bits: threads was 1 and is 7",
    ]
    assert settled(tmp_path) == (found, [])


def test_row72_another_processor_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(tmp_path)
    here = describe(CPU)
    monkeypatch.setattr(choices, "describe", lambda device: "CPU (x86_64, AVX512, AMX too)")
    assert settled(tmp_path)[1] == [
        "the run may not go on to the same bits: it was on "
        f"{here} and is on CPU (x86_64, AVX512, AMX too)"
    ]


def test_row72_other_versions_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(tmp_path)
    now = versions()
    monkeypatch.setattr(choices, "versions", lambda: {**now, "torch": "9.9"})
    _, warnings = settled(tmp_path)
    assert warnings == [
        f"the run may not go on to the same bits: torch was {now['torch']} and is 9.9"
    ]


def test_what_a_trial_decides_is_repeated_without_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    pays = FakeTrial(steps=10_000, eager=1.0, compiled=0.5)
    assert settled(tmp_path, trial=pays)[0].compile
    pays.taken.clear()
    assert settled(tmp_path, trial=pays)[0].compile
    assert pays.taken == []


def test_the_reason_for_compiling_outlives_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    settled(tmp_path, allow_inexact=True)
    decision = EnvRecord.read(tmp_path / "env.json").compile_decision
    assert decision == CompileDecision(compile=False, reason="the training has but a few steps")


def test_without_a_compiler_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", no_compiler)
    found, warnings = settled(tmp_path, run={"compile": True})
    assert not found.compile
    assert warnings == [
        "run.compile: not compiled, for there is no working compiler: Failed to find C++ compiler"
    ]


def test_a_compiler_that_is_gone_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert settled(tmp_path, run={"compile": True})[0].compile
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UsageError, match="compile was True and is False"):
        settled(tmp_path, run={"compile": True})


def test_what_is_trained_is_compiled_for_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compile_(what: Any, **options: Any) -> Any:
        asked.append((what, options))
        return what

    monkeypatch.setattr(torch, "compile", compile_)
    model = small_net()
    train(tmp_path / "run", experiment(run={"compile": True}), model=model)
    assert asked[-1] == (model, {"dynamic": False})


def test_a_run_is_refused_on_other_threads(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "run", experiment(), stop=after(2))
    torch.set_num_threads(2)
    try:
        with pytest.raises(UsageError, match="threads was 1 and is 2"):
            train(tmp_path / "run", experiment())
        recorder = Recorder()
        train(tmp_path / "run", experiment(), allow_inexact=True, observer=recorder)
    finally:
        torch.set_num_threads(1)
    assert len(recorder.warnings) == 1


@NEEDS_KERNELS
@pytest.mark.parametrize("wanted", ["auto", True, False])
def test_own_operations_are_used_where_the_spec_does_not_forbid_it(
    tmp_path: Path, wanted: Any
) -> None:
    found, warnings = settled(tmp_path, run={"cpu_kernels": wanted})
    assert found.cpu_kernels == (wanted is not False)
    assert warnings == []


def test_a_compiler_makes_operations_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    found, _ = settled(tmp_path, run={"compile": True})
    assert found.compile
    assert not found.cpu_kernels


@pytest.mark.parametrize("wanted", ["auto", True])
def test_operations_that_cannot_be_had_are_told(
    tmp_path: Path, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "kernel_support", lambda device: NO_COMPILER)
    found, warnings = settled(tmp_path, run={"cpu_kernels": wanted})
    assert not found.cpu_kernels
    assert warnings == [
        "run.cpu_kernels: torch's own operations train the network, which takes longer; there are "
        "no CPU kernels here: there is no C++ compiler"
    ]


@NEEDS_KERNELS
def test_instructions_that_the_compiler_does_not_know_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused = "AMX: c++: error: unrecognized command-line option '-mamx-tile'"
    monkeypatch.setattr(choices, "kernel_support", lambda device: KernelSupport("AVX512", unused))
    _, warnings = settled(tmp_path)
    assert warnings == [
        "run.cpu_kernels: a newer C++ compiler would make training faster; this one cannot use "
        f"the processor's {unused}"
    ]
    assert settled(tmp_path)[1] == []


@NEEDS_KERNELS
def test_operations_that_are_gone_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(tmp_path)
    monkeypatch.setattr(choices, "kernel_support", lambda device: NO_COMPILER)
    with pytest.raises(UsageError, match="cpu_kernels was True and is False"):
        settled(tmp_path)


def test_operations_that_come_later_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(choices, "kernel_support", lambda device: NO_COMPILER)
        before, _ = settled(tmp_path)
    monkeypatch.setattr(choices, "kernel_support", _refuse)
    assert settled(tmp_path) == (before, [])


def _refuse(device: torch.device) -> KernelSupport:
    raise AssertionError("nothing has to be compiled for a run that does without")


@NEEDS_KERNELS
def test_own_operations_train_as_torch_s_do(tmp_path: Path) -> None:
    """In fp32, for a few steps: rounding differs, and grows."""
    losses = []
    for wanted in (True, False):
        spec = experiment(run={"cpu_kernels": wanted, "precision": "fp32"})
        recorder = Recorder()
        train(tmp_path / str(wanted), spec, observer=recorder)
        assert recorder.starts[0].choices.cpu_kernels == wanted
        rows = MetricsLog(RunDirectory(tmp_path / str(wanted))).read()
        losses.append([row.train_loss for row in rows if row.event == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != losses[1], "both were computed in the same way"


@NEEDS_KERNELS
def test_a_process_that_lacks_the_others_operations_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on another machine, which has no compiler."""
    monkeypatch.setattr(fit, "kernel_support", lambda device: NO_COMPILER)
    with pytest.raises(UsageError) as caught:
        train(tmp_path / "run", experiment())
    assert str(caught.value) == (
        "process 0 lacks the CPU kernels that process 0 trains with: there is no C++ compiler; "
        "set run.cpu_kernels to false"
    )
