"""A file cannot run anything, take more memory than it has, or fail in a way of its own."""

import argparse
import functools
import io
import operator
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy
import pytest
import safetensors.torch
import torch
from torch import optim

from resnet_builder.errors import CheckpointError, ResnetBuilderError
from resnet_builder.weights.file import WeightsHeader, save_weights
from resnet_builder.weights.foreign import read_foreign
from tests.weights.torch_files import Call, Memory, crafted, tensor, write_pickles, write_zip

HUGE = 2**40
HEADER = WeightsHeader(spec='name: "t"\n', classes=("a",), mean=(0.0,), std=(1.0,), step=1)


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def named(function: Any) -> bytes:
    return f"c{function.__module__}\n{function.__qualname__}\n".encode()


def attacks(canary: str) -> dict[str, bytes]:
    """Pickles that make the directory ``canary`` when they are read."""
    mkdir = Call(os.mkdir, canary)
    # An object's state may bring the function that is called with its next state.
    setter = b"}" + text("__setstate__") + named(os.mkdir) + b"sb" + text(canary) + b"b"
    return {
        "system": crafted(Call(os.system, f'mkdir "{canary}"')),
        "eval": crafted(Call(eval, f"__import__('os').mkdir({canary!r})")),
        "exec": crafted(Call(exec, f"import os; os.mkdir({canary!r})")),
        "protocol-4": crafted(mkdir, 4),
        "protocol-0": crafted(mkdir, 0),
        "nested": crafted({"state_dict": {"conv1.weight": 1, "args": [(mkdir,)]}}),
        "key": crafted({"state_dict": {Call(operator.methodcaller, "x"): mkdir}}),
        "partial": crafted(Call(operator.call, functools.partial(os.mkdir, canary))),
        "state": b"\x80\x02" + named(argparse.Namespace) + b")R" + setter + b".",
    }


ATTACKS = tuple(attacks("canary"))
WRITERS: dict[str, Callable[[Path, bytes], object]] = {
    "zip": write_zip,
    "old": lambda path, pickled: write_pickles(path, pickled, []),
    "old-start": lambda path, pickled: path.write_bytes(pickled),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def _without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if torch is asked to read a file."""

    def forbidden(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", forbidden)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_works_on_an_ordinary_reader(attack: str, canary: Path) -> None:
    pickle.loads(attacks(str(canary))[attack])
    assert canary.exists()


@pytest.mark.usefixtures("_without_torch")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", WRITERS)
def test_attack_runs_nothing(attack: str, form: str, path: Path, canary: Path) -> None:
    WRITERS[form](path, attacks(str(canary))[attack])
    with pytest.raises(CheckpointError) as raised:
        read_foreign(path)
    assert raised.value.exit_code == 4
    assert "\n" not in str(raised.value)
    assert not canary.exists()


def test_what_an_attack_would_call_is_named(path: Path) -> None:
    write_zip(path, crafted({"a": Call(eval, "1"), "b": Call(os.system, "true")}))
    system = f"{os.system.__module__}.system"
    with pytest.raises(CheckpointError, match=rf"not run from files \(builtins\.eval, {system}\)"):
        read_foreign(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data.pkl", "Data.PKL", "deeper/data.pkl"])
def test_second_pickle_in_an_archive_is_refused(name: str, path: Path, canary: Path) -> None:
    """Torch finds entries without regard to case, and the first or the last of one name."""
    write_zip(path, crafted({"w": tensor()}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"archive/{name}", attacks(str(canary))["system"])
    with pytest.raises(CheckpointError, match="it has two entries of one name"):
        read_foreign(path)
    assert not canary.exists()


def test_torch_is_asked_for_weights_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    asked: list[dict[str, Any]] = []
    load = torch.load

    def noting(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", noting)
    for new in (True, False):
        torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=new)
        read_foreign(path)
    assert asked == [{"map_location": "cpu", "weights_only": True}] * 2


def test_what_others_allow_is_neither_used_nor_lost(path: Path) -> None:
    torch.save({"w": torch.ones(2), "rate": numpy.float64(1.0)}, path)
    allowed: list[Any] = [argparse.Namespace, optim.SGD, (numpy.dtype, "numpy.dtype")]
    with torch.serialization.safe_globals(allowed):
        before = set(torch.serialization.get_safe_globals())
        assert read_foreign(path).ignored == ("rate",)
        assert set(torch.serialization.get_safe_globals()) == before
        torch.save({"w": torch.ones(2), "kind": optim.SGD}, path)
        with pytest.raises(CheckpointError, match=r"\(torch\.optim\.sgd\.SGD\)"):
            read_foreign(path)
        assert set(torch.serialization.get_safe_globals()) == before


def test_numpys_own_functions_are_not_called(path: Path) -> None:
    """A dtype's state is believed by numpy: with one that lies, numbers are taken for addresses."""
    dtype = named(numpy.dtype) + text("O8") + b"\x89\x88\x87R"
    lie = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    scalar = b"cnumpy._core.multiarray\nscalar\n" + dtype + lie + text("A" * 8) + b"\x86R"
    plain = crafted({"w": tensor()})
    write_zip(path, plain[:-1] + text("score") + scalar + b"s.")
    assert read_foreign(path).ignored == ("score",)


def described(*identity: object) -> Call:
    return tensor(memory=Memory("storage", torch.FloatStorage, *identity))


LARGE = Memory("storage", torch.FloatStorage, "0", "cpu", 500)
GREEDY: dict[str, tuple[object, str]] = {
    "memory": (described("0", "cpu", HUGE), "its tensors are larger than the file"),
    "memories": (
        [described(str(n), "cpu", 100) for n in range(100)],
        "its tensors are larger than the file",
    ),
    "negative": (described("0", "cpu", -HUGE), "its tensors are larger than the file"),
    "words": (described("0", "cpu", "2"), "memory is not described"),
    "module": (tensor(memory=Memory("file", "/etc/passwd")), "memory is not described"),
    "view": (described("0", "cpu", 2, ("1", 1, 2)), "memory is not described"),
    "view-before": (described("0", "cpu", 2, ("1", -1, 2)), "memory is not described"),
    "size": (tensor((HUGE,)), "a tensor is larger than its memory"),
    "sizes": (tensor((2**20, 2**20), (1, 1)), "a tensor is larger than its memory"),
    "start": (tensor(start=1), "a tensor is larger than its memory"),
    "stride": (tensor((2,), (2,)), "a tensor is larger than its memory"),
    "before": (tensor((2,), (-1,)), "no whole numbers from 0"),
    "boolean": (tensor((True,)), "no whole numbers from 0"),
    "dimensions": (tensor((2, 1)), "it is cut short or damaged"),
    "repeated": (tensor((HUGE,), (0,)), "its tensors are far larger than the file"),
    "many": (
        [tensor((500,), memory=LARGE) for _ in range(99)],
        "its tensors are far larger than the file",
    ),
    "constructor": (Call(torch.FloatTensor, HUGE), r"\(torch\.FloatTensor\)"),
    "bytes": (Call(bytearray, HUGE), r"\(builtins\.bytearray\)"),
    "quantised": (
        {"w": Call(torch._utils._rebuild_qtensor, None, 0, (HUGE,), (1,), None, False, {})},
        "'w' is a quantised tensor",
    ),
}


@pytest.mark.usefixtures("_without_torch")
@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_memory_that_the_file_has_not_is_not_taken(name: str, form: str, path: Path) -> None:
    content, reason = GREEDY[name]
    WRITERS[form](path, crafted(content))
    with pytest.raises(CheckpointError, match=reason):
        read_foreign(path)


@pytest.mark.usefixtures("_without_torch")
def test_state_of_a_tensor_is_not_set(path: Path) -> None:
    """It would be memory of any size."""
    plain = crafted(tensor())
    write_zip(path, plain[:-1] + b"N\x85b.")
    with pytest.raises(CheckpointError, match="it sets the state of what has none"):
        read_foreign(path)


@pytest.mark.usefixtures("_without_torch")
def test_tuples_are_not_nested_until_python_crashes(path: Path) -> None:
    write_zip(path, b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.")
    with pytest.raises(CheckpointError, match="it nests tuples without end"):
        read_foreign(path)


@pytest.mark.usefixtures("_without_torch")
def test_escape_that_python_warns_of_is_refused_without_a_warning(path: Path) -> None:
    write_zip(path, b"\x80\x02S'\\q'\n.")
    with pytest.raises(CheckpointError, match=r"it is a pickle with STRING, unlike torch\.save's"):
        read_foreign(path)


@pytest.mark.usefixtures("_without_torch")
def test_compressed_archive_is_refused(path: Path) -> None:
    entries = {"data/0": bytes(2**22)}
    write_zip(path, crafted({"w": tensor()}), entries, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**14
    with pytest.raises(CheckpointError, match="its entries are compressed"):
        read_foreign(path)


@pytest.mark.usefixtures("_without_torch")
def test_entries_that_lie_over_each_other_are_refused(path: Path) -> None:
    write_zip(path, crafted({}), {"data/0": bytes(2**12)})
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entry = whole[whole.rindex(b"PK\x01\x02") : end]
    more = b"".join(entry.replace(b"data/0", f"data/{n}".encode()) for n in range(1, 9))
    count = (11).to_bytes(2, "little")
    size = (end + len(more) - start).to_bytes(4, "little")
    closing = b"PK\x05\x06" + bytes(4) + count * 2 + size + start.to_bytes(4, "little") + bytes(2)
    path.write_bytes(whole[:end] + more + closing)
    with pytest.raises(CheckpointError, match="its entries are larger than the file"):
        read_foreign(path)


def sound_files(path: Path) -> dict[str, bytes]:
    """One file of each format, with all that usually stands beside weights."""
    tensors = {"conv1.weight": torch.randn(2, 3), "n": torch.tensor(3), "h": torch.ones(2).half()}
    content = {
        "model": tensors,
        "model_ema": {"n_averaged": torch.tensor(1), "module.conv1.weight": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "score": numpy.float64(0.5),
    }
    files = {}
    torch.save(content, path)
    files["zip"] = path.read_bytes()
    torch.save(content, path, _use_new_zipfile_serialization=False)
    files["old"] = path.read_bytes()
    safetensors.torch.save_file(tensors, path)
    files["safetensors"] = path.read_bytes()
    save_weights(path, tensors, HEADER)
    files["ours"] = path.read_bytes()
    return files


def change(sound: bytes, choose: random.Random) -> bytes:
    """Replace a few bytes by a few others."""
    changed = bytearray(sound)
    for _ in range(choose.randrange(1, 4)):
        start = choose.randrange(len(changed))
        changed[start : start + choose.randrange(4)] = choose.randbytes(choose.randrange(4))
    return bytes(changed)


def change_pickle(sound: bytes, choose: random.Random) -> bytes:
    """Change an archive's pickle, and write it with checksums that hold."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data, choose) if name.endswith("data.pkl") else data)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("zip", change),
        ("zip", change_pickle),
        ("old", change),
        ("safetensors", change),
        ("ours", change),
    ],
)
def test_random_damage_never_escapes_as_another_error(
    kind: str, damage: Callable[[bytes, random.Random], bytes], path: Path
) -> None:
    sound = sound_files(path)[kind]
    choose = random.Random(0)
    refused: list[ResnetBuilderError] = []
    for _ in range(100):
        path.write_bytes(damage(sound, choose))
        try:
            read_foreign(path)
        except ResnetBuilderError as error:
            refused.append(error)
    assert len(refused) > 80
    assert not any("\n" in str(error) for error in refused)
