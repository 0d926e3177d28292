"""Damaged files: of tensors, of records, and of other programs, made from sound ones."""

import argparse
import collections
import hashlib
import io
import json
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch

from tests.fuzz.damage import NUMBERS, damage_bytes, damage_text, damage_tree, repeat_an_entry
from tests.fuzz.specs import damaged_spec

_LENGTH = 8
_METADATA = "__metadata__"
_SEAL = re.compile(rb'"sha256":"[0-9a-f]{64}"')
_BLANK = b'"sha256":"' + b"0" * 64 + b'"'

LENGTHS = (0, 1, 7, 8, 9, 100, 2**16, 2**24, 2**24 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)

_OTHERS: tuple[Any, ...] = (
    {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
    {"dtype": "F64", "shape": [2**62, 4, 2], "data_offsets": [0, 8]},
    {"dtype": "I64", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
    {"dtype": "BOOL", "shape": [1] * 20, "data_offsets": [0, 1]},
    {"dtype": "F8_E4M3", "shape": [], "data_offsets": [8, 4]},
    {"dtype": "U8", "shape": [-1, -1], "data_offsets": [2**63 - 1, 2**63]},
    {_METADATA: {"sha256": "0" * 64}},
)


def damaged_file(sound: bytes, choose: random.Random) -> bytes:
    """Make a damaged file of a sound one.

    Half of those whose header is damaged as text or as a tree have digests that fit, as a file
    would that somebody made on purpose.
    """
    start = _LENGTH + int.from_bytes(sound[:_LENGTH], "little")
    header, body = sound[_LENGTH:start], sound[start:]
    match choose.randrange(8):
        case 0:
            return damage_bytes(sound, choose, [sound])
        case 1:
            return choose.choice(LENGTHS).to_bytes(_LENGTH, "little") + header + body
        case 2:
            header = damage_bytes(header, choose, [body])
        case 3:
            text = header.decode()
            header = damage_text(text, choose, [text]).encode(errors="surrogatepass")
        case 4:
            header = repeat_an_entry(header.decode(), choose).encode()
        case 5:
            header = _written(_with_damaged_text(json.loads(header), choose))
        case _:
            header = _written(damage_tree(json.loads(header), choose, _OTHERS))
    data = len(header).to_bytes(_LENGTH, "little") + header + body
    return sealed(data) if choose.random() < 0.5 else data


def sealed(data: bytes) -> bytes:
    """Give a file the digest that fits it, if its header has a place for one."""
    blank = _SEAL.sub(_BLANK, data, count=1)
    digest = hashlib.sha256(blank).hexdigest().encode()
    return _SEAL.sub(b'"sha256":"' + digest + b'"', blank, count=1)


def damaged_record(sound: bytes, choose: random.Random) -> bytes:
    """Make a damaged record, or line of records, of a sound one."""
    if choose.random() < 0.3:
        return damage_bytes(sound, choose, [sound])
    lines = sound.splitlines(keepends=True) if sound.count(b"{") > 1 else [sound]
    at = choose.randrange(len(lines))
    try:
        tree = json.loads(lines[at])
    except ValueError:  # an object over several lines
        lines, at, tree = [sound], 0, json.loads(sound)
    lines[at] = _written(damage_tree(tree, choose, [choose.choice(NUMBERS), tree])) + b"\n"
    return b"".join(lines)


def _with_damaged_text(tree: dict[str, Any], choose: random.Random) -> dict[str, Any]:
    """Damage what one of the texts in the header says, which is JSON too."""
    metadata = tree[_METADATA]
    name = choose.choice(sorted(metadata))
    try:
        inside = json.loads(metadata[name])
    except ValueError:
        inside = metadata[name]
    if isinstance(inside, dict) and "spec" in inside and choose.random() < 0.5:
        inside["spec"] = damaged_spec(choose).decode(errors="replace")
    else:
        inside = damage_tree(inside, choose, [*_OTHERS, tree])
    metadata[name] = json.dumps(inside)
    return tree


def _written(tree: Any) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


def sound_checkpoint(path: Path, *, new: bool) -> bytes:
    """Make a checkpoint of another program, with all that usually stands beside weights."""
    tensors = {"conv1.weight": torch.randn(2, 3), "n": torch.tensor(3), "h": torch.ones(2).half()}
    content = {
        "model": tensors,
        "model_ema": {"n_averaged": torch.tensor(1), "module.conv1.weight": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "score": numpy.float64(0.5),
        "logs": collections.defaultdict(list, loss=[0.5]),
    }
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path.read_bytes()


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
