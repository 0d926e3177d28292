"""Reference pages that are made from the code: keys of a spec, parts, commands.

``python docs/generate.py`` writes ``keys.md``, ``parts.md`` and ``commands.md`` in
``docs/reference``, from the schema, the registries and the program's options.
``tests/test_site.py`` compares them with the code.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from resnet_builder.cli.list import Option, find_parts, yaml_text
from resnet_builder.cli.main import main
from resnet_builder.parts import REGISTRIES
from resnet_builder.spec.introspect import (
    Schema,
    alternatives,
    choices,
    is_part,
    json_schema_of,
    kinds,
    ranges,
)
from resnet_builder.spec.schema import SpecFile
from resnet_builder.spec.section import PATTERN_WORDS

NOTICE = "<!-- Written by docs/generate.py from the code: do not edit. -->\n"

KEYS = f"""\
# Keys of a spec

{NOTICE}
Every key, with its values and its default. [Spec](spec.md) explains how files are written and
combined. A key that is *required* must be in the file, or in one that it extends. `[]` stands for
an item of a list. A key that names a [part](parts.md) takes its name, or a mapping with `type` and
the part's options.
"""

PARTS = f"""\
# Parts

{NOTICE}
Every part that a spec can name, with its options. `resnet-build list parts` prints the same, with
the parts of your plugins. A part is written as its name (`shortcut: pad`), or as a mapping with
`type` and options (`shortcut: {{type: pad, position: end}}`). A length is `{{steps: N}}` or
`{{epochs: N}}`.
"""

COMMANDS = f"""\
# Commands

{NOTICE}
Every command of `resnet-build`, with its options, as `resnet-build COMMAND --help` prints them.
[Errors](errors.md) lists the exit codes. `python -m resnet_builder` is the same program.
"""

_LARGEST = "(?:2147483647|9223372036854775807)"
"""Limits that are those of a computer's numbers, which readers need not know."""


def pages() -> dict[str, str]:
    """Text of each page, by its name in ``docs/reference``."""
    return {"keys.md": keys_page(), "parts.md": parts_page(), "commands.md": commands_page()}


def keys_page() -> str:
    """The page of all keys of a spec."""
    root = json_schema_of(SpecFile)
    definitions = root["$defs"]
    sections = {
        key: found[0]
        for key, value in root["properties"].items()
        if len(found := alternatives(value, definitions)) == 1
        and "properties" in found[0]
        and not is_part(found[0])
    }
    top = {key: value for key, value in root["properties"].items() if key not in sections}
    text = KEYS + _section("Top level", "", {"properties": top})
    for key, schema in sections.items():
        text += _section(f"`{key}`", root["properties"][key].get("description", ""), schema)
    return text


def _section(title: str, what: str, schema: Schema) -> str:
    """A heading, and the table of the keys of a section and of the mappings inside."""
    rows = _key_rows(schema, "", json_schema_of(SpecFile)["$defs"])
    return (
        "\n".join([f"\n## {title}\n", *([what, ""] if what else []), *_table("key", rows)]) + "\n"
    )


def _key_rows(
    schema: Schema, place: str, definitions: Mapping[str, Schema]
) -> Iterator[tuple[str, ...]]:
    """Rows of the keys of a mapping, each followed by the keys of the mappings inside."""
    for key, value in schema["properties"].items():
        name = f"{place}{key}"
        admitted = alternatives(value, definitions)
        is_required = key in schema.get("required", ())
        default = "*required*" if is_required else _default(value.get("default"))
        yield name, _values(key, admitted, definitions), default, value.get("description", "")
        for one in admitted:
            if "properties" in one and not is_part(one):
                yield from _key_rows(one, f"{name}.", definitions)
            for item in alternatives(one.get("items", {"type": "null"}), definitions):
                if "properties" in item and not is_part(item):
                    yield from _key_rows(item, f"{name}[].", definitions)


def _values(key: str, admitted: Sequence[Schema], definitions: Mapping[str, Schema]) -> str:
    """Values that may stand at a key, in words."""
    if any(is_part(one) for one in admitted):
        return _link(key)
    for one in admitted:
        items = alternatives(one.get("items", {"type": "null"}), definitions)
        if any(is_part(item) for item in items):
            return f"a list of {_link(key)}"
        if any("properties" in item for item in items):
            return ", ".join(["a list of mappings", *ranges(admitted)])
        if named := [f"`{choice}`" for item in items for choice in choices(item)]:
            return f"a list of {' or '.join(named)}"
        if one.get("pattern") in PATTERN_WORDS:
            return PATTERN_WORDS[one["pattern"]]
    return _in_words(kinds(admitted), ranges(admitted))


def _link(key: str) -> str:
    """Link to the parts that a key names."""
    kind = REGISTRIES[key].kind if key in REGISTRIES else key
    return f"[{kind}](parts.md#{kind.replace(' ', '-')})"


def _in_words(kind: str, allowed: Sequence[str]) -> str:
    """Kind and range of values; choices are not named twice."""
    limits = [one for one in allowed if f"`{one}`" not in kind]
    if limits and limits[0].startswith("a whole number"):
        text = kind.removesuffix("a number") + ", ".join(limits)
    else:
        text = ", ".join([kind, *limits])
    text = re.sub(rf"(\d+) to {_LARGEST}\b", r"at least \1", text)
    return re.sub(rf" and at most {_LARGEST}\b", "", text)


def _default(value: Any) -> str:
    """A default as YAML; a part without options is its name."""
    if value is None:
        return ""
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if one is not None}
        value = value["type"] if [*value] == ["type"] else value
    return f"`{yaml_text(value)}`"


def parts_page() -> str:
    """The page of all parts."""
    text = PARTS
    for kind, parts in groupby(find_parts(), lambda part: part.set):
        text += f"\n## {kind}\n"
        for part in parts:
            text += f"\n### `{part.name}`\n\n{part.what}\n"
            if part.options:
                text += "\n" + "\n".join(_table("option", map(_option_row, part.options))) + "\n"
    return text


def _option_row(option: Option) -> tuple[str, ...]:
    default = "*required*" if option.required else _default(option.default)
    return option.name, _in_words(option.kind, option.allowed), default, option.what


def commands_page() -> str:
    """The page of all commands."""
    text = COMMANDS
    for names, command in _commands(main, ("resnet-build",)):
        context = click.Context(command, click.Context(main, **main.context_settings))
        pieces = command.collect_usage_pieces(context)
        text += f"\n## {' '.join(names[1:])}\n\n```text\n{' '.join([*names, *pieces])}\n```\n"
        text += f"\n{_prose(command.help or '')}\n"
        options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
        rows = [found for one in options if (found := one.get_help_record(context)) is not None]
        text += "\n" + "\n".join(_table("option", map(_flag_row, rows), columns=2)) + "\n"
        if command.epilog:
            text += f"\n{_epilog(command.epilog)}"
    return text


def _commands(
    group: click.Group, names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, with the words that call it; the members of a group in its place."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*names, name))
        elif command is not None:
            yield (*names, name), command


def _flag_row(record: tuple[str, str]) -> tuple[str, str]:
    flags, said = record
    return flags, re.sub(r"\s+", " ", said)


def _prose(text: str) -> str:
    """Paragraphs of a help text, one line each."""
    paragraphs = re.split(r"\n\s*\n", text.replace("``", "`").replace("\b", "").strip())
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)


def _epilog(text: str) -> str:
    """Examples below a help text, as code; other lines as they are."""
    shown = ""
    for paragraph in text.split("\b\n")[1:]:
        title, *lines = paragraph.rstrip().split("\n")
        language = "sh" if title == "Examples:" else "text"
        code = "\n".join(line.removeprefix("  ") for line in lines)
        shown += f"{title}\n\n```{language}\n{code}\n```\n\n"
    return shown.removesuffix("\n")


def _table(first: str, rows: Iterable[tuple[str, ...]], columns: int = 4) -> Iterator[str]:
    """Lines of a Markdown table whose first column is code."""
    header = (first, "values", "default", "meaning") if columns == 4 else (first, "meaning")
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for name, *cells in rows:
        yield f"| `{name}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    FOLDER = Path(__file__).parent / "reference"
    for page, content in pages().items():
        (FOLDER / page).write_text(content, encoding="utf-8")
