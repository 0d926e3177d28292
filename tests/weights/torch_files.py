"""Files of ``torch.save``, also such as it would never write, for tests."""

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


class Memory:
    """Stands for a storage in :func:`crafted`: it is pickled as this identity."""

    def __init__(self, *identity: object) -> None:
        self.identity = identity


class Call:
    """Is pickled as a call, which whoever unpickles it makes."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Memory) else None


def crafted(content: object, protocol: int = 2) -> bytes:
    """Pickle ``content`` as ``torch.save`` does, but with memory as it is described."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(content)
    return out.getvalue()


def tensor(
    size: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    *,
    start: int = 0,
    memory: Memory | None = None,
    function: Callable[..., Any] = torch._utils._rebuild_tensor_v2,
) -> Call:
    """Describe a tensor; the memory is ``data/0``, two floats, if no other is given."""
    memory = memory or Memory("storage", torch.FloatStorage, "0", "cpu", 2)
    return Call(function, memory, start, size, stride, False, {})


def write_zip(
    path: Path,
    pickled: bytes,
    entries: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Write a file like torch 1.6 and later, around a pickle."""
    entries = {"data/0": bytes(8)} if entries is None else entries
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"data.pkl": pickled, "version": b"3\n", **entries}.items():
            archive.writestr(f"archive/{name}", data)


def write_pickles(path: Path, pickled: bytes, keys: list[str], memory: bytes = b"") -> None:
    """Write a file like torch before 1.6, around the pickle of the object."""
    start = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    parts = [pickle.dumps(value, 2) for value in start]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps(keys, 2), memory]))
