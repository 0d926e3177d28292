"""``resnet-build diff``: differences between two experiments."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, percent, points, show, show_json, table
from resnet_builder.cli.options import SPEC, debug_option, json_option, plugin_option

if TYPE_CHECKING:
    from resnet_builder.comparison import Difference, Subject

_MAX_LINE = 80
_ACCURACIES = ("val.top1", "val.top5", "test.top1", "test.top5")


@click.command(
    epilog=examples(
        "resnet-build diff resnet20 resnet32",
        "resnet-build diff resnet50 my_net.yaml",
        "resnet-build diff runs/resnet20-001 runs/resnet20-002 --json",
    )
)
@click.argument("a", type=SPEC, metavar="A")
@click.argument("b", type=SPEC, metavar="B")
@plugin_option
@json_option
@debug_option
def diff(a: str, b: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """Show the differences between two experiments.

    A and B are specs, runs or files of weights: their specs are compared, wherever they are stored.
    The values that differ come first, then both networks in numbers. If both are trained, their
    accuracies follow.

    The exit code is 0 whether or not they differ.
    """
    from resnet_builder.comparison import compare

    found = compare(a, b, plugins=plugins)
    if as_json:
        show_json(found)
        return
    for letter, subject in (("A", found.a), ("B", found.b)):
        show(f"{letter}: the {subject.kind} {subject.source}")
    show("")
    for difference in found.differences:
        show(*_lines(difference))
    if not found.differences:
        show("the specs are equal")
    show("")
    show(*table(("", "A", "B", "difference"), _rows(found.a, found.b)))


def _lines(difference: "Difference") -> list[str]:
    """Line of a difference, or two lines if it is long."""
    from resnet_builder.spec.dump import dump_value

    before, after = dump_value(difference.before), dump_value(difference.after)
    if difference.before is None:
        return [f"{difference.path}: only in B: {after}"]
    if difference.after is None:
        return [f"{difference.path}: only in A: {before}"]
    line = f"{difference.path}: {before} -> {after}"
    return [line] if len(line) <= _MAX_LINE else [f"{difference.path}: {before}", f"  -> {after}"]


def _rows(a: "Subject", b: "Subject") -> Iterator[tuple[str, ...]]:
    for name, old, new in (
        ("parameters", a.parameters, b.parameters),
        ("MACs", a.macs, b.macs),
        ("depth", a.depth, b.depth),
    ):
        yield name, f"{old:,}", f"{new:,}", f"{new - old:+,}" if new != old else "="
    before, after = (one.activation_bytes / 2**20 for one in (a, b))
    change = f"{after - before:+.2f}" if after != before else "="
    yield "activations an image, MiB", f"{before:.2f}", f"{after:.2f}", change
    for key in _ACCURACIES if a.metrics and b.metrics else ():
        one, other = a.metrics.get(key), b.metrics.get(key)
        if one is not None or other is not None:
            rise = None if one is None or other is None else other - one
            yield key.replace(".top", " top-"), percent(one), percent(other), points(rise)
