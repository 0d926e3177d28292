"""How a spec is computed here, and why, in sentences."""

from dataclasses import dataclass

import torch

from resnet_builder.cpu import kernel_support
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.schema import RunSpec


@dataclass(frozen=True, slots=True)
class Setting:
    """One of the things that are chosen before the first step.

    Attributes:
        name: What it is called.
        value: What was chosen.
        why: For whom has never heard of it.
    """

    name: str
    value: str
    why: str


def explain(choices: RuntimeConfig, run: RunSpec) -> tuple[Setting, ...]:
    """Say what each choice is, and why it was made.

    Args:
        choices: What was chosen.
        run: What the spec asks for.
    """
    return (
        Setting("device", choices.device, _why_device(choices, run)),
        Setting("precision", choices.precision, _why_precision(choices, run)),
        Setting("memory format", choices.memory_format, _why_memory_format(choices)),
        Setting("compile", _yes(choices.compile), _why_compiled(choices, run)),
        Setting("fused optimizer", _yes(choices.fused), _why_fused(choices)),
        Setting("CPU kernels", _yes(choices.cpu_kernels), _why_kernels(choices, run)),
        Setting("threads", str(choices.threads), _why_threads(run)),
    )


_ASKED = "the spec says so"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _why_compiled(choices: RuntimeConfig, run: RunSpec) -> str:
    if run.compile != "auto":
        return _ASKED
    return "`auto` means that CUDA compiles, and nothing else does"


def _why_device(choices: RuntimeConfig, run: RunSpec) -> str:
    if run.device != "auto":
        return _ASKED
    if choices.device == "cpu":
        return "there is no graphics card that torch can use"
    return "a graphics card computes faster than the processor"


def _why_precision(choices: RuntimeConfig, run: RunSpec) -> str:
    if run.precision != "auto":
        return _ASKED
    if choices.precision == "bf16":
        return "numbers of 16 bits are multiplied faster here than of 32; weights keep 32"
    return "numbers of 16 bits are multiplied no faster here than of 32"


def _why_memory_format(choices: RuntimeConfig) -> str:
    if choices.memory_format == "channels_last":
        return "all channels of a pixel lie side by side, as convolutions read them fastest"
    return "each channel lies in memory by itself, which this device computes as fast"


def _why_fused(choices: RuntimeConfig) -> str:
    if choices.fused:
        return "one pass over memory updates all weights, instead of several for each"
    return "this device has no such kernel that is known to leave weights alone after a bad step"


def _why_kernels(choices: RuntimeConfig, run: RunSpec) -> str:
    if run.cpu_kernels is False:
        return _ASKED
    if choices.cpu_kernels:
        return "a norm, a sum and a ReLU go over memory together, not one after another"
    if choices.compile:
        return "the compiler makes its own"
    return f"they cannot be had here: {kernel_support(torch.device(choices.device)).reason}"


def _why_threads(run: RunSpec) -> str:
    if run.threads != "auto":
        return _ASKED
    return "torch's own choice: one for each core, unless OMP_NUM_THREADS says otherwise"
