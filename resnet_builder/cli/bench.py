"""``resnet-build bench``: what training a spec costs on this machine, and what it is made of."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import escaped, examples, note, show, show_json, table
from resnet_builder.cli.options import (
    SPEC,
    Invocation,
    debug_option,
    json_option,
    pass_invocation,
    read_spec,
    spec_options,
)

if TYPE_CHECKING:
    from resnet_builder.bench import Bench
    from resnet_builder.runs.answers import BenchRecord, RateRecord

_MANY = 1_000_000
"""Images, in ImageNet's order of magnitude."""


@click.command(
    epilog=examples(
        "resnet-build bench resnet20",
        "resnet-build bench my_net.yaml --seconds 120",
        "resnet-build bench resnet56 --set run.precision=fp32 --json",
    )
)
@click.argument("spec", type=SPEC, metavar="SPEC")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30,
    show_default=True,
    help="Measure for about so long.",
)
@spec_options
@json_option
@debug_option
@pass_invocation
def bench(
    invocation: Invocation,
    spec: str,
    seconds: float,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how fast a spec trains here.

    Its training takes turns with a plain loop and with its convolutions alone, on made-up images
    of the spec's size: no data are read. Shown are speed, memory, how long the whole recipe would
    take, and how it is computed and why.
    """
    from resnet_builder.bench import measure
    from resnet_builder.cli.progress import display
    from resnet_builder.training.runtime import set_backend_flags

    resolved = read_spec(spec, overrides=overrides, fragments=fragments, plugins=plugins, warn=note)
    threads = None if resolved.run.threads == "auto" else resolved.run.threads
    undo = set_backend_flags(threads=threads)
    try:
        with invocation.signals.polled() as stop, display() as shown:
            found = measure(
                resolved, seconds=seconds, warn=shown.on_warning, report=shown.report, stop=stop
            )
    finally:
        undo()
    record = _record(found)
    if as_json:
        show_json(record)
    else:
        _show(record)


def _record(found: "Bench") -> "BenchRecord":
    from resnet_builder.bench.plain import WHAT
    from resnet_builder.runs.answers import BenchRecord
    from resnet_builder.runs.records import versions

    memory, floor = found.memory, found.floor
    return BenchRecord.model_validate(
        {
            "name": found.name,
            "device": found.device,
            "versions": versions(),
            "image": found.image,
            "batch_size": found.size.batch_size,
            "accumulate": found.size.accumulate,
            "ours": found.ours,
            "plain": found.plain,
            "plain_is": WHAT,
            "ratio": found.ratio,
            "floor": {
                "share": found.floor_share,
                "seconds": floor.seconds(),
                "forward": floor.seconds("forward"),
                "weight_gradient": floor.seconds("weight_gradient"),
                "input_gradient": floor.seconds("input_gradient"),
            },
            "memory": {
                "parameters": memory.parameters,
                "activation_bytes": memory.activation_bytes,
                "peak_bytes": None if memory.peak is None else memory.peak.bytes,
                "before_bytes": None if memory.peak is None else memory.peak.before,
            },
            "recipe": found.recipe,
            "settings": found.settings,
        },
        from_attributes=True,
    )


def _show(found: "BenchRecord") -> None:
    shape = " x ".join(map(str, found.image))
    parts = f" in {found.accumulate} parts" if found.accumulate > 1 else ""
    show(escaped(f"{found.name}: {found.batch_size} images of {shape} a step{parts}"))
    show(escaped(f"on {found.device}\n"))
    show(table(("", "images/s", "quartiles", "seconds a step"), _rates(found)))
    show(f"\nplain loop: {found.plain_is}\n")
    for sentence in (*_sentences(found), ""):
        show(sentence)
    rows = [(setting.name, setting.value, setting.why) for setting in found.settings]
    show(table(("how it is computed", "", "why"), rows, left=3))


def _rates(found: "BenchRecord") -> Iterator[tuple[str, ...]]:
    yield "train", *_rate(found.ours)
    yield "plain loop", *_rate(found.plain)
    yield "train over it", f"{found.ratio:.2f}", "", ""


def _rate(found: "RateRecord") -> tuple[str, str, str]:
    return (
        _figures(found.images_per_second),
        f"{_figures(found.low)} to {_figures(found.high)}",
        f"{found.seconds_per_step:.3g}",
    )


def _figures(rate: float) -> str:
    """Write a rate in at least three figures."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _sentences(found: "BenchRecord") -> Iterator[str]:
    yield f"recipe: {_recipe(found)}"
    floor = found.floor
    yield (
        f"its convolutions alone, by torch: {floor.seconds:.3g} s, {floor.share:.0%} of a step of "
        "`train`, which may have faster ones; "
        f"forward {floor.forward:.3g}, gradients of weights {floor.weight_gradient:.3g}, "
        f"of inputs {floor.input_gradient:.3g}"
    )
    yield f"memory: {_memory(found)}"


def _recipe(found: "BenchRecord") -> str:
    recipe = found.recipe
    if recipe.steps is None or recipe.seconds is None:
        assert recipe.epochs is not None, "a length is given in one unit"
        seconds = recipe.epochs * _MANY / found.ours.images_per_second
        return (
            f"{recipe.epochs} epochs take {timedelta(seconds=round(seconds))} for each "
            f"{_MANY:,} training images, whose number is not known before they are read"
        )
    less = "" if found.batch_size == recipe.batch_size else ", at the rate of smaller ones"
    return (
        f"{recipe.steps:,} steps of {recipe.batch_size:,} images take "
        f"{timedelta(seconds=round(recipe.seconds))}{less}, evaluations left out"
    )


def _memory(found: "BenchRecord") -> str:
    memory = found.memory
    text = (
        f"{memory.parameters:,} parameters; a step keeps {_size(memory.activation_bytes)} of "
        "activations"
    )
    if memory.peak_bytes is None or memory.before_bytes is None:
        return text
    added = memory.peak_bytes - memory.before_bytes
    return f"{text}; at most {_size(memory.peak_bytes)} held, {_size(added)} of it by steps"


def _size(count: int) -> str:
    from resnet_builder.summary import BYTES_PER_MIB

    return f"{count / BYTES_PER_MIB:,.0f} MiB"
