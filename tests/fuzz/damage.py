"""Ways to damage what a program reads: bytes, lines, words, and the tree that they make."""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 31, 32, 33, 64, 255, 1000, 1001, 2000, 16_384, 16_385, 10**6, 10**9,
    2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30,
    0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 5e-324, 1e-45, 1e300, 1.7976931348623157e308,
)  # fmt: skip

TEXTS = (
    "", " ", "~", "null", "true", "no", "0", "010", "1_000", "1e400", ".nan", "-.inf", "0x1F",
    "auto", "none", "basic", "type", "os.system", "../../x", "/dev/zero", "C:\\x", "con", ".",
    "${HOME}", "{x}", "%s", "a" * 65, "a" * 129, "a" * 5000, "\0", "\x1b[2J", "\ud800", "\u202e",
    "\u0430", "\u200b", "\ufeff", "\U0001f600", "\u0660", "\uff11", "e\u0301" * 40,
)  # fmt: skip

PIECES = (
    "\t", "\n", "\n\n", "\r", " ", "  ", ":", ": ", "- ", "? ", ",", "[", "]", "{", "}", "#",
    "&a ", "*a", "!", "!!int ", "!!python/name:os.system ", "!<", "|", ">", "|-2\n", "'", '"', "%",
    "@", "`", "\\", "---\n", "...\n", "%YAML 1.1\n", "<<: ", "null", "~", "no", "010", "1_0",
    "1e400", ".nan", "0x", "9" * 30, "9" * 5000, '"\\ud800"', '"\\UFFFFFFFF"', "\x00", "\x85",
    "\u2028", "\ufeff", "\ud800", "type: ", "extends: ", "steps: ", "[" * 40, "}}}}", "{a: " * 40,
    "- " * 40, "1", "-1", "''", "{a: 1}", "x" * 5000, "[" + "0," * 500 + "]",
)  # fmt: skip

_WORD = re.compile(r"\w+|\s+|[^\w\s]")
_FEW = 4

Change = Callable[[str, random.Random, Sequence[str]], str]


def few(choose: random.Random) -> int:
    """Say how often to damage an input; most are not far from sound."""
    return choose.choice((1, 1, 1, 1, 2, 2, 3, 5))


def damage_bytes(data: bytes, choose: random.Random, others: Sequence[bytes]) -> bytes:
    """Change, insert, cut or exchange bytes."""
    changed = bytearray(data)
    for _ in range(few(choose)):
        start = choose.randrange(len(changed) + 1)
        end = start + choose.choice((0, 1, 1, 2, 4, 64))
        match choose.randrange(6):
            case 0:
                changed[start:end] = choose.randbytes(end - start)
            case 1:
                changed[start:start] = choose.randbytes(choose.randrange(1, _FEW))
            case 2:
                del changed[start:end]
            case 3:
                del changed[start:]
            case 4:
                changed[start:end] = _slice(choose.choice(others), choose)
            case _ if start < len(changed):
                changed[start] ^= 1 << choose.randrange(8)
    return bytes(changed)


def damage_text(text: str, choose: random.Random, others: Sequence[str]) -> str:
    """Change lines or words."""
    for _ in range(few(choose)):
        text = choose.choice(_TEXT_CHANGES)(text, choose, others)
    return text


def damage_tree(tree: Any, choose: random.Random, others: Sequence[Any]) -> Any:
    """Change plain data: values, types, keys, branches; the tree itself is used up."""
    for _ in range(few(choose)):
        tree = _damage_branch(tree, choose, others)
    return tree


def hostile(choose: random.Random) -> Any:
    """Make a value that few readers expect."""
    match choose.randrange(8):
        case 0 | 1 | 2:
            return choose.choice(NUMBERS)
        case 3 | 4:
            return choose.choice(TEXTS)
        case 5:
            return choose.choice((None, True, False, [], {}))
        case 6:
            return [choose.choice(NUMBERS) for _ in range(choose.choice((1, 2, 17, 200)))]
        case _:
            return _nested(choose.choice(NUMBERS), choose.choice((1, 5, 31, 33, 200)), choose)


def repeat_an_entry(text: str, choose: random.Random) -> str:
    """Give one entry of a JSON object twice, which no tree can say."""
    entries = [match.span() for match in re.finditer(r'"[^"]*":("[^"]*"|[\w.]+|\[[^][]*\])', text)]
    if not entries:
        return text
    start, end = choose.choice(entries)
    return f"{text[:end]},{text[start:]}"


def _slice(data: bytes, choose: random.Random) -> bytes:
    start = choose.randrange(len(data))
    return data[start : start + choose.choice((1, 8, 64, 512))]


def _lines(text: str, choose: random.Random, others: Sequence[str]) -> str:
    lines = text.split("\n")
    at = choose.randrange(len(lines))
    match choose.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(choose.randrange(len(lines)), lines[at])
        case 2:
            lines.insert(choose.randrange(len(lines)), lines.pop(at))
        case 3:
            lines[at] = " " * choose.randrange(6) + lines[at]
        case 4:
            lines[at] = lines[at].removeprefix(" " * choose.randrange(1, _FEW))
        case _:
            lines[at:at] = choose.choice(others).split("\n")[: choose.randrange(1, 20)]
    return "\n".join(lines)


def _words(text: str, choose: random.Random, others: Sequence[str]) -> str:
    words = _WORD.findall(text)
    if not words:
        return choose.choice(PIECES)
    at = choose.randrange(len(words))
    match choose.randrange(6):
        case 0:
            words[at] = choose.choice(PIECES)
        case 1:
            words.insert(at, choose.choice(PIECES))
        case 2:
            del words[at : at + choose.randrange(1, _FEW)]
        case 3:
            words[at] = choose.choice(_WORD.findall(choose.choice(others)) or [""])
        case 4:
            words[at : at + 1] = [words[at]] * choose.choice((2, 2, 100))
        case _:
            _replace_number(words, choose)
    return "".join(words)


def _replace_number(words: list[str], choose: random.Random) -> None:
    numbers = [at for at, word in enumerate(words) if word.isdigit()]
    if numbers:
        words[choose.choice(numbers)] = str(choose.choice(NUMBERS))


_TEXT_CHANGES: tuple[Change, ...] = (_lines, _words, _words)


def _damage_branch(tree: Any, choose: random.Random, others: Sequence[Any]) -> Any:
    """Change something on the way down: further down is likelier."""
    if isinstance(tree, dict) and tree and choose.random() < 0.8:
        key = choose.choice(list(tree))
        tree[key] = _damage_branch(tree[key], choose, others)
        return tree
    if isinstance(tree, list) and tree and choose.random() < 0.8:
        at = choose.randrange(len(tree))
        tree[at] = _damage_branch(tree[at], choose, others)
        return tree
    return _changed(tree, choose, others)


def _changed(value: Any, choose: random.Random, others: Sequence[Any]) -> Any:
    match choose.randrange(6):
        case 0 if isinstance(value, dict) and value:
            del value[choose.choice(list(value))]
            return value
        case 1 if isinstance(value, dict):
            value[choose.choice((*value, *TEXTS))] = hostile(choose)
            return value
        case 2 if isinstance(value, list) and value:
            return value * choose.choice((0, 2, 40))
        case 3:
            return _branch(choose.choice(others), choose)
        case 4:
            return choose.choice(([value], {"type": value}, {"a": value}, str(value), [value] * 3))
        case _:
            return hostile(choose)


def _branch(tree: Any, choose: random.Random) -> Any:
    """Pick a branch, a copy of its own."""
    while isinstance(tree, dict | list) and tree and choose.random() < 0.8:
        tree = choose.choice(list(tree.values()) if isinstance(tree, dict) else tree)
    return json.loads(json.dumps(tree))


def _nested(value: Any, depth: int, choose: random.Random) -> Any:
    for _ in range(depth):
        value = choose.choice(([value], {"a": value}))
    return value
