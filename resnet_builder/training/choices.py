"""What can change the bits of a result: chosen once before step 1, and repeated on resume."""

import torch

from resnet_builder.cpu import KernelSupport, kernel_support
from resnet_builder.device import describe, memory_format, pick_precision
from resnet_builder.errors import UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import EnvRecord, RuntimeConfig, describe_environment, versions
from resnet_builder.spec.schema import Spec
from resnet_builder.training.compiling import Trial, decide_compile, no_compiler

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}

_FOUND = ("device", "threads", "accumulate", "world_size")
"""The choices that are made before ``fit`` is called: it can compare them, but not repeat them."""

_TOOLS = ("compile", "cpu_kernels")
"""The choices that take a compiler, which may be gone."""

_FUSED_DEVICES = frozenset({"cpu", "cuda"})
"""Where fused kernels are known to leave weights alone when they are given ``found_inf``."""


def resolve_runtime(
    spec: Spec,
    run: RunDirectory,
    device: torch.device,
    *,
    trial: Trial,
    processes: int = 1,
    allow_inexact: bool,
    warn: Warn,
) -> EnvRecord:
    """Choose how to compute, or repeat what the run chose before, and write it down.

    With another number of processes a run goes on without being allowed to, though not to the
    same bits.

    Args:
        spec: The experiment.
        run: The run, whose ``env.json`` holds what was chosen.
        device: Where to compute.
        trial: To find out whether compiling pays; only a run that has chosen nothing yet does.
        processes: That share every batch.
        allow_inexact: Whether a run may go on where a choice cannot be repeated.
        warn: Told of what makes a difference.

    Raises:
        UsageError: A choice cannot be repeated.
        StorageError: ``env.json`` cannot be read or written.
        Stopped: The trial was.
    """
    before = EnvRecord.read(run.env) if run.env.exists() else None
    wanted = spec.run.cpu_kernels is not False
    if before is not None:
        wanted = wanted and before.choices.cpu_kernels
    support = kernel_support(device) if wanted else KernelSupport(None)
    cpu_kernels = support.instructions is not None
    found = _choose(spec, device, processes, cpu_kernels=cpu_kernels)
    if before is None:
        decision = decide_compile(spec.run.compile, device, found, trial, warn)
        choices = found.model_copy(
            update={
                "compile": decision.compile,
                "cpu_kernels": cpu_kernels and not decision.compile,  # a compiler fuses by itself
            }
        )
        if wanted and not decision.compile:
            _warn_of_missing_kernels(spec, device, support, warn)
        record = describe_environment(describe(device), choices, decision)
        record.write(run.env)
        return record
    _compare_versions(before.versions, warn)
    if before.device != describe(device):
        warn(
            f"the run may not go on to the same bits: it was on {before.device} "
            f"and is on {describe(device)}"
        )
    if before.choices.compile and spec.run.compile is not False and no_compiler(device) is None:
        found = found.model_copy(update={"compile": True})
    choices = _repeat(before.choices, found, allow_inexact=allow_inexact, warn=warn)
    if choices == before.choices:
        return before
    record = describe_environment(describe(device), choices, before.compile_decision)
    record.write(run.env)
    return record


def _warn_of_missing_kernels(
    spec: Spec, device: torch.device, support: KernelSupport, warn: Warn
) -> None:
    if support.reason is None:
        return
    if support.instructions is not None:
        warn(
            "run.cpu_kernels: a newer C++ compiler would make training faster; this one cannot "
            f"use the processor's {support.reason}"
        )
    elif spec.run.cpu_kernels is True or device.type == "cpu":
        warn(
            "run.cpu_kernels: torch's own operations train the network, which takes longer; there "
            f"are no CPU kernels here: {support.reason}"
        )


def _choose(
    spec: Spec, device: torch.device, processes: int, *, cpu_kernels: bool
) -> RuntimeConfig:
    """Make every choice but that of compiling, which takes a trial."""
    assert spec.train is not None, "a spec to train has a recipe"
    return RuntimeConfig(
        device=device.type,
        precision=pick_precision(spec.run.precision, device),
        memory_format=memory_format(device),
        compile=False,
        fused=device.type in _FUSED_DEVICES,
        cpu_kernels=cpu_kernels,
        threads=torch.get_num_threads(),
        accumulate=spec.train.accumulate,
        world_size=processes,
    )


def _repeat(
    before: RuntimeConfig, found: RuntimeConfig, *, allow_inexact: bool, warn: Warn
) -> RuntimeConfig:
    """Take over what was chosen before, but for what only the caller could repeat."""
    lost = (name for name in _TOOLS if getattr(before, name) and not getattr(found, name))
    names = (*_FOUND, *lost)
    differing = {n: getattr(found, n) for n in names if getattr(found, n) != getattr(before, n)}
    if not differing:
        return before
    text = ", ".join(f"{n} was {getattr(before, n)} and is {differing[n]}" for n in differing)
    if not (allow_inexact or differing.keys() <= _may_differ(before, found)):
        raise UsageError(
            f"the run cannot go on to the same bits: {text}; "
            "make it as it was, or allow an inexact resume"
        )
    warn(f"the run goes on, but not to the same bits: {text}")
    return before.model_copy(update=differing)


def _may_differ(before: RuntimeConfig, found: RuntimeConfig) -> frozenset[str]:
    """Return the choices that follow from another number of processes."""
    if before.world_size == found.world_size:
        return frozenset()
    return frozenset({"world_size", "threads"})


def _compare_versions(before: dict[str, str], warn: Warn) -> None:
    now = versions()
    for name, version in before.items():
        if now.get(name) != version:
            warn(
                f"the run may not go on to the same bits: {name} was {version} "
                f"and is {now.get(name)}"
            )
