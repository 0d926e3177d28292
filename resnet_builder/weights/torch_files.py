"""Files of ``torch.save``, read without running anything in them.

There are two formats. Since torch 1.6 a file is a zip archive, with the pickle ``data.pkl`` and
an entry for each piece of memory that tensors have their values in. Before, it was five pickles
(a magic number, a version, the machine's sizes, the object, the keys of the memory), and then the
memory.
"""

import contextlib
import errno
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import torch

from resnet_builder.weights.pickle_rules import PickleRules
from resnet_builder.weights.pickle_walk import walk_pickle
from resnet_builder.weights.refusal import Refused, damaged
from resnet_builder.weights.stand_ins import STAND_INS

_PICKLE = "data.pkl"
_TORCHSCRIPT = "constants.pkl"
_PICKLES = 5
_CHUNK = 2**20


def read_torch_zip(file: BinaryIO) -> Any:
    """Read a file of torch 1.6 or newer.

    Raises:
        OSError: The disk is failing.
        Refused: It is damaged, or holds what cannot be read safely.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            pickle = _open_archive(archive, size)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
        raise damaged(error) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # zipfile looked before the file's start
            raise damaged(error) from error
        raise
    rules = PickleRules(size, STAND_INS)
    _follow(io.BytesIO(pickle), rules)
    return _load(file)


def read_torch_pickles(file: BinaryIO) -> Any:
    """Read a file of torch before 1.6.

    Raises:
        OSError: The disk is failing.
        Refused: It is damaged, or holds what cannot be read safely.
    """
    data = io.BytesIO(file.read())
    rules = PickleRules(len(data.getbuffer()), STAND_INS)
    if _follow(data, rules) != torch.serialization.MAGIC_NUMBER:
        raise Refused("it is a pickle, but not of torch.save; save it again, by torch.save")
    for _ in range(_PICKLES - 1):
        _follow(data, rules)
    return _load(data)


def _open_archive(archive: zipfile.ZipFile, size: int) -> bytes:
    """Return an archive's pickle, once every entry is found sound: torch would not look."""
    entries = archive.infolist()
    if any(_has_name(entry, _TORCHSCRIPT) for entry in entries):
        raise Refused("it is a TorchScript archive, code and all; save model.state_dict() instead")
    pickles = [entry for entry in entries if _has_name(entry, _PICKLE)]
    if not pickles:
        raise Refused("it is a zip archive, but not of torch.save; unpack it first")
    if len(pickles) > 1 or len({entry.filename.lower() for entry in entries}) < len(entries):
        raise Refused("it is made to deceive: it has two entries of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Refused("its entries are compressed, unlike torch.save's; save it again")
    if sum(entry.file_size for entry in entries) > size:
        raise Refused("it is made to deceive: its entries are larger than the file")
    for entry in entries:
        _check_sum(archive, entry)
    return archive.read(pickles[0])


def _has_name(entry: zipfile.ZipInfo, name: str) -> bool:
    """Compare names as torch does when it looks for one."""
    return PurePosixPath(entry.filename).name.lower() == name


def _check_sum(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.CRC == 0:
        del entry.CRC  # so torch leaves it after set_crc32_options(False)
    with archive.open(entry) as stored:
        while stored.read(_CHUNK):
            pass


def _follow(data: io.BytesIO, rules: PickleRules) -> object:
    try:
        result = walk_pickle(data, rules)
    except Refused:
        rules.refuse_unknown()
        raise
    rules.refuse_unknown()
    return result


def _load(file: BinaryIO) -> Any:
    file.seek(0)
    try:
        with _only_stand_ins():
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch has no error of its own for what does not hold together
        raise damaged(error) from error


@contextlib.contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Let torch call the stand-ins, and none of what others in this process have allowed."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([(made, name) for name, made in STAND_INS.items()]):
            yield
    finally:
        torch.serialization.add_safe_globals(others)
