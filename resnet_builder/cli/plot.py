"""``resnet-build plot``: figures for papers, of runs, of a schedule, of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show
from resnet_builder.cli.options import (
    SPEC,
    data_dir_option,
    data_option,
    debug_option,
    note_assumptions,
    recipe_options,
)
from resnet_builder.errors import MissingDataError, SpecError, UsageError, counted, percent
from resnet_builder.spec.bundled import is_path

if TYPE_CHECKING:
    from resnet_builder.reports.run_curves import Metric, Place
    from resnet_builder.spec.schema import Spec

_WIDTHS = {"single": 3.25, "double": 6.875}
"""Widths of one and of both columns of a paper, in inches."""

_ASSUMED_STEPS = 1_000  # of an epoch, where the data are not there


class _Width(click.ParamType[float]):
    """Width of a figure: one or both columns of a paper, or inches."""

    name = "width"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the width in inches."""
        try:
            width = _WIDTHS.get(str(value)) or float(str(value))
        except ValueError:
            width = 0
        if not 1 <= width <= 40:
            self.fail(f"'{value}' is no width: single, double, or 1 to 40 inches", param, ctx)
        return width


@click.command(
    epilog=examples(
        "resnet-build plot runs/plain20-001 runs/resnet20-001 -o curves.pdf",
        "resnet-build plot runs/resnet20-seeds --x epochs --ylim 0 20 -o curves.svg",
        "resnet-build plot resnet110 --schedule -o schedule.pdf",
        "resnet-build plot my_net.yaml --batch -o batch.png",
    )
)
@click.argument("sources", nargs=-1, required=True, type=SPEC, metavar="RUN...|SPEC...")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write: .svg, .pdf or .png.",
)
@click.option("--schedule", is_flag=True, help="Plot the learning rate of specs, by epochs.")
@click.option("--batch", is_flag=True, help="Plot the first images, before and after augmentation.")
@click.option(
    "--metric",
    type=click.Choice(["error", "accuracy", "loss", "lr"]),
    help="Metric of the runs.  [default: error]",
)
@click.option(
    "--x",
    "place",
    type=click.Choice(["steps", "epochs", "seconds"]),
    help="Horizontal axis.  [default: steps]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="TEXT",
    help="Name of a curve, in place of the spec's name. Give it once for each curve.",
)
@click.option(
    "--ylim", nargs=2, type=float, metavar="LOW HIGH", help="Limits of the vertical axis."
)
@click.option(
    "--width",
    type=_Width(),
    default="single",
    show_default=True,
    metavar="WIDTH",
    help="Width of the figure: single (one column, 3.25 inches), double (6.875 inches), or a "
    "number of inches.",
)
@recipe_options
@data_option
@data_dir_option
@debug_option
def plot(
    sources: tuple[str, ...],
    out: Path,
    schedule: bool,
    batch: bool,
    metric: "Metric | None",
    place: "Place | None",
    labels: tuple[str, ...],
    ylim: tuple[float, float] | None,
    width: float,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    data_dir: Path | None,
) -> None:
    """Plot runs, schedules or a batch for a paper.

    A run has two curves: a dashed one for the training images, a solid one for the validation
    images. Runs that differ only in their seeds have one curve, their mean, with a band of one
    standard deviation. A folder of runs stands for all runs in it. No file is overwritten.
    """
    if schedule and batch:
        raise click.UsageError("--schedule and --batch are two figures: plot them one by one")
    of_specs = (overrides, fragments, plugins, data, data_dir)
    if not (schedule or batch) and any(of_specs):
        raise click.UsageError(
            "these options change a spec, and a run has its own; they need --schedule or --batch"
        )
    if (schedule or batch) and (metric or place or ylim):
        raise click.UsageError("--metric, --x and --ylim are for figures of runs")
    if batch and (labels or len(sources) > 1):
        raise click.UsageError("--batch shows one spec, and no curve that --label could name")
    form = out.suffix.lower().removeprefix(".")
    if form not in {"svg", "pdf", "png"}:
        raise UsageError(f"{out}: name a file that ends in .svg, .pdf or .png")

    from resnet_builder.runs.files import refuse_existing, write_atomically

    refuse_existing(out)
    if not (schedule or batch):
        content, told = _plot_runs(sources, metric, place, labels, ylim, width, form)
    else:
        checked = [
            _check(source, overrides, fragments, plugins, data, data_dir) for source in sources
        ]
        if batch:
            content, told = _plot_batch(checked[0], data_dir, width, form)
        else:
            content, told = _plot_schedules(checked, data_dir, labels, width, form)
    write_atomically(out, [content])
    show(f"wrote {out}: {told}")


def _plot_runs(
    folders: tuple[str, ...],
    metric: "Metric | None",
    place: "Place | None",
    labels: tuple[str, ...],
    ylim: tuple[float, float] | None,
    width: float,
    form: str,
) -> tuple[bytes, str]:
    """Return the figure of runs, and what it shows in words."""
    from resnet_builder.reports.figures import figure_of_runs
    from resnet_builder.reports.run_curves import find_run_directories, read_groups

    for folder in folders:
        if not is_path(folder) and not Path(folder).exists():
            raise UsageError(
                f"{folder} is no run: there is no such directory; a spec is plotted with "
                "--schedule or --batch"
            )
    runs = find_run_directories([Path(folder) for folder in folders])
    groups = read_groups(runs, metric=metric or "error", place=place or "steps")
    names = _named(labels, [group.name for group in groups])
    groups = [replace(group, name=name) for group, name in zip(groups, names, strict=True)]
    content = figure_of_runs(
        groups,
        metric=metric or "error",
        place=place or "steps",
        width=width,
        limits=ylim,
        form=form,
    )
    return content, f"{counted(len(groups), 'curve')} of {counted(len(runs), 'run')}"


def _plot_schedules(
    specs: Sequence["Spec"],
    data_dir: Path | None,
    labels: tuple[str, ...],
    width: float,
    form: str,
) -> tuple[bytes, str]:
    """Return the figure of schedules, and what it shows in words."""
    from resnet_builder.reports.figures import figure_of_schedules
    from resnet_builder.training.schedule import Plan

    names = _named(labels, [spec.name for spec in specs])
    plans, sizes = [], []
    for spec in specs:
        if spec.train is None:
            raise UsageError(f"{spec.name}: a schedule needs `train`")
        images = _training_images(spec, data_dir)
        plans.append(Plan(spec.train, images // spec.train.batch_size))
        sizes.append(min(spec.model.image_shape[1:]))
    content = figure_of_schedules(
        list(zip(names, plans, strict=True)), sizes=sizes, width=width, form=form
    )
    told = (
        f"{name}, {plan.epoch(plan.total_steps):.4g} epochs"
        for name, plan in zip(names, plans, strict=True)
    )
    return content, "; ".join(told)


def _training_images(spec: "Spec", data_dir: Path | None) -> int:
    """Return the number of training images, without those for validation.

    Raises:
        MissingDataError: Only the data tell it, and the recipe is in steps.
        UsageError: There is no data, or less than a batch of it.
    """
    from resnet_builder.data.splits import inspect_data
    from resnet_builder.parts import input_info

    if spec.data is None:
        raise UsageError(f"{spec.name}: a schedule needs `data`, which say how long an epoch is")
    assert spec.train is not None, "its caller has checked it"
    count = input_info(spec.data).training_images
    if count is None:
        try:
            count = inspect_data(spec.data, data_dir).training_images
        except MissingDataError:
            if spec.train.unit != "epochs":
                raise
            # By epochs, the curve is the same for any number of steps, if it is large.
            return _ASSUMED_STEPS * spec.train.batch_size
    assert count is not None, "the data were looked at"
    images = count - spec.data.set_aside(count)
    if images < spec.train.batch_size:
        raise UsageError(f"{spec.name}: {images} training images are less than a batch")
    return images


def _plot_batch(spec: "Spec", data_dir: Path | None, width: float, form: str) -> tuple[bytes, str]:
    """Return the figure of the first images, and what it shows in words."""
    from resnet_builder.data.splits import load_data
    from resnet_builder.reports.batch import first_batch
    from resnet_builder.reports.figures import batch_columns, figure_of_batch

    found = first_batch(spec, load_data(spec, data_dir=data_dir), 2 * batch_columns(width))
    captions = [_caption(targets) for targets in found.targets]
    content = figure_of_batch(found.before, found.after, captions, width=width, form=form)
    return content, f"{counted(len(captions), 'image')}, before and after augmentation"


def _caption(targets: Mapping[str, float]) -> list[str]:
    """Classes that the network is to predict for an image, the most probable first."""
    shown = [name for name, share in targets.items() if share >= 0.005][:3]
    if len(shown) == 1 or all(targets[name] == 1 for name in shown):
        return shown
    return [f"{name} {percent(targets[name], 0)}" for name in shown]


def _check(
    source: str,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    data_dir: Path | None,
) -> "Spec":
    """Read a spec and check it in full, and its data as far as they are there.

    Raises:
        SpecError: Everything that is wrong with it.
    """
    from resnet_builder.spec.load import read_draft

    draft = read_draft(source, overrides=overrides, fragments=fragments, data=data)
    for notice in draft.notices:
        note(notice)

    from resnet_builder.builder import check_source

    checked = check_source(draft, plugins=plugins, with_data=True, data_dir=data_dir)
    if checked.spec is None:
        raise SpecError(checked.problems)
    note_assumptions(checked)
    return checked.spec


def _named(labels: tuple[str, ...], names: Sequence[str]) -> Sequence[str]:
    """Return the names of the curves: the labels, if any are given.

    Raises:
        UsageError: Their number is not that of the curves.
    """
    if labels and len(labels) != len(names):
        raise UsageError(
            f"--label is given {counted(len(labels), 'time')} for "
            f"{counted(len(names), 'curve')}: {', '.join(names)}"
        )
    return labels or names
