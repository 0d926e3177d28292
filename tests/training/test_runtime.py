"""Environment of a training: decided once, kept in checkpoints, repeated or refused."""

import os
import platform
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from resnet_builder.builder import build
from resnet_builder.cpu import KernelSupport, kernel_support
from resnet_builder.device import describe, memory_format
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import Change, EnvRecord, MetricsLog, RuntimeConfig, versions
from resnet_builder.spec.schema import RunSpec
from resnet_builder.training import runtime
from resnet_builder.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.provenance import (
    Provenance,
    change_notices,
    check_environment_unchanged,
    record_provenance,
    recorded_runtime,
)
from resnet_builder.training.runtime import (
    compile_network,
    pick_precision,
    resolve_device,
    resolve_environment,
    resolve_threads,
    set_backend_flags,
    threads_per_process,
)
from resnet_builder.training.state import TrainState
from resnet_builder.weights.file import read_weights
from tests.cpu import NEEDS_KERNELS
from tests.networks import cifar_spec
from tests.training.recipes import CLASSES, batch, small_net
from tests.training.runs import Recorder, after, experiment, outcome, train

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
KERNELS = kernel_support(CPU).instructions
NO_COMPILER = KernelSupport(None, "there is no C++ compiler")


def resolved(path: Path, *, inexact: bool = False, **run: Any) -> tuple[EnvRecord, list[str]]:
    """Resolve the environment of a run on the CPU, and save it; return it, and the warnings."""
    directory = RunDirectory(path)
    checkpoint = load_newest(directory)
    before = None if checkpoint is None else checkpoint.provenance
    warnings: list[str] = []
    found = resolve_environment(
        RunSpec.model_validate({"device": "cpu", **run}),
        None if before is None else recorded_runtime(directory, before),
        warn=warnings.append,
    )
    changes = []
    if before is not None:
        changes = check_environment_unchanged(directory, before, found, allow_inexact=inexact)
    now = Provenance(spec="", env=found)
    record_provenance(directory, now, changes, step=1)
    directory.checkpoints.mkdir(exist_ok=True)
    saved = Checkpoint(
        state=TrainState(step=1),
        optimizer="SGD",
        provenance=now,
        metrics_bytes=0,
        tensors={"model/weight": torch.zeros(1)},
    )
    save_checkpoint(directory, saved, 2)
    return found, [*warnings, *change_notices(changes)]


def recorded_changes(path: Path) -> list[tuple[str, Any, Any]]:
    lines = (path / "changes.jsonl").read_text().splitlines()
    changes = [Change.from_json(line, "line") for line in lines]
    return [(change.path, change.before, change.after) for change in changes]


def with_kernels(patch: pytest.MonkeyPatch, *support: KernelSupport) -> None:
    """Set the CPU kernels that are found, one call after the other."""
    answers = iter(support)
    last = support[-1]
    patch.setattr(runtime, "kernel_support", lambda device: next(answers, last))


def test_environment_follows_from_the_spec_and_the_machine(tmp_path: Path) -> None:
    found, _ = resolved(tmp_path, precision="bf16")
    assert found.runtime == RuntimeConfig(
        device="cpu",
        precision="bf16",
        memory_format="channels_last",
        compile=False,
        fused=True,
        cpu_kernels=KERNELS,
        threads=torch.get_num_threads(),
        world_size=1,
    )
    assert (found.device, found.versions) == (describe(CPU), versions())
    assert EnvRecord.read(tmp_path / "env.json") == found


def test_resumed_run_repeats_what_a_checkpoint_says_and_env_json_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resolved(tmp_path)
    monkeypatch.setattr(runtime, "fast_bf16", lambda device: before[0].runtime.precision == "fp32")
    monkeypatch.setattr(torch, "get_num_threads", lambda: before[0].runtime.threads)
    (tmp_path / "env.json").unlink()
    assert resolved(tmp_path) == before
    other = before[0].model_copy(update={"device": "another"})
    other.write(tmp_path / "env.json")
    assert resolved(tmp_path) == before
    assert EnvRecord.read(tmp_path / "env.json") == before[0]
    assert not (tmp_path / "changes.jsonl").exists()


CHANGES: dict[str, Any] = {
    "device": (
        lambda patch: patch.setattr(runtime, "describe", lambda device: "another CPU"),
        ("device", describe(CPU), "another CPU"),
    ),
    "threads": (
        lambda patch: patch.setattr(torch, "get_num_threads", lambda: 7),
        ("runtime.threads", 1, 7),
    ),
    "version": (
        lambda patch: patch.setattr(runtime, "versions", lambda: {**versions(), "numpy": "0.1"}),
        ("versions.numpy", versions()["numpy"], "0.1"),
    ),
    "flag": (
        lambda patch: patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium"),
        ("flags.float32_matmul_precision", "highest", "medium"),
    ),
    "variable": (
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        ("variables.ONEDNN_MAX_CPU_ISA", None, "AVX2"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_the_bits_is_refused_or_allowed_and_recorded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, (path, before, after) = CHANGES[name]
    resolved(tmp_path)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    change(monkeypatch)
    with pytest.raises(UsageError) as caught:
        resolved(tmp_path)
    text = f"{path} was {'not set' if before is None else before} and is {after}"
    assert str(caught.value) == (
        f"the run cannot resume to the same bits: {text}; restore the old values, or add "
        "--allow-inexact"
    )
    assert files == {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    assert resolved(tmp_path, inexact=True)[1] == [
        f"the run resumes, but not to the same bits: {text}"
    ]
    assert recorded_changes(tmp_path) == [(path, before, after)]
    assert resolved(tmp_path)[1] == []


@pytest.mark.parametrize(
    ("key", "before", "after"), [("precision", "fp32", "bf16"), ("compile", False, True)]
)
def test_key_of_the_spec_is_obeyed_or_refused_and_auto_repeats_the_run(
    key: str, before: Any, after: Any, tmp_path: Path
) -> None:
    settings: list[Any] = [{key: value} for value in (before, "auto", after)]
    old, auto, new = settings
    resolved(tmp_path, **old)
    assert getattr(resolved(tmp_path, **auto)[0].runtime, key) == before
    with pytest.raises(UsageError, match=rf"runtime\.{key} was {before} and is {after}"):
        resolved(tmp_path, **new)
    found, _ = resolved(tmp_path, inexact=True, **new)
    assert getattr(found.runtime, key) == after
    assert getattr(resolved(tmp_path)[0].runtime, key) == after


def test_training_is_refused_with_other_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "run", experiment(), should_stop=after(2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(UsageError, match=r"runtime\.threads was 1 and is 2"):
        train(tmp_path / "run", experiment())
    recorder = Recorder()
    train(tmp_path / "run", experiment(), allow_inexact=True, callbacks=[recorder])
    assert len(recorder.warnings) == 1


@pytest.mark.parametrize(
    ("wanted", "device", "compiled"),
    [("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True), (False, "cuda", False)],
)
def test_auto_compiles_on_cuda(
    wanted: Any, device: str, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "pick_device", lambda name: torch.device(device))
    monkeypatch.setattr(runtime, "describe", str)
    monkeypatch.setattr(runtime, "fast_bf16", lambda device: True)
    found, _ = resolved(tmp_path, compile=wanted)
    assert found.runtime.compile is compiled
    has_kernels = KERNELS is not None and device == "cpu" and not compiled
    assert (found.runtime.cpu_kernels is not None) is has_kernels


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_network_that_cannot_be_compiled_is_an_error_with_advice_or_a_stop(
    where: str, is_stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C of a terminal ends the compiler, too."""
    error = torch._dynamo.exc.Unsupported("data-dependent branching\nfrom user code ...")
    stop = False

    def fail(*_: object) -> None:
        nonlocal stop
        stop = is_stopped
        raise error

    def compiled(network: nn.Module, **_: object) -> Any:
        if where == "forward":
            return fail
        next(network.parameters()).register_hook(fail)
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    text = "run.compile: the network cannot be compiled: data-dependent branching; set it to false"
    expected, message = (Stopped, "stopped while") if is_stopped else (UsageError, text)
    with pytest.raises(expected, match=message):
        train(tmp_path, experiment(run={"compile": True}), should_stop=lambda: stop)


@pytest.mark.parametrize(
    ("device", "mode"), [(CPU, {}), (CUDA, {"mode": "reduce-overhead"})], ids=str
)
def test_cuda_replays_graphs_of_kernels(
    device: torch.device, mode: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_, begin = Mock(), Mock()
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin)
    network = small_net()
    compile_network(network, device)(batch(0).images)
    compile_.assert_called_once_with(network, dynamic=False, **mode)
    assert begin.call_count == (device == CUDA)


@pytest.mark.skipif(sys.platform == "win32", reason="other rights")
@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"])
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_compiled_code_is_kept_where_only_the_user_can_write(
    variable: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "cache")
    given = tmp_path / "given"
    given.mkdir()
    given.chmod(mode)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_me")  # torch writes it there
    monkeypatch.setenv(variable, str(given))
    compile_network(small_net(), CPU)
    assert (os.environ[variable] == str(given)) == (mode == 0o755)
    if variable == "TRITON_CACHE_DIR":
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "inductor")


@pytest.mark.skipif(sys.platform == "win32", reason="other rights")
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_torch_s_own_place_is_passed_over_if_others_can_write_it(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    own = Path(default_cache_dir())
    own.mkdir()
    own.chmod(mode)
    with torch._inductor.config.patch(cpp_cache_precompile_headers=True):  # undone at the end
        compile_network(small_net(), CPU)
    now = Path(default_cache_dir())
    assert (now == own) == (mode == 0o755)
    assert stat.S_IMODE(now.parent.stat().st_mode) == 0o700
    assert os.environ["TMPDIR"] == tempfile.gettempdir()


@NEEDS_KERNELS
@pytest.mark.parametrize("wanted", ["auto", True, False])
def test_cpu_kernels_are_used_unless_the_spec_forbids_it(tmp_path: Path, wanted: Any) -> None:
    found, warnings = resolved(tmp_path, cpu_kernels=wanted)
    assert found.runtime.cpu_kernels == (None if wanted is False else KERNELS)
    assert warnings == []


def test_missing_compiler_is_a_warning_and_kernels_that_come_later_are_used_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels(monkeypatch, NO_COMPILER)
    found, warnings = resolved(tmp_path)
    assert found.runtime.cpu_kernels is None
    assert warnings == [
        "run.cpu_kernels: torch's own operations train the network, which takes longer; there are "
        "no CPU kernels here: there is no C++ compiler"
    ]
    with_kernels(monkeypatch, KernelSupport("AMX"))
    assert resolved(tmp_path) == (found, [])
    with pytest.raises(UsageError, match=r"runtime\.cpu_kernels was not set and is AMX"):
        resolved(tmp_path, cpu_kernels=True)


def test_instructions_that_the_compiler_lacks_are_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels(monkeypatch, KernelSupport("AVX512", "AMX: c++: error"))
    [warning] = resolved(tmp_path)[1]
    assert warning.endswith("this one cannot use the processor's AMX: c++: error")
    assert resolved(tmp_path)[1] == []


@pytest.mark.parametrize(("now", "text"), [(NO_COMPILER, "not set"), (KernelSupport("AMX"), "AMX")])
def test_kernels_that_are_gone_or_of_other_instructions_are_an_error(
    now: KernelSupport, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels(monkeypatch, KernelSupport("AVX2"))
    resolved(tmp_path)
    with_kernels(monkeypatch, now)
    with pytest.raises(UsageError, match=rf"runtime\.cpu_kernels was AVX2 and is {text}"):
        resolved(tmp_path)


def test_kernels_that_another_process_lacks_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels(monkeypatch, KernelSupport("AVX2"), KernelSupport("AVX2"), NO_COMPILER)
    with pytest.raises(UsageError) as caught:
        resolved(tmp_path)
    assert str(caught.value) == (
        "process 0 lacks the CPU kernels (AVX2) that process 0 trains with: there is no C++ "
        "compiler; set run.cpu_kernels to false"
    )


@NEEDS_KERNELS
def test_kernels_train_as_torch_does(tmp_path: Path) -> None:
    """In fp32, for a few steps: rounding differs, and grows."""
    losses = []
    for wanted in (True, False):
        train(tmp_path / str(wanted), experiment(run={"cpu_kernels": wanted, "precision": "fp32"}))
        rows = MetricsLog(RunDirectory(tmp_path / str(wanted))).read()
        losses.append([row.train_loss for row in rows if row.event == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != losses[1], "both were computed in the same way"


@pytest.mark.parametrize(
    "compile_", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_speed_settings_change_results_by_rounding_alone(
    compile_: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {"ema": {"decay": 0.9}, "clip_norm": 1.0, "accumulate": 2}
    network = cifar_spec(widths=(4, 6), classes=CLASSES)

    def weights(name: str, compile_: bool) -> dict[str, Tensor]:
        spec = experiment(run={"compile": compile_}, **recipe)
        train(tmp_path / name, spec, model=build(network, seed=0))
        return read_weights(RunDirectory(tmp_path / name).last)[0]

    undo = set_backend_flags()
    fast = weights("fast", compile_)
    undo()
    monkeypatch.setattr(runtime, "memory_format", lambda device: "contiguous")
    monkeypatch.setattr(runtime, "_FUSED_DEVICES", frozenset())
    torch.testing.assert_close(fast, weights("plain", False), rtol=1e-3, atol=1e-5)


@pytest.mark.ci
def test_compiled_run_repeats_itself_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Also with dropout in the network; evaluations compile nothing."""
    given = experiment(run={"compile": True}, ema={"decay": 0.9}, clip_norm=1.0)
    network = cifar_spec(widths=(4, 6), classes=CLASSES, drop_path=0.2)
    torch._dynamo.utils.counters.clear()
    train(tmp_path / "once", given, model=build(network, seed=0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    with pytest.raises(Stopped):
        train(tmp_path / "again", given, model=build(network, seed=0), should_stop=after(7))
    train(tmp_path / "again", given, model=build(network, seed=0))
    assert outcome(tmp_path / "again") == outcome(tmp_path / "once")
    assert EnvRecord.read(RunDirectory(tmp_path / "again").env).runtime.compile


def test_precision_and_memory_format_are_those_the_device_is_fast_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "fast_bf16", lambda device: device.type == "cuda")
    assert [pick_precision("auto", device) for device in (CUDA, CPU)] == ["bf16", "fp32"]
    assert pick_precision("fp32", CUDA) == "fp32"
    assert pick_precision("bf16", CPU) == "bf16"
    formats = [memory_format(torch.device(name)) for name in ("cpu", "cuda", "mps")]
    assert formats == ["channels_last", "channels_last", "contiguous"]


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(runtime, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    ctx = DistributedContext(rank=3, world_size=4, local_rank=1, local_world_size=2)
    assert resolve_device("cuda", ctx) == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    assert resolve_device("cuda:1", SINGLE_PROCESS) == torch.device("cuda", 1)
    for name in ("cuda:1", "mps"):
        with pytest.raises(UsageError, match=f"cannot train on '{name}'; give `cuda` or `cpu`"):
            resolve_device(name, ctx)
    with pytest.raises(UsageError, match="3 processes need as many GPUs, and there are 2"):
        resolve_device("cuda", DistributedContext(2, 3, local_rank=2, local_world_size=3))


def test_threads_are_those_of_the_spec_or_of_the_run_or_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_threads(RunSpec(), None) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    before = resolved(tmp_path)[0].runtime
    assert resolve_threads(RunSpec(), before) == 7
    assert resolve_threads(RunSpec(threads=3), before) == 3


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [threads_per_process(count) for count in (2, 3, 16)] == [4, 2, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # as torchrun sets it
    assert threads_per_process(2) == 1


def flags() -> dict[str, Any]:
    cudnn = ("allow_tf32", "deterministic", "benchmark")
    return {
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        **{name: getattr(torch.backends.cudnn, name) for name in cudnn},
    }


@pytest.mark.parametrize("threads", [None, 3])
def test_backend_flags_are_set_and_restored(threads: int | None) -> None:
    before = flags()
    undo = set_backend_flags(threads=threads)
    try:
        assert flags() == {
            "threads": threads or before["threads"],
            "precision": "high",
            "allow_tf32": True,
            "deterministic": True,
            "benchmark": False,
        }
    finally:
        undo()
    assert flags() == before


FREED = """
import os
from resnet_builder.training import runtime

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for is_fast in (True, False):
    runtime.fast_bf16 = lambda device: is_fast
    runtime.set_backend_flags()
    before = held()
    block = bytearray(2**26)
    del block
    print(held() - before > 2**25)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept_where_training_is_in_fp32() -> None:
    """In a process of its own: the setting stays."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
