"""``resnet-build diff``: differences between experiments."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from resnet_builder.cli.console import examples, show, show_json, table
from resnet_builder.cli.options import SPEC, debug_option, json_option, plugin_option
from resnet_builder.errors import percent, points

if TYPE_CHECKING:
    from resnet_builder.comparison import Difference, Subject

_MAX_LINE = 80
_MAX_CELL = 28
_ACCURACIES = ("val.top1", "val.top5", "val.map", "test.top1", "test.top5", "test.map")


@click.command(
    epilog=examples(
        "resnet-build diff resnet20 resnet32",
        "resnet-build diff resnet50 my_net.yaml",
        "resnet-build diff runs/resnet20-001 runs/resnet20-002 runs/resnet20-003 --json",
    )
)
@click.argument("first", type=SPEC, metavar="A")
@click.argument("others", type=SPEC, metavar="B...", nargs=-1, required=True)
@plugin_option
@json_option
@debug_option
def diff(first: str, others: tuple[str, ...], plugins: tuple[str, ...], as_json: bool) -> None:
    """Show the differences between experiments.

    A and B are specs, runs or files of weights: their specs are compared, wherever they are stored.
    The values that differ come first, then the networks in numbers. If all are trained, their
    accuracies follow. More than two are shown in columns.

    The exit code is 0 whether or not they differ.
    """
    from resnet_builder.comparison import compare

    found = compare(first, *others, plugins=plugins)
    if as_json:
        show_json(found)
        return
    letters = [_letter(number) for number in range(len(found.subjects))]
    for letter, subject in zip(letters, found.subjects, strict=True):
        show(f"{letter}: the {subject.kind} {subject.source}")
    show("")
    if not found.differences:
        show("the specs are equal")
    elif len(letters) == 2:
        for difference in found.differences:
            show(*_lines(difference))
    else:
        rows = [(one.path, *map(_cell, one.values)) for one in found.differences]
        show(*table(("", *letters), rows))
    show("")
    change = ["difference"] if len(letters) == 2 else []
    show(*table(("", *letters, *change), _rows(found.subjects)))


def _letter(number: int) -> str:
    """Name of a column: A to Z, then A2, B2 and so on."""
    again, letter = divmod(number, 26)
    return chr(ord("A") + letter) + (str(again + 1) if again else "")


def _lines(difference: "Difference") -> list[str]:
    """Line of a difference between two, or two lines if it is long."""
    from resnet_builder.spec.dump import dump_value

    before, after = map(dump_value, difference.values)
    if difference.values[0] is None:
        return [f"{difference.path}: only in B: {after}"]
    if difference.values[1] is None:
        return [f"{difference.path}: only in A: {before}"]
    line = f"{difference.path}: {before} -> {after}"
    return [line] if len(line) <= _MAX_LINE else [f"{difference.path}: {before}", f"  -> {after}"]


def _cell(value: object) -> str:
    """Text of a value in a column; a long one is cut."""
    from resnet_builder.spec.dump import dump_value

    text = "-" if value is None else dump_value(value)
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 3]}..."


def _rows(subjects: Sequence["Subject"]) -> Iterator[tuple[str, ...]]:
    for name, counts in (
        ("parameters", [one.parameters for one in subjects]),
        ("MACs", [one.macs for one in subjects]),
        ("depth", [one.depth for one in subjects]),
    ):
        yield name, *(f"{count:,}" for count in counts), *_change(counts, "{:+,}".format)
    sizes = [one.activation_bytes / 2**20 for one in subjects]
    change = _change(sizes, "{:+.2f}".format)
    yield "activations an image, MiB", *(f"{size:.2f}" for size in sizes), *change
    for key in _ACCURACIES if all(one.metrics for one in subjects) else ():
        found = [one.metrics.get(key) for one in subjects]
        if any(top is not None for top in found):
            yield key.replace(".top", " top-"), *map(percent, found), *_change(found, points)


def _change(values: Sequence[Any], written: Callable[[Any], str]) -> list[str]:
    """Last column of two experiments; more than two have none."""
    if len(values) != 2:
        return []
    before, after = values
    if before is None or after is None:
        return [""]
    return ["=" if after == before and written is not points else written(after - before)]
