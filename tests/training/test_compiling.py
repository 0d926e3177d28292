"""Compiling where it pays: decided on made-up timings, and computed for real."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import build
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import CompileDecision, EnvRecord, RuntimeConfig
from resnet_builder.training import choices
from resnet_builder.training.compiling import OWN_OPERATIONS, compiled, decide_compile
from resnet_builder.training.process import configure
from resnet_builder.training.schedule import make_schedule
from resnet_builder.training.trial import TrialSteps
from resnet_builder.weights.file import read_weights
from tests.networks import cifar_spec
from tests.training.recipes import CLASSES, SIZE, batch, recipe, small_net
from tests.training.runs import after, experiment, outcome, train

CPU = torch.device("cpu")
CHOICES = RuntimeConfig(
    device="cpu",
    precision="fp32",
    memory_format="channels_last",
    compile=False,
    fused=True,
    threads=1,
    accumulate=1,
    world_size=1,
)


@dataclass
class FakeTrial:
    """Steps whose times are made up; each kind's first takes longer.

    Attributes:
        taken: Whether each step that was taken was compiled.
    """

    steps: int
    eager: float
    compiled: float
    compile_seconds: float = 60.0
    layers: int = 20
    has_own_operations: bool = False
    error: Exception | None = None
    taken: list[bool] = field(default_factory=list)

    def __call__(self, how: RuntimeConfig) -> Any:
        first = iter([self.compile_seconds if how.compile else 1.0])

        def step() -> float:
            self.taken.append(how.compile)
            if how.compile and self.error is not None:
                raise self.error
            return next(first, 0.0) + (self.compiled if how.compile else self.eager)

        return step


def no_compiler(*args: Any, **options: Any) -> Any:
    """Stand in for ``torch.compile`` on a machine without a compiler."""

    def fail(*inputs: Any) -> None:
        raise RuntimeError("Failed to find C++ compiler\nSet CXX.")

    return fail


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take compilers for granted."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def decided(trial: FakeTrial, wanted: Any = "auto") -> tuple[CompileDecision, list[str]]:
    warnings: list[str] = []
    return decide_compile(wanted, CPU, CHOICES, trial, warnings.append), warnings


TRYING = (
    "run.compile: trying whether it pays to compile, which takes about 60 s; `true` or `false` "
    "would spare that"
)


def test_what_the_spec_says_takes_no_trial(compiler: None) -> None:
    trial = FakeTrial(steps=10_000, eager=1.0, compiled=0.5)
    for wanted in (True, False):
        decision = CompileDecision(compile=wanted, reason="the spec says so")
        assert decided(trial, wanted) == (decision, [])
    assert trial.taken == []


def test_operations_of_our_own_take_no_trial(compiler: None) -> None:
    trial = FakeTrial(steps=10_000, eager=1.0, compiled=0.5, has_own_operations=True)
    choices = CHOICES.model_copy(update={"cpu_kernels": True})
    decision = decide_compile("auto", CPU, choices, trial, lambda text: None)
    assert decision == CompileDecision(compile=False, reason=OWN_OPERATIONS)
    assert trial.taken == []
    assert decided(trial)[0].compile, "without them it is tried"


def test_a_training_of_few_steps_takes_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", no_compiler)
    trial = FakeTrial(steps=99, eager=100.0, compiled=1.0)
    assert not decided(trial)[0].compile
    assert trial.taken == []


def test_a_short_training_takes_one_step_on_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the compiler is tried."""
    monkeypatch.setattr(torch, "compile", no_compiler)
    trial = FakeTrial(steps=400, eager=0.2, compiled=0.01)
    decision = CompileDecision(
        compile=False,
        reason="the training takes about 8 min, too short to earn back the 60 s that trying to "
        "compile takes",
        eager_seconds=1.2,
    )
    assert decided(trial) == (decision, [])
    assert trial.taken == [False]


def test_a_first_step_that_takes_long_does_not_make_a_long_training() -> None:
    trial = FakeTrial(steps=1_500, eager=1.0, compiled=0.01)
    assert decided(trial)[0].eager_seconds == 1.0
    assert trial.taken == [False, False, False]


@pytest.mark.parametrize(
    ("steps", "compiled_seconds", "pays"),
    [
        (2_000, 0.5, True),  # 1,000 s earned
        (2_000, 0.95, False),  # 100 s, less than compiling twice takes
        (1_000_000, 0.98, False),  # what two measurements of the same may differ by
        (1_000_000, 1.1, False),
    ],
)
def test_compiling_has_to_earn_back_its_time(
    steps: int, compiled_seconds: float, pays: bool, compiler: None
) -> None:
    decision, warnings = decided(FakeTrial(steps=steps, eager=1.0, compiled=compiled_seconds))
    earns = "earns" if pays else "does not earn"
    assert decision == CompileDecision(
        compile=pays,
        reason=f"a step takes {1000 * compiled_seconds:,.0f} ms compiled and 1,000 ms as it is, "
        f"which over {steps:,} steps {earns} back the {60 + compiled_seconds:,.0f} s of compiling",
        eager_seconds=1.0,
        compiled_seconds=compiled_seconds,
        compile_seconds=60.0 + compiled_seconds,
    )
    assert warnings == [TRYING]


def test_very_deep_networks_are_not_tried(compiler: None) -> None:
    trial = FakeTrial(steps=64_000, eager=10.0, compiled=1.0, layers=1201)
    decision, warnings = decided(trial)
    assert decision.reason == (
        "compiling 1201 convolutions would take about 60 min, too long to try"
    )
    assert not decision.compile
    assert warnings == []


@pytest.mark.parametrize("wanted", ["auto", True])
def test_without_a_compiler_there_is_a_notice(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", no_compiler)
    decision, warnings = decided(FakeTrial(steps=10_000, eager=1.0, compiled=0.5), wanted)
    assert decision == CompileDecision(
        compile=False, reason="there is no working compiler: Failed to find C++ compiler"
    )
    assert warnings == [f"run.compile: not compiled, for {decision.reason}"]


def test_a_network_that_does_not_compile_is_left_as_it_is(compiler: None) -> None:
    error = RuntimeError("no lowering for aten.odd\nsee ...")
    decision, warnings = decided(FakeTrial(10_000, eager=1.0, compiled=0.5, error=error))
    assert decision.reason == "trying it fails: no lowering for aten.odd"
    assert warnings == [TRYING, f"run.compile: not compiled, for {decision.reason}"]


def test_a_trial_that_is_stopped_decides_nothing(compiler: None) -> None:
    with pytest.raises(Stopped):
        decided(FakeTrial(10_000, eager=1.0, compiled=0.5, error=Stopped("now")))


def trial_of(model: nn.Module, **changes: Any) -> TrialSteps:
    train_section = recipe()
    given: dict[str, Any] = {
        "schedule": make_schedule(train_section, 5),
        "device": CPU,
        "images": (8, 3, SIZE, SIZE),
        "classes": CLASSES,
        "steps": 20,
        **changes,
    }
    return TrialSteps(model, train_section, **given)


def test_a_trial_changes_no_weight_no_statistic_and_no_random_number() -> None:
    model = small_net(nn.Dropout())
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    step = trial_of(model)(CHOICES)
    assert step() > 0
    assert step() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_trial_can_be_stopped() -> None:
    step = trial_of(small_net(), stop=after(1))(CHOICES)
    step()
    step()
    with pytest.raises(Stopped):
        step()


def test_a_trial_that_fails_is_left_for_the_training_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which then says better what is wrong, as it does when memory runs out."""

    def fail(trial: TrialSteps, how: RuntimeConfig) -> None:
        raise MemoryError("no memory for a copy")

    monkeypatch.setattr(TrialSteps, "__call__", fail)
    train(tmp_path / "run", experiment(steps=100, run={"cpu_kernels": False}))
    decision = EnvRecord.read(RunDirectory(tmp_path / "run").env).compile_decision
    assert decision == CompileDecision(
        compile=False, reason="trying it fails: no memory for a copy"
    )


def test_a_network_that_cannot_be_compiled_is_an_error_of_usage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(images: Tensor) -> Tensor:
        raise torch._dynamo.exc.Unsupported("data-dependent branching\nfrom user code ...")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    with pytest.raises(UsageError) as caught:
        compiled(small_net(), CPU)(batch(0).images)
    assert str(caught.value) == (
        "run.compile: the network cannot be compiled: data-dependent branching; set it to false"
    )


def last_weights(path: Path) -> dict[str, Tensor]:
    return read_weights(RunDirectory(path).last)[0]


@pytest.mark.parametrize(
    "compile_", [False, pytest.param(True, marks=pytest.mark.ci)], ids=["eager", "compiled"]
)
def test_speed_settings_change_results_by_rounding_alone(
    compile_: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {"ema": {"decay": 0.9}, "clip_norm": 1.0, "accumulate": 2}
    network = cifar_spec(widths=(4, 6), classes=CLASSES)
    undo = configure(threads=None)
    fast = experiment(run={"compile": compile_}, **recipe)
    train(tmp_path / "fast", fast, model=build(network, seed=0))
    undo()
    monkeypatch.setattr(choices, "memory_format", lambda device: "contiguous")
    monkeypatch.setattr(choices, "_FUSED_DEVICES", frozenset())
    plain = experiment(run={"compile": False}, **recipe)
    train(tmp_path / "plain", plain, model=build(network, seed=0))
    torch.testing.assert_close(
        last_weights(tmp_path / "fast"), last_weights(tmp_path / "plain"), rtol=1e-3, atol=1e-5
    )


@pytest.mark.ci
def test_compiled_runs_repeat_themselves_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Also with what is random inside the network; evaluations compile nothing."""
    given = experiment(run={"compile": True}, ema={"decay": 0.9}, clip_norm=1.0)
    network = cifar_spec(widths=(4, 6), classes=CLASSES, drop_path=0.2)
    torch._dynamo.utils.counters.clear()
    train(tmp_path / "once", given, model=build(network, seed=0))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with pytest.raises(Stopped):
        train(tmp_path / "again", given, model=build(network, seed=0), stop=after(7))
    train(tmp_path / "again", given, model=build(network, seed=0))
    assert outcome(tmp_path / "again") == outcome(tmp_path / "once")
    assert EnvRecord.read(RunDirectory(tmp_path / "again").env).choices.compile
    assert graphs == 2  # the trial addition, and the network
