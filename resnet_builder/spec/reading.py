"""From a file to text that can be parsed: regular files of bounded size, in UTF-8."""

import errno
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from resnet_builder.errors import Problem, SpecError, StorageError
from resnet_builder.spec.source import Document, Place, Source
from resnet_builder.spec.tree import parse_yaml

MAX_BYTES = 256 * 1024

# What YAML 1.2.2 does not call printable (section 5.1), and what YAML 1.1, which PyYAML reads,
# takes for line breaks beside those of 1.2 (NEL, LS and PS).
_REFUSED = re.compile("[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_MISSING = "there is no such file"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


Refusal = Callable[[str, str], Problem]
"""Makes the problem that a file cannot be a spec, from a code and a message."""


def read_yaml(path: Path, *, refusal: Refusal | None = None) -> Document:
    """Read a YAML file.

    Args:
        path: The file.
        refusal: How to say that it is none; default: at the file.

    Raises:
        SpecError: There is no such file, it is no regular file, too large, or not YAML in UTF-8.
        StorageError: It cannot be read.
    """
    refuse = refusal or partial(_refuse, path)
    try:
        data = _read_regular_file(path, refuse)
    except ValueError:  # a path with a NUL, or with half of a surrogate pair
        raise SpecError([refuse("unknown-name", _MISSING)]) from None
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise SpecError([refuse("unknown-name", _MISSING)]) from error
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise SpecError([refuse("limit", f"the file is larger than {MAX_BYTES // 1024} KiB")])
    return parse_yaml(checked(_decode(data, path), str(path), path=path))


def checked(text: str, name: str, *, path: Path | None = None, has_lines: bool = True) -> Source:
    """Make a source of text, with the line ends of every system read alike.

    Args:
        text: What it says.
        name: What messages call it.
        path: Of a file.
        has_lines: Whether messages give lines and columns.

    Raises:
        SpecError: There is a character in it that no reader of YAML has to take.
    """
    source = Source(name, _with_unix_lines(text), path, has_lines)
    match = _REFUSED.search(source.text)
    if match is None:
        return source
    what = f"character U+{ord(match[0]):04X} cannot stand in YAML"
    hint = "; is the file UTF-16? save it as UTF-8" if match[0] == "\0" else ""
    place = _place_after(source.text[: match.start()], source)
    raise SpecError([place.problem("yaml-syntax", what + hint)])


def _read_regular_file(path: Path, refuse: Refusal) -> bytes:
    """Read one byte more than allowed at most; never wait for a pipe or a device."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise SpecError([refuse("wrong-type", f"this is {what}, not a file")])
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _decode(data: bytes, path: Path) -> str:
    if data.startswith(_UTF16_MARKS):
        place = Source(str(path), path=path).place(0, 0)
        message = "the file is UTF-16; save it as UTF-8"
        raise SpecError([place.problem("yaml-syntax", message)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The error counts from behind a byte order mark, and holds what it counts in.
        source = Source(str(path), _with_unix_lines(error.object.decode(errors="replace")), path)
        place = _place_after(_with_unix_lines(error.object[: error.start].decode()), source)
        message = f"byte 0x{error.object[error.start]:02X} is not UTF-8; save the file as UTF-8"
        raise SpecError([place.problem("yaml-syntax", message)]) from error


def _with_unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place_after(before: str, source: Source) -> Place:
    return source.place(before.count("\n"), len(before) - before.rfind("\n") - 1)


def _refuse(path: Path, code: str, message: str) -> Problem:
    return Problem(code, "", message, file=str(path))
