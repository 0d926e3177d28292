"""``resnet-build diff``: where two experiments differ."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import escaped, examples, percent, points, show, show_json, table
from resnet_builder.cli.options import SPEC, debug_option, json_option, plugin_option

if TYPE_CHECKING:
    from resnet_builder.comparison import Diff, Subject, WeightsDiff
    from resnet_builder.runs.answers import (
        DifferenceRecord,
        DiffRecord,
        SubjectRecord,
        WeightsDiffRecord,
    )

_LINE = 80
"""Columns; what is longer is set below each other."""

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
    """Show where two experiments differ.

    A and B are specs, runs or files of weights. Shown are the values of the resolved specs that
    differ, and both networks in numbers; if both are trained, their accuracies and their weights
    too.

    Exit code 0 says that they could be compared, whether or not they are equal.
    """
    from resnet_builder.comparison import compare, read_subject

    found = compare(read_subject(a, plugins=plugins), read_subject(b, plugins=plugins))
    record = _record(found)
    if as_json:
        show_json(record)
    else:
        _show(record)


def _record(found: "Diff") -> "DiffRecord":
    from resnet_builder.errors import dotted
    from resnet_builder.runs.answers import DifferenceRecord, DiffRecord

    return DiffRecord(
        a=_subject(found.a),
        b=_subject(found.b),
        differences=tuple(
            DifferenceRecord(path=dotted(one.path), before=one.before, after=one.after)
            for one in found.differences
        ),
        weights=None if found.weights is None else _weights(found.weights),
    )


def _subject(found: "Subject") -> "SubjectRecord":
    from resnet_builder.runs.answers import SubjectRecord

    return SubjectRecord(
        source=found.source,
        kind=found.kind,
        name=found.spec.name,
        parameters=found.summary.parameters,
        macs=found.summary.macs,
        activation_bytes=found.summary.activation_bytes,
        depth=found.summary.depth,
        metrics={} if found.trained is None else dict(found.trained.header.metrics),
    )


def _weights(found: "WeightsDiff") -> "WeightsDiffRecord":
    from resnet_builder.runs.answers import WeightsDiffRecord

    return WeightsDiffRecord(
        are_equal=found.are_equal,
        equal=len(found.equal),
        differing=len(found.differing),
        reshaped=len(found.reshaped),
        only_a=len(found.only_a),
        only_b=len(found.only_b),
        largest=found.largest,
        largest_in=found.largest_in,
    )


def _show(found: "DiffRecord") -> None:
    for letter, subject in (("A", found.a), ("B", found.b)):
        show(escaped(f"{letter}: the {subject.kind} {subject.source}"))
    show("")
    for difference in found.differences:
        show(_told(difference))
    if not found.differences:
        show("the specs are equal")
    show("")
    show(table(("", "A", "B", "difference"), _rows(found.a, found.b)))
    if found.weights is not None:
        show(f"\n{_told_weights(found.weights)}")


def _told(difference: "DifferenceRecord") -> str:
    """Say in a line, or in two if it is long, what differs and how."""
    from resnet_builder.spec.dump import dump_value

    before, after = dump_value(difference.before), dump_value(difference.after)
    if difference.before is None:
        return f"{difference.path}: only in B: {after}"
    if difference.after is None:
        return f"{difference.path}: only in A: {before}"
    line = f"{difference.path}: {before} -> {after}"
    return line if len(line) <= _LINE else f"{difference.path}: {before}\n  -> {after}"


def _rows(a: "SubjectRecord", b: "SubjectRecord") -> Iterator[tuple[str, ...]]:
    from resnet_builder.summary import BYTES_PER_MIB

    for name, old, new in (
        ("parameters", a.parameters, b.parameters),
        ("MACs", a.macs, b.macs),
        ("depth", a.depth, b.depth),
    ):
        yield name, f"{old:,}", f"{new:,}", f"{new - old:+,}"
    before, after = (one.activation_bytes / BYTES_PER_MIB for one in (a, b))
    yield "activations an image, MiB", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"
    yield from _accuracies(a.metrics, b.metrics)


def _accuracies(a: Mapping[str, float], b: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each accuracy that is known of one of two trained networks."""
    for key in _ACCURACIES if a and b else ():
        old, new = a.get(key), b.get(key)
        if old is not None or new is not None:
            difference = None if old is None or new is None else new - old
            yield key.replace(".top", " top-"), percent(old), percent(new), points(difference)


def _told_weights(found: "WeightsDiffRecord") -> str:
    shared = found.equal + found.differing + found.reshaped
    if found.are_equal:
        return f"the weights are equal, bit for bit: {shared} tensors"
    largest = f", by at most {found.largest:.3g} ({found.largest_in})" if found.largest_in else ""
    counts = (
        (found.differing, f"differ{largest}"),
        (found.reshaped, "are of another shape or type"),
        (found.only_a, "are only in A"),
        (found.only_b, "are only in B"),
    )
    told = "; ".join(f"{count} {what}" for count, what in counts if count)
    return f"of {shared} tensors in both, {found.equal} are equal, bit for bit; {told}"
