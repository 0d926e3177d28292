"""Files of other programs: every format, made plain, or refused by what it is."""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_builder.errors import CheckpointError, NonFiniteError, StorageError, UsageError
from resnet_builder.runs.tensor_files import write_tensors
from resnet_builder.weights.file import WeightsHeader, save_weights
from resnet_builder.weights.foreign import read_foreign
from tests.weights.torch_files import Call, Memory, crafted, tensor, write_pickles, write_zip

HEADER = WeightsHeader(spec='name: "t"\n', classes=("a",), mean=(0.0,), std=(1.0,), step=1)


def weights() -> dict[str, Tensor]:
    return {
        "conv1.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
        "bn1.num_batches_tracked": torch.tensor(7),
        "fc.bias": torch.tensor([0.5, -0.5]),
    }


def check(path: Path, expected: dict[str, Tensor]) -> None:
    read = read_foreign(path).tensors
    assert tuple(read) == tuple(expected)
    for name, tensor_ in expected.items():
        assert read[name].dtype == tensor_.dtype
        assert torch.equal(read[name], tensor_), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.mark.parametrize("ending", ["pth", "pt", "th", "tar", "ckpt", "bin", "safetensors", "txt"])
def test_ending_does_not_matter(ending: str, path: Path) -> None:
    path = path.with_suffix(f".{ending}")
    torch.save(weights(), path)
    check(path, weights())
    safetensors.torch.save_file(weights(), path)
    check(path, dict(sorted(weights().items(), key=lambda item: item[1].dtype != torch.int64)))


def test_format_is_told(path: Path) -> None:
    torch.save(weights(), path)
    assert read_foreign(path).format == "torch"
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    assert read_foreign(path).format == "torch before 1.6"
    safetensors.torch.save_file(weights(), path, {"format": "pt"})
    assert read_foreign(path).format == "safetensors"


def test_file_of_torch_before_1_6_is_read(path: Path) -> None:
    torch.save({"net": weights()}, path, _use_new_zipfile_serialization=False)
    check(path, weights())


def with_location(pickled: bytes, location: bytes) -> bytes:
    """Say in a pickle that the tensors were on another device."""
    return pickled.replace(b"\x03\0\0\0cpu", len(location).to_bytes(4, "little") + location)


@pytest.mark.parametrize("location", [b"cuda:0", b"cuda:7", b"mps", b"xpu:0"])
def test_tensors_of_another_device_are_read_on_the_cpu(location: bytes, path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(with_location(path.read_bytes(), location))
    assert location in path.read_bytes()
    check(path, weights())

    torch.save(weights(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, with_location(data, location))
    check(path, weights())
    assert read_foreign(path).tensors["fc.bias"].device.type == "cpu"


def test_text_of_python_2_is_read(path: Path) -> None:
    pickled = crafted({"w": tensor()})
    for text in (b"w", b"storage", b"0", b"cpu"):
        written = b"X" + len(text).to_bytes(4, "little") + text
        assert written in pickled
        pickled = pickled.replace(written, b"U" + bytes([len(text)]) + text)
    write_pickles(path, pickled.replace(b"K\x02t", b"K\x02Nt"), ["0"], b"\2" + bytes(7) + bytes(8))
    check(path, {"w": torch.zeros(2)})


def test_tensor_of_the_first_form_is_read(path: Path) -> None:
    memory = Memory("storage", torch.FloatStorage, "0", "cuda:0", 2, None)
    old = Call(torch._utils._rebuild_tensor, memory, 0, (2, 1), (1, 1))
    write_pickles(path, crafted({"w": old}), ["0"], b"\2" + bytes(7) + bytes(8))
    check(path, {"w": torch.zeros(2, 1)})


def test_view_of_memory_is_read(path: Path) -> None:
    memory = Memory("storage", torch.FloatStorage, "0", "cpu", 3, ("1", 1, 2))
    values = torch.tensor([1.0, 2.0, 3.0])
    write_pickles(
        path,
        crafted({"w": tensor(memory=memory)}),
        ["0"],
        b"\3" + bytes(7) + values.numpy().tobytes(),
    )
    check(path, {"w": values[1:]})


def test_parameter_is_read_as_its_values(path: Path) -> None:
    torch.save({"w": nn.Parameter(torch.ones(2))}, path)
    check(path, {"w": torch.ones(2)})
    assert not read_foreign(path).tensors["w"].requires_grad


def test_archive_without_checksums_is_read(path: Path) -> None:
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(weights(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    check(path, weights())


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (torch.float16, [1 / 3, 65504.0]),
        (torch.bfloat16, [1 / 3, 1e38]),
        (torch.float64, [1 / 3, 1e38]),
    ],
)
def test_floats_become_float32_and_it_is_told(
    dtype: torch.dtype, values: list[float], path: Path
) -> None:
    given = torch.tensor(values, dtype=dtype)
    torch.save({"w": given, "plain": torch.ones(2), "n": torch.tensor(3)}, path)
    read = read_foreign(path)
    assert read.converted == (str(dtype).removeprefix("torch."),)
    assert read.tensors["w"].dtype == torch.float32
    assert torch.equal(read.tensors["w"], given.float())


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_integers_stay(dtype: torch.dtype, path: Path) -> None:
    given = {"w": torch.tensor([0, 1, 1]).to(dtype)}
    torch.save(given, path)
    check(path, given)
    assert read_foreign(path).converted == ()


def test_tensors_come_alone_and_contiguous(path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    torch.save({"a": shared, "b": shared.t(), "c": shared[1:, ::2], "d": images}, path)
    read = read_foreign(path).tensors
    assert torch.equal(read["b"], shared.t())
    assert torch.equal(read["c"], shared[1:, ::2])
    assert torch.equal(read["d"], images)
    assert all(each.is_contiguous() for each in read.values())
    assert len({each.untyped_storage().data_ptr() for each in read.values()}) == 4
    read["a"].zero_()
    assert torch.equal(read["b"], shared.t())
    assert torch.equal(read_foreign(path).tensors["a"], shared)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weight_that_is_not_finite_is_named(bad: float, dtype: torch.dtype, path: Path) -> None:
    torch.save({"a": torch.ones(2), "fc.bias": torch.tensor([0.0, bad], dtype=dtype)}, path)
    with pytest.raises(NonFiniteError, match=r"'fc\.bias' holds a value that is not finite"):
        read_foreign(path)


def test_weight_too_large_for_float32_is_named(path: Path) -> None:
    torch.save({"w": torch.tensor([1e300], dtype=torch.float64)}, path)
    with pytest.raises(NonFiniteError, match="'w' holds a value that is not finite"):
        read_foreign(path)


TENSORS: dict[str, Any] = {
    "is a sparse tensor": lambda: torch.eye(2).to_sparse(),
    "is a tensor without values": lambda: torch.ones(2, device="meta"),
    "is a tensor of torch.complex64": lambda: torch.ones(2, dtype=torch.complex64),
    "is a tensor of a dtype that": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "is a quantised tensor": lambda: Call(
        torch._utils._rebuild_parameter,
        Call(torch._utils._rebuild_qtensor, torch.per_tensor_affine),
    ),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("new", [True, False])
def test_tensor_of_another_kind_is_named(kind: str, new: bool, path: Path) -> None:
    content = {"state_dict": {"conv1.weight": torch.ones(2), "fc.weight": TENSORS[kind]()}}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=rf"model\.pth: 'fc\.weight' {kind}.*float32$"):
        read_foreign(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16])
def test_tensor_of_another_dtype_is_named_in_safetensors(dtype: torch.dtype, path: Path) -> None:
    safetensors.torch.save_file({"fc.weight": torch.ones(2).to(dtype)}, path)
    with pytest.raises(CheckpointError, match=rf"'fc\.weight' is a tensor of {dtype}; save it as"):
        read_foreign(path)


def test_own_file_is_verified(path: Path) -> None:
    save_weights(path, weights(), HEADER)
    read = read_foreign(path)
    assert read.format == "resnet-builder"
    assert read.header == HEADER
    assert torch.equal(read.tensors["fc.bias"], weights()["fc.bias"])
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="does not match its SHA-256 digest"):
        read_foreign(path)


def test_damage_to_an_own_files_header_does_not_make_it_anothers(path: Path) -> None:
    save_weights(path, weights(), HEADER)
    path.write_bytes(path.read_bytes().replace(b'"resnet_builder"', b'"resnet_bvilder"'))
    with pytest.raises(CheckpointError, match="does not match its SHA-256 digest"):
        read_foreign(path)


def test_own_checkpoint_is_no_file_of_weights(path: Path) -> None:
    write_tensors(path, weights(), {"checkpoint": "{}"})
    with pytest.raises(CheckpointError, match="it holds no weights that a run delivered"):
        read_foreign(path)


def test_own_file_has_no_averaged_weights_beside(path: Path) -> None:
    save_weights(path, weights(), HEADER)
    with pytest.raises(UsageError, match="holds no averaged weights"):
        read_foreign(path, ema=True)


def old_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


OTHERS = {
    "empty": (b"", "it is empty"),
    "page": (b"\n\n\n<!DOCTYPE html>\n<html lang='en'>", "it is a web page; .*'raw'"),
    "page-marked": (b"\xef\xbb\xbf<HTML>", "it is a web page"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "it is a pointer of Git LFS, .*by: git lfs pull",
    ),
    "tar": (old_tar(), "it is a tar, as torch 0.1 wrote them"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "it is compressed by gzip; unpack it"),
    "text": (b'{"message": "Not Found"}', "it is no file of torch.save or safetensors"),
    "noise": (bytes(range(7, 100)), "it is no file of torch.save or safetensors"),
    "pickle": (b"\x80\x02}.", "it is a pickle, but not of torch.save"),
    "pickle-4": (b"\x80\x04}.", "it is a pickle of protocol 4, not 2; save it again"),
    "pickle-0": (b"\x80\x02(dp0\n.", "it is a pickle with DICT, unlike torch.save's"),
    "zip-start": (b"PK\x03\x04" + bytes(40), "it is cut short or damaged"),
    "safetensors-start": (b"\x09" + bytes(7) + b'{"a":{}}', "it is cut short or damaged"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_is_told_what_it_is(name: str, path: Path) -> None:
    content, reason = OTHERS[name]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.pth: {reason}") as raised:
        read_foreign(path)
    assert "\n" not in str(raised.value)


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pth: there is no such file"):
        read_foreign(path)


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is a directory; name the file in it"):
        read_foreign(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="it is not a file"):
        read_foreign(path)


def test_file_that_may_not_be_read_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights(), path)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*model\.pth: Permission denied"):
        read_foreign(path)


def test_torchscript_is_told(path: Path) -> None:
    write_zip(path, crafted({}), {"constants.pkl": crafted(()), "code/model.py": b"pass"})
    with pytest.raises(CheckpointError, match="it is a TorchScript archive"):
        read_foreign(path)


def test_other_archive_is_told(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", b"")
    with pytest.raises(CheckpointError, match=r"it is a zip archive, but not of torch\.save"):
        read_foreign(path)


@pytest.mark.parametrize("new", [True, False])
def test_whole_network_is_told(new: bool, path: Path) -> None:
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError) as raised:
        read_foreign(path)
    assert str(raised.value) == (
        f"{path}: it holds a whole nn.Module, code and all (torch.nn.modules.linear.Linear);"
        " where that code is trusted, save model.state_dict() alone"
    )


class Meter:
    """A class of a training script."""


def test_class_off_the_list_is_named(path: Path) -> None:
    torch.save({"state_dict": weights(), "meter": Meter()}, path)
    with pytest.raises(CheckpointError, match=r"\(tests\.weights\.test_foreign\.Meter\)"):
        read_foreign(path)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("sixteenth", range(1, 16))
def test_file_that_is_cut_short_is_refused(sixteenth: int, new: bool, path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(CheckpointError, match="it is cut short or damaged"):
        read_foreign(path)


def test_damaged_weights_are_found_by_the_archives_checksum(path: Path) -> None:
    torch.save({"w": torch.full((100,), 0.5)}, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\0\0\0\x3f" * 50) + 102] ^= 1
    path.write_bytes(damaged)
    assert not torch.equal(torch.load(path)["w"], torch.full((100,), 0.5))  # torch does not look
    with pytest.raises(
        CheckpointError, match=r"damaged \(Bad CRC-32 for file .*\); download it again$"
    ):
        read_foreign(path)


def test_names_in_messages_are_visible(path: Path) -> None:
    torch.save({"a\n\x1b[2J": torch.tensor([float("nan")])}, path)
    with pytest.raises(NonFiniteError, match=r"'a\\x0a\\x1b\[2J' holds"):
        read_foreign(path)
