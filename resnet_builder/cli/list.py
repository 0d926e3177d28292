"""``resnet-build list``: what there is to use, and what there has been run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from resnet_builder.cli.console import examples, percent, points, show, show_json, table
from resnet_builder.cli.options import FOLDER, debug_option, json_option, plugin_option

if TYPE_CHECKING:
    from resnet_builder.runs.answers import BundledRecord, OptionRecord, PartRecord, RunRecord


@click.group(
    "list",
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
    from resnet_builder.spec.bundled import bundled_file, bundled_names

    _show_bundled([_bundled(bundled_file(name)) for name in bundled_names()], as_json)


@list_.command()
@json_option
@debug_option
def recipes(as_json: bool) -> None:
    """List the bundled recipes, to be laid over a spec by --with."""
    from resnet_builder.spec.bundled import bundled_file, recipe_names

    _show_bundled([_bundled(bundled_file(name)) for name in recipe_names()], as_json)


def _bundled(file: Path) -> "BundledRecord":
    from resnet_builder.runs.answers import BundledRecord
    from resnet_builder.spec.plain import plain
    from resnet_builder.spec.reading import read_yaml

    with file.open(encoding="utf-8") as lines:
        what = lines.readline().removeprefix("#").strip()
    said: dict[str, Any] = plain(read_yaml(file).root)
    expect, published = said.get("expect") or {}, said.get("published") or {}
    return BundledRecord(
        name=file.stem,
        what=what,
        parameters=expect.get("parameters"),
        depth=expect.get("depth"),
        macs=expect.get("macs"),
        published_test_top1=published.get("test_top1"),
    )


def _show_bundled(found: "list[BundledRecord]", as_json: bool) -> None:
    if as_json:
        from resnet_builder.runs.answers import BundledListRecord

        show_json(BundledListRecord(bundled=tuple(found)))
    elif all(one.parameters is None for one in found):
        show(table(("name", "what it is"), [(one.name, one.what) for one in found], left=2))
    else:
        header = ("name", "parameters", "MACs", "published")
        show(table(header, [_counts(one) for one in found]))


def _counts(one: "BundledRecord") -> tuple[str, ...]:
    parameters, macs = ("" if n is None else f"{n:,}" for n in (one.parameters, one.macs))
    return one.name, parameters, macs, percent(one.published_test_top1)


@list_.command()
@plugin_option
@json_option
@debug_option
def parts(plugins: tuple[str, ...], as_json: bool) -> None:
    """List every part a spec can name, with its options, their ranges and defaults."""
    from resnet_builder.plugins import import_plugins
    from resnet_builder.runs.answers import PartListRecord
    from resnet_builder.spec.plain import node_from_mapping
    from resnet_builder.spec.positions import Positions

    import_plugins((), plugins, Positions(node_from_mapping({}).root))
    closed = list(_closed())
    order = list(dict.fromkeys(part.set for part in closed))
    found = [*_registered(), *sorted(closed, key=lambda part: order.index(part.set))]
    if as_json:
        show_json(PartListRecord(parts=tuple(found)))
        return
    for number, part in enumerate(found):
        if number == 0 or found[number - 1].set != part.set:
            show(f"{'' if number == 0 else chr(10)}{part.set}")
        show(f"  {part.name}: {part.what}")
        for option in part.options:
            show(f"    {_described(option)}")


def _registered() -> "Iterator[PartRecord]":
    """Describe the parts of the open sets: what is registered."""
    from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS
    from resnet_builder.parts import MODEL_PARTS
    from resnet_builder.runs.answers import PartRecord

    for registry in (*MODEL_PARTS.values(), DATASETS, AUGMENTATIONS):
        for name in registry.names():
            yield PartRecord(
                set=registry.kind,
                name=name,
                what=_first_line(registry.get(name)),
                options=tuple(_options(registry.options(name))),
            )


def _closed() -> "Iterator[PartRecord]":
    """Describe the parts of the closed sets: what the schema names."""
    from resnet_builder.runs.answers import PartRecord
    from resnet_builder.spec.section import Part
    from resnet_builder.spec.structure import slots

    seen = set()
    for slot, member in slots():
        model, key = member.model, [step for step in slot if step != "*"][-1]
        if not member.is_part or model is None or model is Part or (key, model) in seen:
            continue
        seen.add((key, model))
        for name in get_args(model.model_fields["type"].annotation):
            options = tuple(_options(model))
            yield PartRecord(set=key, name=name, what=_first_line(model), options=options)


def _options(model: Any) -> "Iterator[OptionRecord]":
    from resnet_builder.runs.answers import OptionRecord
    from resnet_builder.spec.structure import field_members
    from resnet_builder.spec.words import kinds, ranges

    for name, field in model.model_fields.items():
        if name == "type":
            continue
        admitted = field_members(field)
        required = field.is_required()
        yield OptionRecord(
            name=name,
            kind=kinds(admitted),
            allowed=ranges(admitted),
            required=required,
            default=None if required else field.default,
        )


def _described(option: "OptionRecord") -> str:
    """Write an option in a line, in the words of YAML."""
    is_choice = option.kind == " or ".join(f"`{choice}`" for choice in option.allowed)
    limits = [option.kind] if is_choice else [option.kind, *option.allowed]
    default = "required" if option.required else f"default {_yaml(option.default)}"
    return f"{option.name}: {', '.join(limits)} ({default})"


def _yaml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first_line(part: object) -> str:
    return (part.__doc__ or "").strip().partition("\n")[0].replace("``", "`")


@list_.command()
@click.argument("folder", type=FOLDER, default=Path("runs"), metavar="[DIR]")
@json_option
@debug_option
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in a folder, by default runs/, and what became of them."""
    from resnet_builder.runs.answers import RunListRecord

    found = [_run(path) for path in sorted(folder.glob("*/spec.yaml"))]
    if as_json:
        show_json(RunListRecord(runs=tuple(found)))
    elif found:
        header = ("run", "state", "validation", "test", "difference")
        show(table(header, [_outcome(one) for one in found], left=2))
    else:
        show(f"no runs in {folder}")


def _run(spec: Path) -> "RunRecord":
    from resnet_builder.errors import ResnetBuilderError
    from resnet_builder.runs.answers import RunRecord
    from resnet_builder.runs.directory import RunDirectory
    from resnet_builder.runs.records import ResultRecord

    run = RunDirectory(spec.parent)
    if not run.is_finished:
        return RunRecord(path=str(run.path), state="started")
    try:
        result = ResultRecord.read(run.result)
    except ResnetBuilderError as error:
        return RunRecord(path=str(run.path), state="unreadable", error=str(error))
    return RunRecord(path=str(run.path), state="finished", result=result)


def _outcome(one: "RunRecord") -> tuple[str, ...]:
    if one.result is None:
        return one.path, one.state, "", "", ""
    published = one.result.published
    difference = None if published is None else published.test_top1_difference
    found = (percent(one.result.val_top1), percent(one.result.test_top1), points(difference))
    return one.path, one.state, *found
