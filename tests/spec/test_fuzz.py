"""Thousands of damaged specs, always the same ones: nothing but a SpecError may come out."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_builder.errors import SpecError
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.loading import load_spec, load_spec_text, read_draft
from resnet_builder.spec.schema import Spec
from tests.spec.texts import FULL, MINIMAL

PIECES = [
    "\t", "\n", "\n\n", " ", "  ", ":", ": ", "- ", "? ", ",", "[", "]", "{", "}", "#", "&a ",
    "*a", "!", "!!int ", "!<", "|", ">", "|-2\n", "'", '"', "%", "@", "`", "\\", "---\n", "...\n",
    "%YAML 1.1\n", "<<: ", "null", "~", "no", "010", "1_0", "1e400", ".nan", "0x", "9" * 30,
    '"\\ud800"', '"\\UFFFFFFFF"', "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "type: ",
    "extends: ", "steps: ", "[[[[[[", "}}}}", "1", "-1", "''", "{a: 1}",
]  # fmt: skip


def _insert(text: str, random_: random.Random) -> str:
    at = random_.randrange(len(text) + 1)
    return text[:at] + random_.choice(PIECES) + text[at:]


def _delete(text: str, random_: random.Random) -> str:
    at = random_.randrange(len(text) + 1)
    return text[:at] + text[at + random_.randrange(12) :]


def _move(text: str, random_: random.Random) -> str:
    lines = text.split("\n")
    lines.insert(random_.randrange(len(lines)), lines.pop(random_.randrange(len(lines))))
    return "\n".join(lines)


def _replace_value(text: str, random_: random.Random) -> str:
    words = text.split(" ")
    words[random_.randrange(len(words))] = random_.choice(PIECES)
    return " ".join(words)


MUTATIONS: list[Callable[[str, random.Random], str]] = [_insert, _delete, _move, _replace_value]


def outcome(text: str) -> Spec | SpecError:
    """Read a spec, which must succeed, or fail in the one way that is allowed."""
    try:
        return load_spec_text(text)
    except SpecError as error:
        return error


@pytest.mark.parametrize("seed", range(4))
def test_damaged_text_is_read_or_refused_row11(seed: int) -> None:
    random_ = random.Random(seed)
    read = refused = 0
    for _ in range(400):
        text = random_.choice([FULL, MINIMAL + "name: x\n"])
        for _ in range(random_.randrange(1, 6)):
            text = random_.choice(MUTATIONS)(text, random_)
        found = outcome(text)
        if isinstance(found, SpecError):
            refused += 1
            assert {problem.file for problem in found.errors} == {"<text>"}
            assert str(found).isprintable() or "\n" in str(found)
        else:
            read += 1
            assert outcome(dump_spec(found)) == found
    assert min(read, refused) > 10


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_are_read_or_refused_row13(seed: int, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    path = tmp_path / "spec.yaml"
    refused = 0
    for _ in range(250):
        data = bytearray(FULL.encode())
        for _ in range(random_.randrange(1, 4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data)
        try:
            load_spec(path)
        except SpecError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("seed", range(2))
def test_damaged_override_is_read_or_refused_row26(seed: int) -> None:
    random_ = random.Random(seed)
    data = {"model": {"stages": [{"blocks": 1}]}}
    refused = 0
    for _ in range(400):
        text = random_.choice(["model.stages.0.blocks=3", "train.optimizer={type: sgd, lr: 1}"])
        for _ in range(random_.randrange(1, 4)):
            text = random_.choice(MUTATIONS)(text, random_)
        try:
            read_draft(data, overrides=[text])
        except SpecError:
            refused += 1
    assert refused > 100
