"""A pickle, followed step by step without doing what it says.

A pickle is a program for a stack machine. The walk keeps that machine's stack, but of numbers,
texts and names only: it looks no name up and makes no object. Whoever follows it is told of every
name, call and piece of memory, and refuses what it will not have.
"""

import io
import pickletools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from resnet_builder.weights.refusal import Refused, damaged

_PROTOCOL = 2
_SAVE_AGAIN = "save it again, by torch.save without a pickle_protocol"
_MAX_DEPTH = 64
"""Of tuples in tuples; to hash a million of them, Python runs out of stack and crashes."""

OBJECT = object()
"""What a call gives, or a list or dictionary: nothing is known about it."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function, by the full name that stands in the file."""

    path: str


class Follower(Protocol):
    """Is told what a pickle would do; any of it may raise :class:`Refused`."""

    def name(self, path: str) -> None:
        """Hear of a class or function that is looked up."""

    def call(self, path: str, arguments: tuple[Any, ...], entry: str | None) -> object:
        """Hear of a call, and say what stands for its result.

        Args:
            path: What is called.
            arguments: Numbers, texts, names, tuples of them, and what stands for other things.
            entry: The text before it on the stack: the key, if it is a dictionary's entry.
        """

    def memory(self, identity: Any) -> object:
        """Hear of memory that tensors share, and say what stands for it."""


def walk_pickle(data: io.BytesIO, follower: Follower) -> object:
    """Follow one pickle, up to the byte behind it.

    Args:
        data: What is read; in memory, since a file would make room for lengths that are untrue.
        follower: Is told of each step.

    Returns:
        What it would give, if that is a number, a text or a tuple of them.

    Raises:
        Refused: It is damaged, or no pickle of ``torch.save``; or the follower's own.
    """
    walk = _Walk(follower)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in text that is refused
        try:
            for opcode, argument, _ in pickletools.genops(data):
                walk.step(opcode.name, argument)
            return walk.stack[-1]
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise damaged(error) from error


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deep it is."""

    depth: int

    def __new__(cls, items: Iterable[Any]) -> "_Tuple":
        made = super().__new__(cls, items)
        made.depth = 1 + max((item.depth for item in made if isinstance(item, cls)), default=0)
        if made.depth > _MAX_DEPTH:
            raise Refused("it is made to deceive: it nests tuples without end")
        return made


class _Walk:
    """The machine between two steps."""

    def __init__(self, follower: Follower) -> None:
        self.stack: list[Any] = []
        self._follower = follower
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _VALUES:
            self.stack.append(_VALUES[opcode])
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        else:
            raise Refused(f"it is a pickle with {opcode}, unlike torch.save's; {_SAVE_AGAIN}")

    def protocol(self, version: int) -> None:
        if version != _PROTOCOL:
            raise Refused(f"it is a pickle of protocol {version}, not {_PROTOCOL}; {_SAVE_AGAIN}")

    def stop(self, _: None) -> None:
        """Leave the result on the stack."""

    def put(self, number: int) -> None:
        self._memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self._memo[number])

    def mark(self, _: None) -> None:
        self._below_marks.append(self.stack)
        self.stack = []

    def drop(self, count: int) -> None:
        del self.stack[len(self.stack) - count :]

    def drop_to_mark(self, _: None) -> None:
        self.stack = self._below_marks.pop()

    def tuple_from_mark(self, _: None) -> None:
        items = self.stack
        self.stack = self._below_marks.pop()
        self.stack.append(_Tuple(items))

    def name(self, argument: str) -> None:
        path = argument.replace(" ", ".").replace("__builtin__.", "builtins.")  # Python 2's
        self._follower.name(path)
        self.stack.append(Name(path))

    def call(self, _: None) -> None:
        called, arguments = self._pop(2)
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise damaged("it calls what is no function")
        # The key of a dictionary's entry; between a parameter's and its tensor is one more call.
        entry = next((item for item in self.stack[:-3:-1] if isinstance(item, str)), None)
        self.stack.append(self._follower.call(called.path, arguments, entry))

    def build(self, _: None) -> None:
        """Set an object's state; a tensor's could be memory of any size."""
        self._pop(1)
        if self.stack[-1] is not OBJECT:
            raise damaged("it sets the state of what has none")

    def memory(self, _: None) -> None:
        (identity,) = self._pop(1)
        self.stack.append(self._follower.memory(identity))

    def tuple_of(self, count: int) -> None:
        self.stack.append(_Tuple(self._pop(count)))

    def _pop(self, count: int) -> tuple[Any, ...]:
        return tuple(self.stack.pop() for _ in range(count))[::-1]


_LITERALS = {
    "BINFLOAT",
    "BININT",
    "BININT1",
    "BININT2",
    "BINUNICODE",
    "LONG1",
    "SHORT_BINSTRING",  # Python 2's text
}
_VALUES: Mapping[str, object] = {
    "EMPTY_DICT": OBJECT,
    "EMPTY_LIST": OBJECT,
    "EMPTY_SET": OBJECT,
    "EMPTY_TUPLE": (),
    "NEWFALSE": False,
    "NEWTRUE": True,
    "NONE": None,
}
_STEPS: Mapping[str, Callable[[_Walk, Any], None]] = {
    "PROTO": _Walk.protocol,
    "STOP": _Walk.stop,
    "BINPUT": _Walk.put,
    "LONG_BINPUT": _Walk.put,
    "BINGET": _Walk.get,
    "LONG_BINGET": _Walk.get,
    "MARK": _Walk.mark,
    "TUPLE": _Walk.tuple_from_mark,
    "TUPLE1": lambda walk, _: walk.tuple_of(1),
    "TUPLE2": lambda walk, _: walk.tuple_of(2),
    "TUPLE3": lambda walk, _: walk.tuple_of(3),
    "APPEND": lambda walk, _: walk.drop(1),
    "APPENDS": _Walk.drop_to_mark,
    "SETITEM": lambda walk, _: walk.drop(2),
    "SETITEMS": _Walk.drop_to_mark,
    "GLOBAL": _Walk.name,
    "NEWOBJ": _Walk.call,
    "REDUCE": _Walk.call,
    "BUILD": _Walk.build,
    "BINPERSID": _Walk.memory,
}
