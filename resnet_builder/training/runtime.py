"""Runtime configuration of a training: device, precision, threads, compilation, backend flags.

All of it can change the bits of a result. It is decided once, before the first step, recorded in
``env.json``, and repeated when the run is resumed.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resnet_builder.cpu import KernelSupport, kernel_support
from resnet_builder.device import Precision, describe, fast_bf16, pick_device
from resnet_builder.errors import UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, ignore
from resnet_builder.runs.records import EnvRecord, RuntimeConfig, describe_environment, versions
from resnet_builder.spec.schema import RunSpec
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext

MemoryFormat = Literal["channels_last", "contiguous"]

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}

_NOT_REPEATABLE = ("device", "threads", "accumulate", "world_size")
"""Values that are given before ``fit``: a resumed run can compare them, but not set them."""

_NEED_A_COMPILER = ("compile", "cpu_kernels")
"""Values that a resumed run can repeat only while the machine still has the compiler."""

_FUSED_DEVICES = frozenset({"cpu", "cuda"})
"""Devices whose fused optimizers are known to change no weight where ``found_inf`` is set."""


def resolve_runtime(
    settings: RunSpec,
    run: RunDirectory,
    ctx: DistributedContext = SINGLE_PROCESS,
    *,
    accumulate: int = 1,
    allow_inexact: bool = False,
    warn: Warn = ignore,
) -> RuntimeConfig:
    """Decide the runtime configuration, or repeat that of ``env.json``; every process calls this.

    A run may be resumed with another number of processes, though not to the same bits.

    Args:
        settings: The ``run`` section of the spec.
        run: The run directory; the main process reads and writes its ``env.json``.
        ctx: The process group.
        accumulate: Micro-batches of a step.
        allow_inexact: Whether to resume although a value cannot be repeated.
        warn: Told, in the main process, of what changes the bits of a result or the speed.

    Raises:
        UsageError: There is no such device, a value cannot be repeated, or this process lacks the
            CPU kernels that the main process has.
        StorageError: ``env.json`` cannot be read or written.
    """
    device = resolve_device(settings.device, ctx)
    runtime = ctx.run_on_main(
        partial(_resolve, settings, run, device, ctx, accumulate, allow_inexact, warn)
    )
    if runtime.cpu_kernels and (support := kernel_support(device)).instructions is None:
        raise UsageError(
            f"process {ctx.rank} lacks the CPU kernels that process 0 trains with: "
            f"{support.reason}; set run.cpu_kernels to false"
        )
    return runtime


def _resolve(
    settings: RunSpec,
    run: RunDirectory,
    device: torch.device,
    ctx: DistributedContext,
    accumulate: int,
    allow_inexact: bool,
    warn: Warn,
) -> RuntimeConfig:
    recorded = EnvRecord.read(run.env) if run.env.exists() else None
    before = None if recorded is None else recorded.runtime
    compiles = settings.compile
    if compiles == "auto":
        compiles = device.type == "cuda" if before is None else before.compile
    # torch.compile fuses by itself; a run that began without kernels goes on without them.
    wanted = settings.cpu_kernels is not False and not compiles
    wanted = wanted and (before is None or before.cpu_kernels)
    support = kernel_support(device) if wanted else KernelSupport(None)
    found = RuntimeConfig(
        device=device.type,
        precision=pick_precision(settings.precision, device),
        memory_format=memory_format(device),
        compile=compiles,
        fused=device.type in _FUSED_DEVICES,
        cpu_kernels=support.instructions is not None,
        threads=torch.get_num_threads(),
        accumulate=accumulate,
        world_size=ctx.world_size,
    )
    if recorded is None:
        runtime = found
        _warn_of_missing_kernels(settings, device, support, warn)
    else:
        _warn_of_changes(recorded, device, warn)
        runtime = _repeat(recorded.runtime, found, allow_inexact=allow_inexact, warn=warn)
    if runtime != before:
        describe_environment(describe(device), runtime).write(run.env)
    return runtime


def _warn_of_missing_kernels(
    settings: RunSpec, device: torch.device, support: KernelSupport, warn: Warn
) -> None:
    if support.reason is None:
        return
    if support.instructions is not None:
        warn(
            "run.cpu_kernels: a newer C++ compiler would make training faster; this one cannot "
            f"use the processor's {support.reason}"
        )
    elif settings.cpu_kernels is True or device.type == "cpu":
        warn(
            "run.cpu_kernels: torch's own operations train the network, which takes longer; there "
            f"are no CPU kernels here: {support.reason}"
        )


def _warn_of_changes(recorded: EnvRecord, device: torch.device, warn: Warn) -> None:
    now = versions()
    changes = {
        name: (version, now.get(name))
        for name, version in recorded.versions.items()
        if now.get(name) != version
    }
    if recorded.device != describe(device):
        changes["the device"] = (recorded.device, describe(device))
    for name, (before, after) in changes.items():
        warn(f"the run may not resume to the same bits: {name} was {before} and is {after}")


def _repeat(
    before: RuntimeConfig, found: RuntimeConfig, *, allow_inexact: bool, warn: Warn
) -> RuntimeConfig:
    """Return what was recorded, except for the values that cannot be repeated."""
    lost = (name for name in _NEED_A_COMPILER if getattr(before, name) and not getattr(found, name))
    names = (*_NOT_REPEATABLE, *lost)
    differing = {n: getattr(found, n) for n in names if getattr(found, n) != getattr(before, n)}
    if not differing:
        return before
    text = ", ".join(f"{n} was {getattr(before, n)} and is {differing[n]}" for n in differing)
    # Threads follow from the number of processes, which share the cores.
    allowed = {"world_size", "threads"} if "world_size" in differing else set()
    if not (allow_inexact or differing.keys() <= allowed):
        raise UsageError(
            f"the run cannot resume to the same bits: {text}; restore the old values, or add "
            "--allow-inexact"
        )
    warn(f"the run resumes, but not to the same bits: {text}")
    return before.model_copy(update=differing)


def resolve_device(name: str, ctx: DistributedContext = SINGLE_PROCESS) -> torch.device:
    """Return the device of this process; several processes use one GPU each, or the CPU.

    Args:
        name: A torch device, or ``"auto"``: CUDA, then MPS, then CPU.
        ctx: The process group.

    Raises:
        UsageError: There is no such device, or not one for each process.
    """
    device = pick_device(name)
    if ctx.world_size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or ":" in name:
        raise UsageError(
            f"run.device: {ctx.world_size} processes cannot train on '{name}'; give `cuda` or `cpu`"
        )
    count = torch.cuda.device_count()
    if ctx.local_world_size > count:
        raise UsageError(
            f"run.device: {ctx.local_world_size} processes need as many GPUs, and there are {count}"
        )
    own = torch.device("cuda", ctx.local_rank)
    torch.cuda.set_device(own)
    return own


def resolve_threads(
    settings: RunSpec, run: RunDirectory | None, ctx: DistributedContext = SINGLE_PROCESS
) -> int | None:
    """Return the number of threads: that of the spec, of ``env.json``, or a share of the cores.

    Args:
        settings: The ``run`` section of the spec.
        run: The run directory, which may have no ``env.json`` yet; ``None`` for a new run.
        ctx: The process group. With another number of processes than before, what ``env.json``
            says does not count.

    Returns:
        The number, or ``None`` for torch's default.

    Raises:
        CheckpointError: ``env.json`` is damaged.
    """
    if settings.threads != "auto":
        return settings.threads
    before: RuntimeConfig | None = None
    if run is not None:
        before = ctx.run_on_main(
            lambda: EnvRecord.read(run.env).runtime if run.env.exists() else None
        )
    if before is not None and before.world_size == ctx.world_size:
        return before.threads
    return None if ctx.world_size == 1 else threads_per_process(ctx.local_world_size)


def threads_per_process(processes: int) -> int:
    """Return the number of threads with which each of several processes finds free cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    return max(1, min(torch.get_num_threads(), cores // processes))


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Return the precision of training; ``"auto"`` is bf16 where the hardware is fast in it."""
    if wanted != "auto":
        return wanted
    return "bf16" if fast_bf16(device) else "fp32"


def memory_format(device: torch.device) -> MemoryFormat:
    """Return the memory format in which convolutions are fastest on a device."""
    return "contiguous" if device.type == "mps" else "channels_last"


def set_backend_flags(*, threads: int | None = None) -> Callable[[], None]:
    """Set torch's global flags for training. Only the command line and benchmarks call this.

    fp32 may be computed in TF32 where the hardware has it. cuDNN uses deterministic convolutions
    only, and does not time them to choose one: that would be another one on another day.

    Args:
        threads: Threads of an operation; ``None`` leaves them as they are.

    Returns:
        A function that restores the flags; glibc's memory settings stay for the process.
    """
    if not fast_bf16(torch.device("cpu")):
        _keep_freed_memory()
    undo = ExitStack()
    if threads is not None:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high")
    for name, value in {"allow_tf32": True, "deterministic": True, "benchmark": False}.items():
        undo.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        setattr(torch.backends.cudnn, name, value)
    return undo.close


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees, for the next step of this process.

    By default glibc returns large blocks to the system, and each step pays for new pages. Training
    in fp32 is faster with this setting, training in bf16 is slower: see docs/decisions.md.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3  # numbers from glibc's malloc.h
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def compile_network(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that computes a network by ``torch.compile``, for fixed shapes.

    Args:
        network: The network.
        device: Device of the network. On CUDA, whole graphs of kernels are replayed.

    Raises:
        UsageError: The network cannot be compiled; raised by the first call of the function.
    """
    is_cuda = device.type == "cuda"
    options: dict[str, Any] = {"mode": "reduce-overhead"} if is_cuda else {}
    forward = torch.compile(network, dynamic=False, **options)

    def compute(images: Tensor) -> Tensor:
        if is_cuda:  # the graphs may overwrite the outputs of the step before
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return forward(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]  # torch adds pages to it
            raise UsageError(
                f"run.compile: the network cannot be compiled: {reason}; set it to false"
            ) from error

    return compute
