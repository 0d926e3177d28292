"""YAML text of specs: dumped in full, written with comments, or copied with comments kept."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from resnet_builder.spec.bundled import is_path
from resnet_builder.spec.schema import Spec, is_file_name
from resnet_builder.spec.section import Part, Section
from resnet_builder.spec.yaml_source import resolve

_WIDTH = 100


def dump_spec(spec: Spec) -> str:
    """YAML text of a spec, of which :func:`load.load_spec_text` makes an equal spec.

    A section or an option that is absent is left out; whatever has a value is written, defaults
    included.
    """
    return _dump(plain_data(spec), flow=None, width=_WIDTH)


def dump_value(value: Any) -> str:
    """YAML text of a value, in one line, as it could stand behind a key."""
    text = _dump(plain_data(value), flow=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def plain_data(value: Any) -> Any:
    """Plain data of a section or of a value in one, without what is absent."""
    if isinstance(value, Part):
        options = {key: plain_data(option) for key, option in value.options.items()}
        return {"type": value.type, **options} if options else value.type
    if isinstance(value, Section):
        given = {key: getattr(value, key) for key in type(value).model_fields}
        return {key: plain_data(item) for key, item in given.items() if item is not None}
    if isinstance(value, tuple | list):
        return [plain_data(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_data(item) for key, item in value.items()}
    return value


def commented_spec(
    values: Mapping[str, Any],
    *,
    header: Iterable[str] = (),
    beside: Mapping[str, str] | None = None,
    footer: Iterable[str] = (),
) -> str:
    """YAML text of a spec as people write them: sections in lines of their own, parts in one.

    Args:
        values: The spec, as plain data.
        header: Lines of the comment before it.
        beside: Comments on keys of sections: beside the key, or above a line that is too long.
        footer: Lines of the comment behind it.
    """
    lines = [
        *map(_comment, header),
        *_commented_lines(values, beside or {}),
        *map(_comment, footer),
    ]
    return "".join(f"{line}\n" for line in lines)


def copied_spec(text: str, *, origin: str, name: str, source: str, target: str) -> str:
    """YAML text of a copy of a spec under another name; comments are kept.

    Args:
        text: The spec, without problems.
        origin: Origin of the copy, for its first line.
        name: Name of the copy.
        source: Name of the spec in commands in its comments.
        target: Name of the copy in these commands.
    """
    text = text.removeprefix("\ufeff")
    # A name that stands elsewhere than on a line of its own stays: it is the user's layout.
    text = re.sub(
        r"(?m)^name:[ \t]*[^\s#{\[&*!|>].*?(?=[ \t]*(?:#.*)?\r?$)",
        lambda _: f"name: {dump_value(name)}",
        text,
        count=1,
    )
    command = re.compile(rf"(?m)(^[ \t]*#.*resnet-build \w+ ){re.escape(source)}(?![\w./-])")
    text = command.sub(lambda match: match[1] + target, text)
    line_end = "\r\n" if "\r\n" in text else "\n"
    return f"# Copied from {origin}.{line_end}{text}"


def relative_names(data: Mapping[str, Any]) -> list[str]:
    """Files that a spec names and that count from its own folder.

    Args:
        data: The spec's own file, as plain data.
    """
    extends, weights = data.get("extends") or [], (data.get("model") or {}).get("weights")
    path = weights.get("path") if isinstance(weights, dict) else weights
    bases = [name for name in ([extends] if isinstance(extends, str) else extends) if is_path(name)]
    plugins = [name for name in data.get("plugins") or [] if name.endswith(".py") or is_path(name)]
    pretrained = [path] if path is not None and is_file_name(path) else []
    return [name for name in (*bases, *plugins, *pretrained) if not Path(name).is_absolute()]


def _commented_lines(
    values: Mapping[str, Any], beside: Mapping[str, str], indent: str = ""
) -> Iterator[str]:
    for key, value in values.items():
        comment = _comment(beside[key]) if beside.get(key) else ""
        line = f"{indent}{key}: {dump_value(value)}"
        inside: list[str] = []
        if isinstance(value, Mapping) and (not indent or len(line) > _WIDTH):
            inside = list(_commented_lines(value, {} if indent else beside, f"{indent}  "))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inside = [f"{indent}  - {dump_value(item)}" for item in value]
        if inside:
            line = f"{indent}{key}:"
        if comment and len(f"{line} {comment}") > _WIDTH:
            yield f"{indent}{comment}"
            comment = ""
        yield f"{line} {comment}".rstrip()
        yield from inside


def _comment(text: str) -> str:
    return f"# {text}".rstrip()


def _dump(data: Any, *, flow: bool | None, width: float) -> str:
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=width,
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would not read as text; PyYAML itself goes by YAML 1.1."""

    def ignore_aliases(self, data: object) -> bool:
        """Write a value again where it comes again, instead of an alias."""
        return True

    def write_text(self, data: str) -> yaml.ScalarNode:
        """Represent text, in quotes if it would mean something else or could not be seen."""
        is_plain = _is_text(data) and data.isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if is_plain else '"')


_Dumper.add_representer(str, _Dumper.write_text)


def _is_text(word: str) -> bool:
    try:
        return isinstance(resolve(word), str)
    except ValueError:  # ambiguous, or a number too long for Python
        return False
