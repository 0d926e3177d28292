"""What can change the bits of a result: chosen once before step 1, and repeated on resume."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from resnet_builder.device import describe, memory_format, pick_precision
from resnet_builder.errors import UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.environment import describe_environment, versions
from resnet_builder.runs.records import Choices, EnvRecord
from resnet_builder.spec.schema import RunSpec, Spec

Warn = Callable[[str], None]

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}

_FOUND = ("device", "threads", "accumulate", "world_size")
"""The choices that are made before ``fit`` is called: it can compare them, but not repeat them."""

_FUSED_DEVICES = frozenset({"cpu", "cuda"})
"""Where fused kernels are known to leave weights alone when they are given ``found_inf``."""


def settle_choices(
    spec: Spec, run: RunDirectory, device: torch.device, *, allow_inexact: bool, warn: Warn
) -> Choices:
    """Choose how to compute, or repeat what the run chose before, and write it down.

    Args:
        spec: The experiment.
        run: The run, whose ``env.json`` holds what was chosen.
        device: Where to compute.
        allow_inexact: Whether a run may go on where a choice cannot be repeated.
        warn: Told of what makes a difference.

    Raises:
        UsageError: A choice cannot be repeated.
        StorageError: ``env.json`` cannot be read or written.
    """
    found = _choose(spec, device, warn)
    if not run.env.exists():
        describe_environment(describe(device), found).write(run.env)
        return found
    before = EnvRecord.read(run.env)
    _compare_versions(before.versions, warn)
    choices = _repeat(before.choices, found, allow_inexact=allow_inexact, warn=warn)
    if choices != before.choices:
        describe_environment(describe(device), choices).write(run.env)
    return choices


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what computes a network with kernels made for the shapes that it meets."""
    return torch.compile(model, dynamic=False)


def _choose(spec: Spec, device: torch.device, warn: Warn) -> Choices:
    assert spec.train is not None, "a spec to train has a recipe"
    return Choices(
        device=device.type,
        precision=pick_precision(spec.run.precision, device),
        memory_format=memory_format(device),
        compile=_compiles(spec.run, device, warn),
        fused=device.type in _FUSED_DEVICES,
        threads=torch.get_num_threads(),
        accumulate=spec.train.accumulate,
        world_size=1,
    )


def _compiles(run: RunSpec, device: torch.device, warn: Warn) -> bool:
    """Tell whether to compile; ``auto`` does not: short runs never earn back its first minute."""
    if run.compile is not True:
        return False
    reason = _no_compiler(device)
    if reason is not None:
        warn(f"run.compile: not compiled, for there is no working compiler: {reason}")
    return reason is None


def _no_compiler(device: torch.device) -> str | None:
    """Try the compiler on one addition; return why it does not work, if it does not."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(1, device=device))
    except Exception as error:  # whatever a missing or broken tool chain comes to
        return str(error).strip().partition("\n")[0]
    return None


def _repeat(before: Choices, found: Choices, *, allow_inexact: bool, warn: Warn) -> Choices:
    """Take over what was chosen before, but for what only the caller could repeat."""
    names = _FOUND + (("compile",) if before.compile and not found.compile else ())
    differing = {n: getattr(found, n) for n in names if getattr(found, n) != getattr(before, n)}
    if not differing:
        return before
    text = ", ".join(f"{n} was {getattr(before, n)} and is {differing[n]}" for n in differing)
    if not allow_inexact:
        raise UsageError(
            f"the run cannot go on to the same bits: {text}; "
            "make it as it was, or allow an inexact resume"
        )
    warn(f"the run goes on, but not to the same bits: {text}")
    return before.model_copy(update=differing)


def _compare_versions(before: dict[str, str], warn: Warn) -> None:
    now = versions()
    for name, version in before.items():
        if now.get(name) != version:
            warn(
                f"the run may not go on to the same bits: {name} was {version} "
                f"and is {now.get(name)}"
            )
