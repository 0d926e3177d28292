"""Registries of parts: from a name in a spec to a part, from its signature to its options.

Parts also come from plugins. An error in such code is told from one of this package, wherever it
is raised: while a plugin is imported, in a part, or in a worker process.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from resnet_builder.errors import RegistryError, nearest
from resnet_builder.system import open_regular

T = TypeVar("T", bound=Callable[..., Any])
U = TypeVar("U", bound=Callable[..., Any])

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHOWN = 64  # characters of a name in a message


_plugins: dict[str, str] = {}
"""Modules and paths of files that were imported as plugins, by the names of their modules."""

_outside: set[str] = set()
"""Modules whose code is not this package's: plugins, and those of the caller's own parts."""


def import_plugin(plugin: str) -> None:
    """Import a module, or a file under a name of its own, so that its classes can be pickled."""
    is_file = plugin.endswith(".py")
    digest = hashlib.sha256(plugin.encode()).hexdigest()[:8]
    name = f"resnet_builder_plugin_{Path(plugin).stem}_{digest}" if is_file else plugin
    _outside.add(name)
    if not is_file:
        importlib.import_module(plugin)
    elif name not in sys.modules:
        loader = _SourceLoader(name, plugin)
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None, "the loader is given"
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    _plugins[name] = plugin


def imported_plugins() -> dict[str, str]:
    """Plugins that were imported, by the names of their modules."""
    return dict(_plugins)


class _SourceLoader(SourceFileLoader):
    """Loader that reads no bytecode: consent is to the file, not to what ``__pycache__`` holds."""

    def get_code(self, fullname: str) -> types.CodeType:
        """Compile the source."""
        with open_regular(self.path) as file:
            return self.source_to_code(file.read(), self.path)


def outside_error(error: BaseException, part: Callable[..., Any] | None = None) -> str | None:
    """Error that was raised in code from outside this package, with its place there.

    Args:
        error: The error.
        part: Part that was being used: if it is from outside, and the error was raised by what is
            done with it, the place is where it is defined.

    Returns:
        Text as ``my_blocks.py, line 12, in forward: KeyError: 'a'``; ``None`` for other errors.
    """
    place = _outside_place(error)
    # A generator makes another error of StopIteration.
    if place is None and error.__cause__ is not None and (found := outside_error(error.__cause__)):
        return found
    if place is None and part is not None and part.__module__ in _outside:
        place = _site(part)
    if place is None:
        return None
    return f"{place}: {described(error)}"


def _outside_place(error: BaseException) -> str | None:
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") in _outside:
            code = frame.f_code
            place = f"{code.co_filename}, line {line}, in {code.co_name}"
    return place


def wrong_result(part: Callable[..., Any], message: str) -> RegistryError:
    """Error about what a part has returned, with the place where the part is defined."""
    return RegistryError(f"{_site(part)} {message}")


def described(error: BaseException) -> str:
    """Type and first line of an error of any code, whose own text may fail to be made."""
    try:
        reason = str(error).strip().partition("\n")[0]
    except Exception:
        reason = "it cannot be shown as text"
    return f"{type(error).__name__}: {reason}".removesuffix(": ")


class Options(BaseModel):
    """Base of the models of parts' options: unknown options are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),  # a part may call an option what it likes, `model_…` included
    )


class Registry(Generic[T]):
    """Parts of one kind, by name.

    Args:
        kind: Kind of the parts, in the singular: ``"block"``.
        contract: Keyword parameters that the builder passes itself. A part's other keyword-only
            parameters, with their types, defaults and ranges, are its options.
        hints: Advice for names that people expect and no part has.
    """

    def __init__(
        self, kind: str, *, contract: Iterable[str] = (), hints: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.contract = frozenset(contract)
        self.hints = dict(hints or {})
        self._parts: dict[str, Any] = {}
        self._options: dict[str, type[Options]] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Register the decorated class or function under ``name``.

        Raises:
            RegistryError: The name is taken, or cannot stand in a spec.
        """
        if not _NAME.fullmatch(name):
            raise RegistryError(
                f"{self.kind} '{name}' cannot be registered: a name is small letters, digits and "
                "`_`, at most 64, the first a letter"
            )

        def add(part: U) -> U:
            if name in self._parts:
                raise RegistryError(
                    f"{self.kind} '{name}' is registered twice: "
                    f"in {_site(self._parts[name])} and in {_site(part)}"
                )
            self._parts[name] = part
            _note_outside(part)
            return part

        return add

    def get(self, name: str) -> T:
        """Part of this name.

        Raises:
            RegistryError: There is none.
        """
        if name not in self._parts:
            hint = self.hints.get(name)
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
            raise RegistryError(
                f"no {self.kind} is named '{shown}'" + (f": {hint}" if hint else ""),
                allowed=self.names(),
                suggestion=None if hint else nearest(name, self._parts),
            )
        part: T = self._parts[name]
        return part

    def names(self) -> tuple[str, ...]:
        """Registered names, sorted."""
        return tuple(sorted(self._parts))

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def options(self, name: str) -> type[Options]:
        """Pydantic model of a part's options, derived from its signature.

        Raises:
            RegistryError: There is no such part, or its signature does not type its options.
        """
        if name not in self._options:
            part = self.get(name)
            try:
                self._options[name] = _options_model(part, self.contract)
            except (NameError, TypeError) as error:
                raise RegistryError(
                    f"{self.kind} '{name}' in {_site(part)} does not declare its options: {error}"
                ) from error
        return self._options[name]

    def accepts(self, name: str) -> frozenset[str]:
        """Parameters of the contract that a part's signature names.

        Raises:
            RegistryError: There is no such part.
        """
        return self.contract & inspect.signature(self.get(name)).parameters.keys()

    @contextmanager
    def temporary(self, name: str, part: T) -> Iterator[None]:
        """Register ``part`` for the length of a ``with`` block, in place of any of that name."""
        parts, options = self._parts, self._options
        _note_outside(part)
        self._parts = {**parts, name: part}
        self._options = {key: model for key, model in options.items() if key != name}
        try:
            yield
        finally:
            self._parts, self._options = parts, options


def _note_outside(part: Callable[..., Any]) -> None:
    if not part.__module__.startswith("resnet_builder."):
        _outside.add(part.__module__)


def _options_model(part: Callable[..., Any], contract: frozenset[str]) -> type[Options]:
    """Make a model with a field for each of a part's options.

    Raises:
        NameError: A type cannot be found, or an option has a name no option can have.
        TypeError: An option has no type.
    """
    function = part.__init__ if inspect.isclass(part) else part
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(part).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in contract:
            if parameter.name not in hints:
                raise TypeError(f"`{parameter.name}` has no type")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (_lists_from_tuples(hints[parameter.name]), default)
    return create_model(f"{part.__name__}_options", __base__=Options, **fields)


def _lists_from_tuples(hint: Any) -> Any:
    """Type of an option whose lists may be given as tuples, which a frozen spec holds."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return Annotated[(_lists_from_tuples(inner[0]), *hint.__metadata__)]
    if origin in {typing.Union, types.UnionType}:
        return typing.Union[tuple(map(_lists_from_tuples, inner))]  # noqa: UP007
    return Annotated[hint, Field(strict=False)] if origin is list or hint is list else hint


def _site(part: Callable[..., Any]) -> str:
    """Place of a part's definition, as ``module (file:line)``."""
    try:
        line = inspect.getsourcelines(part)[1]
        return f"{part.__module__} ({inspect.getsourcefile(part)}:{line})"
    except (OSError, TypeError):
        return part.__module__
