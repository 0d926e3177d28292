"""``resnet-build bench``: training speed and memory of a spec on this machine."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json, table
from resnet_builder.cli.options import (
    SPEC,
    data_option,
    debug_option,
    json_option,
    note_assumptions,
    recipe_options,
)
from resnet_builder.errors import counted

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_builder.bench import Benchmark, Rate

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
    metavar="SECONDS",
    help="Length of the measurement.",
)
@recipe_options
@data_option
@json_option
@debug_option
def bench(
    spec: str,
    seconds: float,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: "Path | None",
    as_json: bool,
) -> None:
    """Measure how fast a spec trains here.

    Two loops run in turn: the spec's training, and a plain training loop (the baseline). Both take
    synthetic images of the spec's size; no dataset is read. The output has the speed, the memory,
    the duration of the whole recipe, and the runtime that `train` chooses here.
    """
    from resnet_builder.bench import measure
    from resnet_builder.builder import check_source
    from resnet_builder.cli.progress import display
    from resnet_builder.spec.load import read_draft
    from resnet_builder.training.runtime import set_backend_flags

    draft = read_draft(spec, overrides=overrides, fragments=fragments, data=data)
    for notice in draft.notices:
        note(notice)
    checked = check_source(draft, plugins=plugins, with_forward=True)
    experiment = checked.experiment()
    note_assumptions(checked)
    threads = experiment.run.threads
    undo = set_backend_flags(threads=None if threads == "auto" else threads)
    try:
        with display() as shown:
            found = measure(
                experiment,
                seconds=seconds,
                warn=shown.on_warning,
                report=shown.report,
            )
    finally:
        undo()
    if as_json:
        show_json(found)
    else:
        _show(found)


def _show(found: "Benchmark") -> None:
    shape = " x ".join(map(str, found.image))
    parts = f" in {found.accumulate} micro-batches" if found.accumulate > 1 else ""
    show(f"{found.name}: {counted(found.batch_size, 'image')} of {shape} a step{parts}")
    show(f"on {found.device}", "")
    about = "~" if found.is_busy else ""
    if found.is_busy:
        show(
            f"busy machine: other processes used {found.other_cores:.1f} processor cores "
            "meanwhile. The figures are",
            "no measure of this machine; run the command again when it is quiet.",
            "",
        )
    rates = [("train", *_rate(found.train, about)), ("baseline", *_rate(found.baseline, about))]
    rates.append(("speed-up", f"{about}{found.speed_up:.2f}", "", ""))
    show(*table(("", "images/s", "quartiles", "seconds a step"), rates))
    show("", f"baseline: {found.baseline_is}", "")
    show(f"recipe: {_recipe(found)}")
    if (memory := found.memory) is not None:
        added = memory.peak_bytes - memory.before_bytes
        show(f"memory: at most {_mib(memory.peak_bytes)} held, {_mib(added)} of it by steps")
    rows = [(name, str(value)) for name, value in found.runtime.model_dump().items()]
    show("")
    show(*table(("runtime", ""), rows, left=2))


def _rate(found: "Rate", about: str) -> tuple[str, str, str]:
    return (
        f"{about}{_figures(found.images_per_second)}",
        f"{_figures(found.low)} to {_figures(found.high)}",
        f"{about}{found.seconds_per_step:.3g}",
    )


def _figures(rate: float) -> str:
    """Write a rate in at least three figures."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _recipe(found: "Benchmark") -> str:
    recipe = found.recipe
    if found.is_busy:
        is_in_steps = recipe.steps is not None
        length = counted(recipe.steps or recipe.epochs or 0, "step" if is_in_steps else "epoch")
        return f"{length}; how long they take is not known, as the machine is busy"
    if recipe.seconds is None:
        assert recipe.epochs is not None, "a length is given in one unit"
        duration = timedelta(seconds=round(recipe.epochs * _MANY / found.train.images_per_second))
        take = "takes" if recipe.epochs == 1 else "take"
        return (
            f"{counted(recipe.epochs, 'epoch')} {take} {duration} for each {_MANY:,} training "
            "images, whose number is not known before they are read"
        )
    less = "" if found.batch_size == recipe.batch_size else ", at the rate of smaller ones"
    return (
        f"{recipe.steps:,} steps of {recipe.batch_size:,} images take "
        f"{timedelta(seconds=round(recipe.seconds))}{less}, evaluations left out"
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
