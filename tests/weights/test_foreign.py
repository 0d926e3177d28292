"""Checkpoints of other programs: every format is read, no code runs, the state dict is found."""

import argparse
import collections
import contextlib
import functools
import io
import operator
import os
import pathlib
import pickle
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn, optim

from resnet_builder.errors import CheckpointError, NonFiniteError, StorageError, UsageError
from resnet_builder.weights.file import WeightsHeader, save_weights
from resnet_builder.weights.foreign import FileReport, InvalidCheckpoint, read_foreign

NAMES = ("conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked", "layer1.0.bias")

ZIP_AND_OLD = pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
"""Both formats of ``torch.save``: a zip archive, and a sequence of pickles before torch 1.6."""


def state_dict(value: float = 1.0, prefix: str = "") -> dict[str, Tensor]:
    tensors = (torch.full((2, 3), value), torch.zeros(2), torch.tensor(7), torch.full((2,), value))
    return {prefix + name: tensor for name, tensor in zip(NAMES, tensors, strict=True)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a file that no reader makes unless it runs code of a checkpoint."""
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    return tmp_path / "canary"


def write(path: Path, content: object, *, new: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


def check(
    path: Path, expected: dict[str, Tensor] | None = None, *, ema: bool = False
) -> FileReport:
    """Check the tensors that are read from a file, and return the report on them."""
    tensors, report = read_foreign(path, ema=ema)
    expected = state_dict() if expected is None else expected
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    return report


# Formats and tensors.


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_content_decides_on_the_format_and_not_the_suffix(ending: str, path: Path) -> None:
    path = path.with_suffix(f".{ending}")
    check(write(path, state_dict()))
    check(write(path, state_dict(), new=False))
    safetensors.torch.save_file(state_dict(), path)
    check(path)


@pytest.mark.parametrize("location", [b"cuda:7", b"mps"])
def test_tensors_of_another_device_are_read_on_the_cpu(location: bytes, path: Path) -> None:
    write(path, state_dict(), new=False)
    said = len(location).to_bytes(4, "little") + location
    path.write_bytes(path.read_bytes().replace(b"\x03\0\0\0cpu", said))
    assert location in path.read_bytes()
    check(path)


def test_archive_without_checksums_is_read(path: Path) -> None:
    try:
        torch.serialization.set_crc32_options(False)
        check(write(path, state_dict()))
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.float16, 65504.0), (torch.bfloat16, 1e38), (torch.float64, 1e38)],
)
def test_floats_become_float32_and_are_reported(
    dtype: torch.dtype, largest: float, path: Path
) -> None:
    given = torch.tensor([1 / 3, largest], dtype=dtype)
    content = {"w": given, "plain": torch.ones(2), "n": torch.tensor(3)}
    report = check(write(path, content), {**content, "w": given.float()})
    assert report.converted == (str(dtype).removeprefix("torch."),)


def test_tensors_are_alone_in_memory_and_contiguous(path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    content = {"a": shared, "b": nn.Parameter(shared.t()), "c": shared[1:, ::2], "d": images}
    check(write(path, content), content)
    tensors, _ = read_foreign(path)
    assert all(each.is_contiguous() and not each.requires_grad for each in tensors.values())
    assert len({each.untyped_storage().data_ptr() for each in tensors.values()}) == 4


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([0.0, float("nan")]),
        torch.tensor([0.0, -float("inf")], dtype=torch.float16),
        torch.tensor([1e300], dtype=torch.float64),  # too large for float32
    ],
)
def test_weight_that_is_not_finite_is_named(bad: Tensor, path: Path) -> None:
    write(path, {"sound": torch.ones(2), "a\n\x1b[2J": bad})
    with pytest.raises(NonFiniteError, match=r"'a\\x0a\\x1b\[2J' holds a value that is not finite"):
        read_foreign(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2).to(torch.uint16),
    ],
    ids=["sparse", "meta", "complex64", "float8", "uint16"],
)
def test_tensor_of_another_kind_is_named(tensor: Tensor, path: Path) -> None:
    write(path, {"state_dict": {"conv1.weight": torch.ones(2), "fc.weight": tensor}})
    with pytest.raises(InvalidCheckpoint, match=r"model\.pth: 'fc\.weight' is a .*float32$"):
        read_foreign(path)


def test_own_file_is_verified(path: Path) -> None:
    header = WeightsHeader(spec='name: "t"\n', classes=("a",), mean=(0.0,), std=(1.0,), step=1)
    save_weights(path, state_dict(), header)
    check(path)
    sound = path.read_bytes()
    for damaged in (
        sound[:-1] + bytes([sound[-1] ^ 1]),
        sound.replace(b'"resnet_builder"', b'"resnet_bvilder"'),
        sound.replace(b'"sha256"', b'"sha255"'),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="digest"):
            read_foreign(path)


# Files that are no checkpoints.


def old_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


def archive_of(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(f"archive/{name}", b"")
    return out.getvalue()


OTHERS = {
    "empty": (b"", "it is empty"),
    "page": (b"\n\n\n<!DOCTYPE html>\n<html lang='en'>", "it is a web page; .*'raw'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", ".*by: git lfs pull"),
    "tar": (old_tar(), "it is a tar, as torch 0.1 wrote"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "it is compressed by gzip; unpack it"),
    "text": (b'{"message": "Not Found"}', "it is no file of torch.save or safetensors"),
    "pickle": (b"\x80\x02}." * 5, "torch cannot read it safely .Invalid magic number"),
    "pickle-4": (pickle.dumps({}, 4), "torch cannot read it safely"),
    "zip-start": (b"PK\x03\x04" + bytes(40), "torch cannot read it safely"),
    "torchscript": (archive_of("data.pkl", "constants.pkl"), "it is a TorchScript archive"),
    "zip": (archive_of("model.pth"), r"it is a zip archive, but not of torch\.save"),
    "safetensors-start": (b"\x09" + bytes(7) + b'{"a":{}}', "it is cut short or damaged"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_file_is_named_for_what_it_is(name: str, path: Path) -> None:
    content, reason = OTHERS[name]
    path.write_bytes(content)
    with pytest.raises(InvalidCheckpoint, match=rf"model\.pth: {reason}") as raised:
        read_foreign(path)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_missing_file_directory_and_pipe_are_named(path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"model\.pth: there is no such file"):
        read_foreign(path)
    with pytest.raises(InvalidCheckpoint, match="it is a directory; name the file in it"):
        read_foreign(path.parent)
    os.mkfifo(path)
    with pytest.raises(StorageError, match="it is a FIFO, not a regular file"):
        read_foreign(path)


@ZIP_AND_OLD
def test_whole_network_is_refused_with_advice(new: bool, path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"Linear.*save model\.state_dict\(\)|nn\.Module"):
        read_foreign(write(path, nn.Linear(2, 2), new=new))


@ZIP_AND_OLD
def test_file_that_is_cut_short_is_refused(new: bool, path: Path) -> None:
    whole = write(path, state_dict(), new=new).read_bytes()
    for sixteenth in range(1, 16):
        path.write_bytes(whole[: len(whole) * sixteenth // 16])
        with pytest.raises(InvalidCheckpoint, match="damaged"):
            read_foreign(path)


def test_damaged_weights_are_found_by_the_archives_checksum(path: Path) -> None:
    torch.save({"w": torch.full((100,), 0.5)}, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\0\0\0\x3f" * 50) + 102] ^= 1
    path.write_bytes(damaged)
    assert not torch.equal(torch.load(path)["w"], torch.full((100,), 0.5))  # torch does not look
    with pytest.raises(InvalidCheckpoint, match=r"Bad CRC-32 for file .*download it again"):
        read_foreign(path)


# Safety.


class Pickled:
    """Object that is pickled as a call, and the state of what the call returns, if any."""

    def __init__(self, function: Any, *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def touch(path: str) -> Any:
    """Function of this module that leaves a canary."""
    Path(path).touch()
    return path


class Planted:
    """Class of this module that leaves a canary however it is used."""

    def __new__(cls, *arguments: Any) -> "Planted":
        touch(os.environ["CANARY"])
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        touch(os.environ["CANARY"])

    def __setstate__(self, state: object) -> None:
        touch(os.environ["CANARY"])

    def __reduce__(self) -> Any:
        return Planted, (1,), {"a": 1}


def named(function: Any) -> bytes:
    """Return the opcode that imports a function or class."""
    return f"c{function.__module__}\n{function.__qualname__}\n".encode()


def attacks(canary: str) -> dict[str, Any]:
    """Objects, or pickles, that make a file or directory when an ordinary reader reads them."""
    made = f"__import__('pathlib').Path({canary!r}).touch()"
    text = b"X" + len(canary).to_bytes(4, "little") + canary.encode()
    # The state of an object may bring the function that gets its next state.
    touches = b"}X\x0c\0\0\0__setstate__" + named(touch) + b"sb" + text + b"b."
    return {
        "system": Pickled(os.system, f'touch "{canary}"'),
        "mkdir": Pickled(os.mkdir, canary),
        "eval": Pickled(eval, made),
        "exec": Pickled(exec, made),
        "open": Pickled(open, canary, "w"),
        "import": Pickled(__import__, "antigravity_of_a_test"),
        "hub": Pickled(torch.hub.load, canary, "model", "trust_repo", "local"),
        "partial": Pickled(operator.call, functools.partial(touch, canary)),
        "partial-state": Pickled(functools.partial, state=(touch, (canary,), {}, None)),
        "methodcaller": Pickled(operator.methodcaller, "touch"),
        "getattr": Pickled(getattr, pathlib.Path(canary), "touch"),
        "numpy": Pickled(numpy.fromfile, canary),
        "function": Pickled(touch, canary),
        "class": object.__new__(Planted),
        "load": Pickled(pickle.loads, pickle.dumps(Pickled(touch, canary))),
        "torch-load": Pickled(torch.load, canary),
        "state": b"\x80\x02" + named(argparse.Namespace) + b")\x81" + touches,
        "ordered": b"\x80\x02" + named(collections.OrderedDict) + b")R" + touches,
    }


def write_attack(path: Path, attack: Any, *, new: bool) -> None:
    """Write a file like those of ``torch.save``, with the attack beside sound weights."""
    write(path, {"w": torch.ones(2), "other": 17_041}, new=new)
    pickled = attack if isinstance(attack, bytes) else pickle.dumps(attack, 2)
    # Without the protocol before it and the stop behind it, a pickle is a part of another; its
    # memo, of short numbers, is one that nothing later reads.
    placed = pickled[2:-1]
    if not new:
        path.write_bytes(path.read_bytes().replace(b"M\x91B", placed))
        return
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data.replace(b"M\x91B", placed))


@pytest.mark.parametrize("attack", ["eval", "function", "class", "partial", "load", "getattr"])
def test_attack_works_on_an_ordinary_reader(attack: str, canary: Path, path: Path) -> None:
    """The canary is alive; what torch.load itself allows is not tried."""
    write_attack(path, attacks(str(canary))[attack], new=True)
    canary.unlink(missing_ok=True)  # making the attack may have touched it
    loaded = torch.load(path, weights_only=False)
    if attack == "getattr":
        loaded["other"]()
    assert canary.exists()


@pytest.mark.parametrize("attack", attacks("canary"))
@ZIP_AND_OLD
def test_attack_runs_nothing(
    attack: str, new: bool, path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the weights are read or the file is refused, no code of its choice runs."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which is not obeyed
    write_attack(path, attacks(str(canary))[attack], new=new)
    canary.unlink(missing_ok=True)
    with contextlib.suppress(InvalidCheckpoint):
        assert check(path, {"w": torch.ones(2)}).ignored == ("other",)
    assert not canary.exists()
    assert "antigravity_of_a_test" not in sys.modules


def test_functions_of_the_operating_system_are_named(path: Path) -> None:
    system = f"{os.system.__module__}.system"
    with pytest.raises(InvalidCheckpoint, match=rf"it calls {system}, which no weights need"):
        read_foreign(write(path, {"w": torch.ones(2), "b": Pickled(os.system, "true")}))


def test_weights_in_place_of_methods_call_nothing(path: Path) -> None:
    """A pickle may give a dict or a tensor attributes in place of its methods."""
    tensor = torch.ones(2)
    tensor.is_floating_point = 3  # type: ignore[assignment, method-assign]
    content = collections.OrderedDict(w=tensor)
    content.get = content.keys = content.values = 3  # type: ignore[assignment, method-assign]
    check(write(path, collections.OrderedDict(state_dict=content)), {"w": torch.ones(2)})


def test_names_that_others_allow_are_neither_used_nor_lost(path: Path, canary: Path) -> None:
    allowed: list[Any] = [argparse.Namespace, Planted, touch]
    with torch.serialization.safe_globals(allowed):
        before = set(torch.serialization.get_safe_globals())
        content = {"w": torch.ones(2), "kind": Pickled(touch, str(canary))}
        assert check(write(path, content), {"w": torch.ones(2)}).ignored == ("kind",)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not canary.exists()


def test_false_dtype_does_not_reach_numpy(path: Path) -> None:
    """numpy believes the state of a dtype; one that lies has numbers taken for addresses."""
    text = b"X\x02\0\0\0O8", b"X\x01\0\0\0|", b"X\x08\0\0\0" + b"A" * 8
    dtype = named(numpy.dtype) + text[0] + b"\x89\x88\x87R"
    lie = b"(K\x03" + text[1] + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    scalar = b"\x80\x02cnumpy._core.multiarray\nscalar\n" + dtype + lie + text[2] + b"\x86R."
    write_attack(path, scalar, new=True)
    assert check(path, {"w": torch.ones(2)}).ignored == ("other",)


# Wrappers.

OPTIMIZER = {
    "state": {0: {"momentum_buffer": torch.ones(2, 3)}},
    "param_groups": [{"lr": 0.1, "nesterov": False, "foreach": None, "params": [0]}],
}
SCHEDULER = {"milestones": collections.Counter([3, 5]), "gamma": 0.1, "base_lrs": [0.1]}
OPTIONS = argparse.Namespace(
    lr=0.1, device=torch.device("cpu"), output=pathlib.Path("out"), size=torch.Size([2])
)
MMENGINE = {"epoch": 1, "cfg": "text", "mmengine_version": "0.10.4"}

CODEBASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "akamaster": (
        {"epoch": 3, "state_dict": state_dict(prefix="module."), "best_prec1": torch.tensor(91.2)},
        ("state_dict", "module."),
    ),
    "chenyaofo, kellerjordan, weiaicunzai": (state_dict(), ()),
    "hysts": (
        {"model": state_dict(), "optimizer": OPTIMIZER, "scheduler": SCHEDULER, "config": {}},
        ("model",),
    ),
    "kuangliu": (
        {"net": state_dict(prefix="module."), "acc": numpy.float64(95.2), "epoch": 1},
        ("net", "module."),
    ),
    "mmpretrain": (
        {"meta": MMENGINE, "state_dict": state_dict(prefix="backbone.")},
        ("state_dict", "backbone."),
    ),
    "pycls": (
        {"epoch": 1, "ema_err": 4.0, "model_state": state_dict(), "ema_state": state_dict(2.0)},
        ("model_state",),
    ),
    "timm": (
        {
            "arch": "resnet18",
            "state_dict": state_dict(prefix="_orig_mod.module."),
            "optimizer": OPTIMIZER,
            "args": OPTIONS,
            "state_dict_ema": state_dict(2.0),
        },
        ("state_dict", "_orig_mod.", "module."),
    ),
    "torchvision": (
        {"model": state_dict(), "lr_scheduler": SCHEDULER, "args": OPTIONS},
        ("model",),
    ),
    "lightning": (
        {"epoch": 1, "state_dict": state_dict(prefix="model."), "callbacks": {}},
        ("state_dict", "model."),
    ),
    "lightning with objects": (
        {
            "epoch": 1,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": state_dict(prefix="model.module."),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'val_acc'}": {
                    "best_model_path": pathlib.Path("best.ckpt"),
                    "best_model_score": torch.tensor(0.9),
                    "best_k_models": {pathlib.Path("best.ckpt"): torch.tensor(0.9)},
                },
                "EarlyStopping": {"wait_count": 3, "best_score": torch.tensor(0.9)},
            },
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [SCHEDULER],
            "hparams_name": "kwargs",
            "hyper_parameters": {
                "options": OPTIONS,
                "optimizer": functools.partial(optim.SGD, lr=0.1),
                "sizes": collections.OrderedDict(depth=20, width=16),
                "kind": optim.SGD,
                "flags": re.RegexFlag.I,
            },
        },
        ("state_dict", "model.", "module."),
    ),
    "deepspeed": (
        {
            "module": state_dict(prefix="module.model."),
            "buffer_names": ["bn1.running_mean"],
            "optimizer": None,
            "param_shapes": [collections.OrderedDict(weight=torch.Size([2, 3]))],
            "shared_params": {},
            "lr_scheduler": SCHEDULER,
            "global_steps": 7,
            "ds_config": {"zero_optimization": {"stage": 1}},
            "ds_version": "0.16.4",
        },
        ("module", "module.", "model."),
    ),
    "nested": (
        {"module": {"weights": {"params": {"model_state_dict": state_dict()}}}},
        ("module", "weights", "params", "model_state_dict"),
    ),
}


@pytest.mark.parametrize("codebase", CODEBASES)
@ZIP_AND_OLD
def test_checkpoint_of_a_codebase_is_unwrapped(codebase: str, new: bool, path: Path) -> None:
    content, wrappers = CODEBASES[codebase]
    report = check(write(path, content, new=new))
    assert report.wrappers == wrappers
    assert set(report.ignored) == set(content) - {*wrappers, *NAMES}
    assert not report.averaged


AVERAGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "timm": (
        {"state_dict": state_dict(), "state_dict_ema": state_dict(2.0)},
        ("state_dict_ema",),
    ),
    "torchvision": (
        {
            "model": state_dict(),
            "model_ema": {"n_averaged": torch.tensor(5), **state_dict(2.0, "module.")},
        },
        ("model_ema", "module."),
    ),
    "inside": (
        {"checkpoint": 3, "model": {"net": state_dict(), "ema_net": state_dict(2.0, "module.")}},
        ("model", "ema_net", "module."),
    ),
    "ema-pytorch": (
        {
            **state_dict(1.0, "online_model."),
            **state_dict(2.0, "ema_model."),
            "initted": torch.tensor(True),
            "step": torch.tensor(5),
        },
        ("ema_model.",),
    ),
    "timm's average in a Lightning module": (
        {
            "state_dict": {
                **state_dict(1.0, "model."),
                **state_dict(2.0, "model_ema.module."),
            },
            "hyper_parameters": OPTIONS,
        },
        ("state_dict", "model_ema.", "module."),
    ),
    "basicsr": (
        {"params": state_dict(1.0), "params_ema": state_dict(2.0)},
        ("params_ema",),
    ),
    "shadow": (
        {"model": state_dict(1.0), "ema": {"decay": 0.9, "shadow": state_dict(2.0)}},
        ("ema", "shadow"),
    ),
    # mmengine's EMAHook exchanges the values of the two when it saves.
    "mmengine": (
        {
            "meta": MMENGINE,
            "state_dict": state_dict(2.0),
            "ema_state_dict": {"steps": torch.tensor(5), **state_dict(1.0, "module.")},
        },
        ("state_dict",),
    ),
}


@pytest.mark.parametrize("program", AVERAGES)
def test_averaged_weights_are_taken_when_asked_for(program: str, path: Path) -> None:
    content, wrappers = AVERAGES[program]
    trained = check(write(path, content), state_dict(1.0))
    averaged = check(path, state_dict(2.0), ema=True)
    assert averaged.wrappers == wrappers
    assert (trained.averaged, averaged.averaged) == (False, True)
    assert trained.has_other
    assert averaged.has_other


def test_weights_of_one_kind_are_taken_only_for_that(path: Path) -> None:
    report = check(write(path, {"epoch": 1, "model_ema": state_dict(2.0)}), state_dict(2.0))
    assert (report.averaged, report.has_other) == (True, False)
    with pytest.raises(UsageError, match=r"model\.pth holds no averaged weights"):
        read_foreign(write(path, {"model": state_dict(), "epoch": 1}), ema=True)


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (["module.module.a", "module.module.b"], ["a", "b"]),
        (["module._orig_mod.a"], ["a"]),
        (["model.network.a"], ["a"]),
        (["backbone.a", "head.fc.weight"], ["a", "head.fc.weight"]),
        (["module.a", "fc.weight"], ["module.a", "fc.weight"]),
        # Two tensors would get one name.
        (["backbone.head.a", "head.a"], ["backbone.head.a", "head.a"]),
    ],
)
def test_prefix_that_all_names_have_is_taken_off(
    names: list[str], stripped: list[str], path: Path
) -> None:
    tensors, _ = read_foreign(write(path, {name: torch.ones(2) for name in names}))
    assert list(tensors) == stripped


def test_container_that_holds_itself_is_read(path: Path) -> None:
    content: dict[str, Any] = state_dict()
    content["model"] = content
    check(write(path, content))
    empty: dict[str, Any] = {}
    empty["model"] = empty
    with pytest.raises(InvalidCheckpoint, match="it holds no weights; its entries are: 'model'"):
        read_foreign(write(path, empty))


class Curve:
    """Class with state, like mmengine's HistoryBuffer."""

    def __init__(self) -> None:
        self.history = numpy.arange(3.0)


class Config(dict[str, Any]):
    """Dict with attributes, like yacs's CfgNode."""

    is_immutable = False


class Meter:
    """Class with slots."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


@ZIP_AND_OLD
def test_objects_of_any_class_beside_the_weights_are_ignored(new: bool, path: Path) -> None:
    config = Config(lr=0.1, model=Config(name="resnet"))
    config.is_immutable = True
    content = {
        "state_dict": collections.OrderedDict(state_dict()),
        "message_hub": {"log_scalars": {"train/loss": Curve()}},
        "config": config,
        "scores": [numpy.float64(0.5), numpy.float32(0.5), numpy.int64(3), numpy.bool_(True)],
        "logs": collections.defaultdict(list, loss=[0.5]),
        "recent": collections.deque([1.0, 2.0], maxlen=3),
        "meter": {pathlib.Path("key"): Meter(0.5)},
        "kind": optim.SGD,
        "criterion": nn.CrossEntropyLoss() if new else None,
        "random": numpy.random.RandomState(0).get_state(),
        "seen": {1, 2},
        "bytes": b"\0\xff",
        "parameter": nn.Parameter(torch.ones(2)),
    }
    assert check(write(path, content, new=new)).ignored == tuple(content)[1:]


def test_entries_of_a_state_dict_that_are_no_tensors_are_ignored(path: Path) -> None:
    write(path, {**state_dict(), "bn1._extra_state": b"text", "name": None})
    assert check(path).ignored == ("bn1._extra_state", "name")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 1, "loss": {"train": 2.0}}, "it holds no weights; its entries are: 'epoch', 'l"),
        ({}, "it holds no weights; its entries are: none"),
        ({f"e{n}": n for n in range(15)}, "'e0', .*'e11' and 3 more$"),
        ({"state_dict": {}, "epoch": 1}, "its entries are: 'state_dict', 'epoch'"),
        ({0: torch.ones(2)}, "its tensors have no names: one is called 0"),
        ([torch.ones(2)], "it holds one list, not weights by name"),
        (torch.ones(2), "it holds one Tensor, not weights by name"),
        (OPTIONS, r"it holds one argparse\.Namespace, not weights by name"),
    ],
)
def test_file_without_weights_says_what_it_has(content: object, reason: str, path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=reason):
        read_foreign(write(path, content))


def test_tensor_of_a_repeated_number_takes_no_memory(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(2**40)}, path)
    with pytest.raises(InvalidCheckpoint, match=r"4,398,046,511,104 bytes of weights in a file of"):
        read_foreign(path)


def test_archive_that_would_unpack_to_much_more_is_not_unpacked(path: Path) -> None:
    torch.save(state_dict(), path)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model/data/9", "w") as entry,
    ):
        for _ in range(64):
            entry.write(bytes(2**20))
    with pytest.raises(InvalidCheckpoint, match="it claims to hold"):
        read_foreign(path)


NEST = b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(60))
"""A pickled tuple that holds another one twice, and so on: its hash takes 2**60 steps."""


@ZIP_AND_OLD
def test_key_whose_hash_takes_years_is_refused(new: bool, path: Path) -> None:
    pickled = b"\x80\x02}" + NEST + b"K\x01s."
    if new:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickled)
            archive.writestr("model/version", "3\n")
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        with path.open("rb") as file:
            for _ in range(3):
                pickle.load(file)
            before = file.tell()
        path.write_bytes(path.read_bytes()[:before] + pickled + pickle.dumps([], 2))
    with pytest.raises(InvalidCheckpoint, match="it holds tuples in tuples without end"):
        read_foreign(path)
