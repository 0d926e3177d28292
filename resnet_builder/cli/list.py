"""``resnet-build list``: bundled specs and recipes, parts, and runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_builder.cli.console import examples, note, show, show_json, table
from resnet_builder.cli.options import (
    FOLDER,
    CommandGroup,
    debug_option,
    json_option,
    plugin_option,
)
from resnet_builder.cli.result import run_row
from resnet_builder.errors import ResnetBuilderError, UsageError, percent

if TYPE_CHECKING:
    from resnet_builder.runs.status import RunStatus


@click.group(
    "list",
    cls=CommandGroup,
    epilog=examples(
        "resnet-build list specs",
        "resnet-build list parts --plugin my_blocks.py",
        "resnet-build list runs",
    ),
)
def list_() -> None:
    """List bundled specs and recipes, parts, or runs."""


@list_.command()
@json_option
@debug_option
def specs(as_json: bool) -> None:
    """List the bundled specs, which need no file."""
    from resnet_builder.spec.bundled import bundled_names

    _show_bundled(bundled_names(), as_json)


@list_.command()
@json_option
@debug_option
def recipes(as_json: bool) -> None:
    """List the bundled recipes, which --with merges into a spec."""
    from resnet_builder.spec.bundled import recipe_names

    _show_bundled(recipe_names(), as_json)


def _show_bundled(names: tuple[str, ...], as_json: bool) -> None:
    found = [_bundled(name) for name in names]
    if as_json:
        show_json({"bundled": found})
    elif all("parameters" not in one for one in found):
        show(*table(("name", "what it is"), [(one["name"], one["what"]) for one in found], left=2))
    else:
        header = ("name", "parameters", "MACs", "published")
        show(*table(header, [_counts(one) for one in found]))


def _bundled(name: str) -> dict[str, Any]:
    from resnet_builder.spec.bundled import bundled_file
    from resnet_builder.spec.yaml_source import parse_plain

    text = bundled_file(name).read_text(encoding="utf-8")
    values = parse_plain(text, name)
    found = {"name": name, "what": text.partition("\n")[0].removeprefix("#").strip()}
    found |= values.get("expect") or {}
    top1 = (values.get("published") or {}).get("test_top1")
    return found if top1 is None else {**found, "published.test.top1": top1}


def _counts(one: Mapping[str, Any]) -> tuple[str, ...]:
    parameters, macs = (f"{one[key]:,}" if key in one else "" for key in ("parameters", "macs"))
    return one["name"], parameters, macs, percent(one.get("published.test.top1"))


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a part.

    Attributes:
        name: Name of the option.
        what: Its description.
        kind: Kind of its values, in words.
        allowed: Range of its values, or its choices.
        required: Whether it must be given.
        default: Default, as JSON; ``None`` where it must be given.
    """

    name: str
    what: str
    kind: str
    allowed: tuple[str, ...]
    required: bool
    default: Any = None


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A registered part, or a member of a closed set.

    Attributes:
        set: Set that it is one of: ``block``, ``shortcut``, ``optimizer``.
        name: Name of the part.
        what: First paragraph of its description.
        options: Its options.
    """

    set: str
    name: str
    what: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class PartList:
    """Every part that a spec can name."""

    parts: tuple[PartInfo, ...]


@list_.command()
@plugin_option
@json_option
@debug_option
def parts(plugins: tuple[str, ...], as_json: bool) -> None:
    """List every part a spec can name, with its options, their ranges and defaults."""
    from resnet_builder.plugins import import_named_plugins

    import_named_plugins(plugins)
    sets: dict[str, list[PartInfo]] = {}
    for part in find_parts():
        sets.setdefault(part.set, []).append(part)
    if as_json:
        show_json(PartList(tuple(part for members in sets.values() for part in members)))
        return
    lines: list[str] = []
    for name, members in sets.items():
        lines += ["", name] if lines else [name]
        for part in members:
            options = (f"    {_option_line(option)}" for option in part.options)
            lines += [f"  {part.name}: {part.what}", *options]
    show(*lines)


def find_parts() -> Iterator[PartInfo]:
    """Every part that a spec can name, of plugins that were imported, too."""
    yield from _registered_parts()
    yield from _closed_parts()


def _registered_parts() -> Iterator[PartInfo]:
    from resnet_builder.parts import REGISTRIES
    from resnet_builder.spec.introspect import documented, json_schema_of

    for registry in REGISTRIES.values():
        for name in registry.names():
            schema = json_schema_of(registry.options(name))
            what, said = documented(registry.get(name))
            yield PartInfo(registry.kind, name, what, tuple(_options(schema, said)))


def _closed_parts() -> Iterator[PartInfo]:
    """Parts of the closed sets, which the schema of a spec names."""
    from resnet_builder.spec.introspect import (
        choices,
        first_paragraph,
        is_part,
        json_schema_of,
        places,
    )
    from resnet_builder.spec.schema import Spec

    definitions = json_schema_of(Spec)["$defs"]
    seen = set()
    for _, key, admitted in places():
        for schema in admitted:
            title = schema.get("title")
            if not is_part(schema) or title == "Part" or (key, title) in seen:
                continue
            seen.add((key, title))
            options = tuple(_options({**schema, "$defs": definitions}, {}))
            for name in choices(schema["properties"]["type"]):
                yield PartInfo(key, str(name), first_paragraph(schema["description"]), options)


def _options(schema: Mapping[str, Any], said: Mapping[str, str]) -> Iterator[Option]:
    """Options of a part, from its JSON Schema and its docstring's descriptions of them."""
    from resnet_builder.spec.introspect import alternatives, kinds, ranges

    for name, option in schema.get("properties", {}).items():
        if name == "type":
            continue
        admitted = alternatives(option, schema.get("$defs", {}))
        yield Option(
            name=name,
            what=option.get("description") or said.get(name, ""),
            kind=kinds(admitted),
            allowed=ranges(admitted),
            required=name in schema.get("required", ()),
            default=option.get("default"),
        )


def _option_line(option: Option) -> str:
    """Line of an option, in the words of YAML."""
    is_choice = option.kind == " or ".join(f"`{choice}`" for choice in option.allowed)
    limits = [option.kind] if is_choice else [option.kind, *option.allowed]
    default = (
        "default: not set" if option.default is None else f"default {yaml_text(option.default)}"
    )
    default = "required" if option.required else default
    return f"{option.name}: {', '.join(limits)} ({default})"


def yaml_text(value: object) -> str:
    """Value in the words of YAML, on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_text(item)}' for key, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """Group of runs in a folder, as ``train --seeds`` and ``sweep`` make them.

    Attributes:
        path: Directory of the group.
        states: Number of its runs in each state.
        settings: Results of each setting, the best first.
    """

    path: Path
    states: dict[str, int]
    settings: "tuple[Any, ...]"


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs in a folder, each a :class:`~resnet_builder.runs.status.RunStatus`, and groups."""

    runs: "tuple[Any, ...]"
    groups: tuple[GroupInfo, ...] = ()


_RUNS = Path("runs")

_ORDERS = {
    "validation": ("validation", "best first"),
    "test": ("test", "best first"),
    "name": ("run", "by name"),
    "steps": ("step", "most first"),
    "time": ("time", "longest first"),
}
"""Orders of runs, each with its column and what the header adds to it."""


@list_.command()
@click.argument("folder", type=FOLDER, default=_RUNS, metavar="[DIR]")
@click.option(
    "--sort",
    type=click.Choice(list(_ORDERS)),
    default="validation",
    show_default=True,
    help="Order of the runs: by accuracy on the validation or test images, the best first; by "
    "name; by steps or time, the most first.",
)
@json_option
@debug_option
def runs(folder: Path, sort: str, as_json: bool) -> None:
    """List the runs in a folder, by default runs/: state, steps, seed, time, accuracy.

    The run with the best accuracy on the validation images comes first, as test images should not
    choose a run. Runs without such an accuracy come last, by name. The runs of `train --seeds`, or
    of a sweep, are one line; if DIR is their directory, each of them is listed.
    """
    from resnet_builder.runs.directory import RunDirectory
    from resnet_builder.runs.group import group_runs, is_group
    from resnet_builder.runs.status import find_runs, run_status

    if not folder.is_dir() and folder != _RUNS:
        raise UsageError(f"there is no folder {folder}")
    statuses = group_runs(folder) if is_group(folder) else find_runs(folder)
    if (run := RunDirectory(folder)).is_published:
        statuses = [run_status(run)]
    found = sorted(statuses, key=_RANKS[sort])
    groups = [] if is_group(folder) else [*_groups(folder)]
    if as_json:
        show_json(RunList(tuple(found), tuple(groups)))
        return
    if found:
        names = ("run", "state", "step", "seed", "time", "validation", "test", "difference")
        has_validation = any(_RANKS["validation"](one) < _LAST for one in found)
        column, order = _ORDERS[sort if has_validation or sort != "validation" else "name"]
        header = [f"{one} ({order})" if one == column else one for one in names]
        show(*table(header, [run_row(one, str(one.path)) for one in found], left=2))
        for one in found:
            if one.error is not None:
                note(f"{one.path}: {one.error}")
    if groups:
        columns = ("group", "runs", "best validation", "its test", "n")
        show(*([""] if found else []), *table(columns, [*map(_group_row, groups)], left=2))
    if not found and not groups:
        show(f"no runs in {folder}")


_RANKS: Mapping[str, Callable[["RunStatus"], Any]] = {
    "validation": lambda one: _best_first(_first(one.val_map, one.val_top1)),
    "test": lambda one: _best_first(_first(one.test_map, one.test_top1)),
    "name": lambda one: one.path,
    "steps": lambda one: _best_first(one.step),
    "time": lambda one: _best_first(one.seconds),
}


def _first(of_several_labels: float | None, top1: float | None) -> float | None:
    """Metric that the best weights of a run were chosen by."""
    return top1 if of_several_labels is None else of_several_labels


_LAST = float("inf")


def _best_first(value: float | None) -> float:
    """Key that sorts the largest values first, and what is not known last."""
    return _LAST if value is None else -value


def _groups(folder: Path) -> Iterator[GroupInfo]:
    from resnet_builder.runs.group import find_groups, group_runs, read_group, summarize_group

    for path in find_groups(folder):
        try:
            record = read_group(path)
        except ResnetBuilderError as error:
            note(f"{path}: {error}")
            continue
        runs = group_runs(path, record)
        states = dict(Counter(one.state for one in runs))
        yield GroupInfo(
            path, {str(one): n for one, n in states.items()}, tuple(summarize_group(record, runs))
        )


def _group_row(group: GroupInfo) -> tuple[str, ...]:
    states = ", ".join(f"{count} {state}" for state, count in group.states.items())
    if not group.settings:
        return (str(group.path), states, "", "", "")
    best = group.settings[0]
    return (str(group.path), states, percent(best.val_mean), percent(best.test_mean), str(best.n))
