"""Ways to damage what a program reads: bytes, lines, words, and the tree that they make."""

import copy
import random
import re
from collections.abc import Sequence
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
_LINE = re.compile(r".*\n?")
_FEW = 4


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
                other = choose.choice(others)
                begin = choose.randrange(len(other))
                changed[start:end] = other[begin : begin + choose.choice((1, 8, 64, 512))]
            case _ if start < len(changed):
                changed[start] ^= 1 << choose.randrange(8)
    return bytes(changed)


def damage_text(text: str, choose: random.Random, others: Sequence[str]) -> str:
    """Change lines or words: insert, remove, repeat, move or exchange them."""
    for _ in range(few(choose)):
        unit = choose.choice((_LINE, _WORD, _WORD))
        pieces = unit.findall(text) or [""]
        at = choose.randrange(len(pieces))
        numbers = [at for at, piece in enumerate(pieces) if piece.isdigit()]
        match choose.randrange(7):
            case 0:
                pieces.insert(at, choose.choice(PIECES))
            case 1:
                del pieces[at : at + choose.randrange(1, _FEW)]
            case 2:
                pieces[at : at + 1] = [pieces[at]] * choose.choice((2, 2, 100))
            case 3:
                pieces.insert(choose.randrange(len(pieces)), pieces.pop(at))
            case 4:
                theirs = unit.findall(choose.choice(others)) or [""]
                pieces[at : at + 1] = theirs[: choose.randrange(1, 20)]
            case 5:
                pieces[at] = " " * choose.randrange(6) + pieces[at].lstrip(" ")
            case _ if numbers:
                pieces[choose.choice(numbers)] = str(choose.choice(NUMBERS))
        text = "".join(pieces)
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
            value = choose.choice(NUMBERS)
            for _ in range(choose.choice((1, 5, 31, 33, 200))):
                value = choose.choice(([value], {"a": value}))
            return value


def repeat_an_entry(text: str, choose: random.Random) -> str:
    """Give one entry of a JSON object twice, which no tree can say."""
    entries = [match.span() for match in re.finditer(r'"[^"]*":("[^"]*"|[\w.]+|\[[^][]*\])', text)]
    if not entries:
        return text
    start, end = choose.choice(entries)
    return f"{text[:end]},{text[start:]}"


def _damage_branch(tree: Any, choose: random.Random, others: Sequence[Any]) -> Any:
    """Change something on the way down: further down is likelier."""
    if isinstance(tree, dict | list) and tree and choose.random() < 0.8:
        key = choose.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        tree[key] = _damage_branch(tree[key], choose, others)
        return tree
    match choose.randrange(6):
        case 0 if isinstance(tree, dict) and tree:
            del tree[choose.choice(list(tree))]
            return tree
        case 1 if isinstance(tree, dict):
            tree[choose.choice((*tree, *TEXTS))] = hostile(choose)
            return tree
        case 2 if isinstance(tree, list) and tree:
            return tree * choose.choice((0, 2, 40))
        case 3:
            return _branch(choose.choice(others), choose)
        case 4:
            return choose.choice(([tree], {"type": tree}, {"a": tree}, str(tree), [tree] * 3))
        case _:
            return hostile(choose)


def _branch(tree: Any, choose: random.Random) -> Any:
    """Pick a branch, a copy of its own."""
    while isinstance(tree, dict | list) and tree and choose.random() < 0.8:
        tree = choose.choice(list(tree.values()) if isinstance(tree, dict) else tree)
    return copy.deepcopy(tree)
