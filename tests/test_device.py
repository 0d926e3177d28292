"""Devices, on machines that are made up."""

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch

from resnet_builder.device import describe, fast_bf16, fits, full_precision, pick_device
from resnet_builder.errors import UsageError

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that makes this another machine."""

    def make(
        *,
        cuda: int = 0,
        capability: tuple[int, int] = (8, 0),
        mps: bool = False,
        avx512_bf16: bool = False,
        amx: bool = False,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return make


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"),
    [(2, False, "cuda"), (1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")],
)
def test_auto_is_cuda_then_mps_then_cpu(
    cuda: int, mps: bool, picked: str, machine: Machine
) -> None:
    machine(cuda=cuda, mps=mps)
    assert pick_device("auto") == torch.device(picked)


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "absent"),
    [
        *((name, 2, True, "") for name in ("cpu", "mps", "cuda", "cuda:0", "cuda:1")),
        ("cuda", 0, False, "there is no device 'cuda' here; there is cpu"),
        ("cuda:2", 2, False, "there is no device 'cuda:2' here; there is cpu, cuda:0, cuda:1"),
        ("cuda", 0, True, "there is no device 'cuda' here; there is cpu, mps"),
        ("xpu", 1, True, "there is no device 'xpu' here; there is cpu, cuda:0, mps"),
        ("gpu", 0, False, "no device is named 'gpu'; there is cpu"),
    ],
)
def test_device_is_picked_if_it_is_there(
    name: str, cuda: int, mps: bool, absent: str, machine: Machine
) -> None:
    machine(cuda=cuda, mps=mps)
    if not absent:
        assert pick_device(name) == torch.device(name)
        return
    with pytest.raises(UsageError) as error:
        pick_device(name)
    assert str(error.value) == absent


@pytest.mark.parametrize(
    ("name", "hardware", "fast"),
    [
        ("cuda", {"cuda": 1, "capability": (7, 5)}, False),
        ("cuda", {"cuda": 1, "capability": (8, 0)}, True),
        ("cuda", {"cuda": 1, "capability": (12, 0)}, True),
        ("cpu", {}, False),
        ("cpu", {"avx512_bf16": True}, True),
        ("cpu", {"amx": True}, True),
    ],
)
def test_bf16_is_fast_where_matrices_of_it_are_multiplied(
    name: str, hardware: Any, fast: bool, machine: Machine
) -> None:
    machine(**hardware)
    assert fast_bf16(torch.device(name)) is fast


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "end"),
    [(True, True, ", AMX)"), (True, False, ", AVX512-BF16)"), (False, False, ")")],
)
def test_hardware_has_a_name(avx512_bf16: bool, amx: bool, end: str, machine: Machine) -> None:
    machine(cuda=1, mps=True, avx512_bf16=avx512_bf16, amx=amx)
    capability = torch.backends.cpu.get_cpu_capability()
    assert describe(torch.device("cpu")) == f"CPU ({platform.machine()}, {capability}{end}"
    assert describe(torch.device("cuda")) == "NVIDIA A100"
    assert describe(torch.device("mps")) == f"Apple GPU ({platform.machine()})"


@pytest.mark.parametrize(
    ("name", "size", "held"),
    [
        ("cuda", 2 * 2**30, True),
        ("cuda", 2 * 2**30 + 1, False),
        ("cpu", 1, False),
        ("mps", 1, False),
    ],
)
def test_images_are_held_by_a_gpu_with_four_times_their_memory_free(
    name: str, size: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 80 * 2**30))
    assert fits(size, torch.device(name)) is held


def test_full_precision_is_without_tf32_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
