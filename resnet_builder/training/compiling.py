"""Whether to compile the network: found out before the first step, where it could pay."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from resnet_builder.device import begin_step, compile_options
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import CompileDecision, RuntimeConfig

Forward = Callable[[Tensor], Tensor]

FEW_STEPS = 100
"""A training of fewer steps is not compiled, whatever a step takes, nor is any step tried."""

TRIAL_SHARE = 0.03
"""A trial may well say no, so it takes at most this part of a training."""

LONGEST_COMPILE_SECONDS = 600.0
"""Nobody is made to wait longer than this for a trial."""

SECONDS_PER_LAYER = 3.0
"""What compiling takes for each convolution: ResNet-20's 20 take about a minute on two cores."""

OWN_OPERATIONS = "this package's own operations are used, and compiled ones are slower"
"""Why a network that has them is not compiled."""

_MARGIN = 2.0  # the trial's own compilation, and the training's
_NOISE = 0.03  # of a step's time: what two measurements of the same differ by
_TURNS = 5


class Step(Protocol):
    """Takes one step of a trial."""

    def __call__(self) -> float:
        """Return how long it took, in seconds, with all that was computed for the first time."""


class Trial(Protocol):
    """Steps that leave the training as it is: a copy of the network takes them."""

    @property
    def layers(self) -> int:
        """Convolutions of the network."""

    @property
    def steps(self) -> int:
        """Steps of the whole training."""

    @property
    def has_own_operations(self) -> bool:
        """Whether operations of our own can compute any of its layers."""

    def __call__(self, choices: RuntimeConfig, /) -> Step:
        """Begin steps that are computed by these choices."""


def decide_compile(
    wanted: bool | Literal["auto"],
    device: torch.device,
    choices: RuntimeConfig,
    trial: Trial,
    warn: Warn,
) -> CompileDecision:
    """Decide whether a training's network is compiled.

    Args:
        wanted: What the spec says; ``auto`` is what takes less time, over the whole training.
        device: Where it is computed.
        choices: How it is computed otherwise.
        trial: To measure steps with; where the first one tells that the training is short, no
            other is taken.
        warn: Told of a trial that takes long, and where a compiler does not work.

    Raises:
        Stopped: The trial was.
    """
    if wanted is False:
        return CompileDecision(compile=False, reason="the spec says so")
    if wanted is True:
        return _unless_broken(device, warn)
    if trial.steps < FEW_STEPS:
        return CompileDecision(compile=False, reason="the training has but a few steps")
    if choices.cpu_kernels and trial.has_own_operations:
        return CompileDecision(compile=False, reason=OWN_OPERATIONS)
    try:
        return _tried(device, choices, trial, warn)
    except Stopped:
        raise
    except Exception as error:  # whatever compiling a network can come to, parts from outside too
        return _not_compiled(f"trying it fails: {_first_line(error)}", warn)


def _unless_broken(device: torch.device, warn: Warn) -> CompileDecision:
    """Compile as the spec says, if there is something to compile with."""
    fault = no_compiler(device)
    if fault is not None:
        return _not_compiled(f"there is no working compiler: {fault}", warn)
    return CompileDecision(compile=True, reason="the spec says so")


def _tried(
    device: torch.device, choices: RuntimeConfig, trial: Trial, warn: Warn
) -> CompileDecision:
    """Decide by steps of a copy, and by as few of them as will do."""
    eager = trial(choices.model_copy(update={"compile": False}))
    refusal = _after_few_steps(trial, eager)
    if refusal is not None:
        return refusal
    possible = _unless_broken(device, warn)
    if not possible.compile:
        return possible
    warn(
        "run.compile: trying whether it pays to compile, which takes about "
        f"{_words(_expected_seconds(trial.layers))}; `true` or `false` would spare that"
    )
    return _by_trial(trial, eager, trial(choices.model_copy(update={"compile": True})))


def _after_few_steps(trial: Trial, eager: Step) -> CompileDecision | None:
    seconds = eager()  # a first step takes longer than others
    if not_worth_a_trial(trial.steps, trial.layers, seconds) is None:
        seconds = min(eager(), eager())
    return not_worth_a_trial(trial.steps, trial.layers, seconds)


def not_worth_a_trial(steps: int, layers: int, seconds: float) -> CompileDecision | None:
    """Decide against compiling by what is known before anything is compiled, if that is enough.

    Args:
        steps: Of the whole training.
        layers: Convolutions of the network.
        seconds: That a step takes as it is.
    """
    expected = _expected_seconds(layers)
    if TRIAL_SHARE * steps * seconds < expected:
        reason = (
            f"the training takes about {_words(steps * seconds)}, too short to earn back "
            f"the {_words(expected)} that trying to compile takes"
        )
    elif expected > LONGEST_COMPILE_SECONDS:
        reason = (
            f"compiling {layers} convolutions would take about {_words(expected)}, too long to try"
        )
    else:
        return None
    return CompileDecision(compile=False, reason=reason, eager_seconds=seconds)


def _by_trial(trial: Trial, eager: Step, compiled: Step) -> CompileDecision:
    """Compile, and let steps of both kinds take turns."""
    compile_seconds = compiled()
    compiled()  # what is left to warm up
    pairs = [(eager(), compiled()) for _ in range(_TURNS)]
    eager_seconds, compiled_seconds = map(min, zip(*pairs, strict=True))
    gain = eager_seconds - compiled_seconds
    pays = gain > _NOISE * eager_seconds and trial.steps * gain > _MARGIN * compile_seconds
    return CompileDecision(
        compile=pays,
        reason=f"a step takes {1000 * compiled_seconds:,.0f} ms compiled and "
        f"{1000 * eager_seconds:,.0f} ms as it is, which over {trial.steps:,} steps "
        f"{'earns' if pays else 'does not earn'} back the {_words(compile_seconds)} of compiling",
        eager_seconds=eager_seconds,
        compiled_seconds=compiled_seconds,
        compile_seconds=compile_seconds,
    )


def _not_compiled(reason: str, warn: Warn) -> CompileDecision:
    warn(f"run.compile: not compiled, for {reason}")
    return CompileDecision(compile=False, reason=reason)


def _expected_seconds(layers: int) -> float:
    return SECONDS_PER_LAYER * layers


def compiled(model: nn.Module, device: torch.device) -> Forward:
    """Return what computes a network with kernels made for the shapes that it meets.

    A network that cannot be compiled is an error of usage, from the first call.

    Args:
        model: The network.
        device: Where it computes.
    """
    forward = torch.compile(model, **compile_options(device))

    def compute(images: Tensor) -> Tensor:
        begin_step(device)
        try:
            return forward(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UsageError(
                f"run.compile: the network cannot be compiled: {_first_line(error)}; "
                "set it to false"
            ) from error

    return compute


def no_compiler(device: torch.device) -> str | None:
    """Try the compiler on one addition; return why it does not work, if it does not."""
    try:
        torch.compile(lambda x: x + 1, **compile_options(device))(torch.zeros(1, device=device))
    except Exception as error:  # whatever a missing or broken tool chain comes to
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    """Return what an error says, without the pages that torch's compiler adds."""
    return str(error).strip().partition("\n")[0]


def _words(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
