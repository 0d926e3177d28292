"""Environment of a training: device, precision, threads, compilation, flags, versions.

All of it can change the bits of a result. It is decided once, before the first step, kept in each
checkpoint, and repeated when the run is resumed.
"""

import ctypes
import getpass
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resnet_builder.cpu import kernel_support
from resnet_builder.data.interfaces import Stop, never
from resnet_builder.device import Precision, describe, fast_bf16, memory_format, pick_device
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.runs.files import Warn, ignore
from resnet_builder.runs.records import EnvRecord, RuntimeConfig, versions
from resnet_builder.spec.schema import RunSpec
from resnet_builder.system import cache_dir, code_cache
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext

_FUSED_DEVICES = frozenset({"cpu", "cuda"})
"""Devices whose fused optimizers are known to change no weight where ``found_inf`` is set."""

_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    *("ONEDNN_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_MAX_CPU_ISA", "DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE"),
    *("MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS"),
    *("OMP_DYNAMIC", "OMP_THREAD_LIMIT"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
    "TORCHINDUCTOR_MAX_AUTOTUNE",
)
"""Environment variables that change the bits of a result, and no record of torch shows."""


def resolve_environment(
    settings: RunSpec,
    before: RuntimeConfig | None,
    ctx: DistributedContext = SINGLE_PROCESS,
    *,
    warn: Warn = ignore,
) -> EnvRecord:
    """Decide the environment of a training; every process calls this.

    What the spec says is done. Where it says ``auto``, the configuration before is repeated, as far
    as this machine can; a new run takes what is fastest.

    Args:
        settings: The ``run`` section of the spec.
        before: Runtime configuration of the run that is resumed; ``None`` for a new run.
        ctx: The process group.
        warn: Told, in the main process, of what a new run cannot use.

    Raises:
        UsageError: There is no such device, or this process lacks the CPU kernels that the main
            process has.
    """
    device = resolve_device(settings.device, ctx)
    env = ctx.run_on_main(partial(_resolve, settings, before, device, ctx, warn))
    kernels = env.runtime.cpu_kernels
    if kernels is not None and (support := kernel_support(device)).instructions != kernels:
        raise UsageError(
            f"process {ctx.rank} lacks the CPU kernels ({kernels}) that process 0 trains with: "
            f"{support.reason or support.instructions}; set run.cpu_kernels to false"
        )
    return env


def _resolve(
    settings: RunSpec,
    before: RuntimeConfig | None,
    device: torch.device,
    ctx: DistributedContext,
    warn: Warn,
) -> EnvRecord:
    precision, compiles = settings.precision, settings.compile
    if precision == "auto" and before is not None:
        precision = before.precision
    if compiles == "auto":
        compiles = device.type == "cuda" if before is None else before.compile
    # torch.compile fuses by itself; a run that began without kernels goes on without them.
    has_kernels = settings.cpu_kernels is not False and not compiles
    if settings.cpu_kernels == "auto" and before is not None and before.cpu_kernels is None:
        has_kernels = False
    if before is None and has_kernels:
        _warn_of_missing_kernels(settings, device, warn)
    return EnvRecord(
        runtime=RuntimeConfig(
            device=device.type,
            precision=pick_precision(precision, device),
            memory_format=memory_format(device),
            compile=compiles,
            fused=device.type in _FUSED_DEVICES,
            cpu_kernels=kernel_support(device).instructions if has_kernels else None,
            threads=torch.get_num_threads(),
            world_size=ctx.world_size,
        ),
        device=describe(device),
        versions=versions(),
        flags=_flags(device),
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
    )


def _flags(device: torch.device) -> dict[str, str]:
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    if device.type == "cpu" and products == "high":
        products = "highest"  # "high" allows TF32, which processors do not have
    flags: dict[str, object] = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": products,
    }
    if device.type == "cuda":
        names = ("enabled", "allow_tf32", "deterministic", "benchmark")
        flags |= {f"cudnn.{name}": getattr(cudnn, name) for name in names}
        flags["cudnn.version"] = cudnn.version()
    return {name: str(value) for name, value in flags.items()}


def _warn_of_missing_kernels(settings: RunSpec, device: torch.device, warn: Warn) -> None:
    support = kernel_support(device)
    if support.instructions is not None and support.reason is not None:
        warn(
            "run.cpu_kernels: a newer C++ compiler would make training faster; this one cannot "
            f"use the processor's {support.reason}"
        )
    elif support.reason is not None and (settings.cpu_kernels is True or device.type == "cpu"):
        warn(
            "run.cpu_kernels: torch's own operations train the network, which takes longer; there "
            f"are no CPU kernels here: {support.reason}"
        )


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
    settings: RunSpec, before: RuntimeConfig | None, ctx: DistributedContext = SINGLE_PROCESS
) -> int | None:
    """Return the number of threads: that of the spec, of the run, or a share of the cores.

    Args:
        settings: The ``run`` section of the spec.
        before: Runtime configuration of the run that is resumed, if there is one. With another
            number of processes than before, it does not count.
        ctx: The process group.

    Returns:
        The number, or ``None`` for torch's default.
    """
    if settings.threads != "auto":
        return settings.threads
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


def set_backend_flags(*, threads: int | None = None) -> Callable[[], None]:
    """Set torch's global flags for training. Only sessions and benchmarks call this.

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
    """
    _use_private_caches()
    is_cuda = device.type == "cuda"
    options: dict[str, Any] = {"mode": "reduce-overhead"} if is_cuda else {}
    forward = torch.compile(network, dynamic=False, **options)

    def compute(images: Tensor) -> Tensor:
        if is_cuda:  # the graphs may overwrite the outputs of the step before
            torch.compiler.cudagraph_mark_step_begin()
        return forward(images)

    return compute


def _use_private_caches() -> None:
    """Let torch.compile load code only from folders that no other user can write."""
    inductor, triton = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
    kept = Path(os.environ.get(inductor, ""))
    if kept == Path() or kept.name.startswith("torchinductor_"):  # as torch sets it by itself
        kept = cache_dir() / "inductor"
    os.environ[inductor] = str(code_cache(kept.absolute()))
    if kept_by_triton := os.environ.pop(triton, None):
        os.environ[triton] = str(code_cache(Path(kept_by_triton).absolute()))
    # Some caches (precompiled headers, for one) are always in torch's own place in the temporary
    # folder, which another user can have taken.
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # whom the password file does not know
        user = f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown_user"
    own = Path(tempfile.gettempdir()).resolve() / (
        "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user)
    )
    if (private := code_cache(own)) != own:
        tempfile.tempdir = os.environ["TMPDIR"] = str(private)
        if "torch._inductor.codecache" in sys.modules:  # it has looked up the folder already
            torch._inductor.config.cpp_cache_precompile_headers = False


@contextmanager
def compile_errors_explained(should_stop: Stop = never) -> Iterator[None]:
    """Context that explains why a network cannot be compiled, be it in a forward or backward pass.

    Args:
        should_stop: Polled after an error: Ctrl-C of a terminal ends the compiler, too.

    Raises:
        Stopped: The user asked for a stop.
        UsageError: The network cannot be compiled.
    """
    try:
        yield
    except RuntimeError as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # importing it takes a second
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        if should_stop():
            raise Stopped("stopped while the network was compiled") from error
        reason = str(error).strip().partition("\n")[0]  # torch adds pages to it
        raise UsageError(
            f"run.compile: the network cannot be compiled: {reason}; set it to false"
        ) from error
