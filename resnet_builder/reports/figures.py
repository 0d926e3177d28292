"""Figures for papers, by matplotlib: curves of runs, schedules, and an augmented batch.

The same input gives the same bytes, whatever settings of matplotlib the user has.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_builder.errors import UsageError, printable, the_extra
from resnet_builder.reports.run_curves import Metric, Place, RunGroup
from resnet_builder.training.schedule import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"),
    *("#882255", "#44AA99", "#999933", "#332288"),
)
"""Colours that colour-blind readers can tell apart: Okabe and Ito 2008, then of Paul Tol's."""

_STYLE: Any = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # both come with matplotlib
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: fonts are embedded, and texts stay texts
    "svg.fonttype": "path",  # an SVG cannot hold a font that every program reads
    "svg.hashsalt": "resnet-builder",
}

_MOST_INSIDE = 4  # names in a legend that stands between the curves

_METRICS: dict[Metric, str] = {
    "error": "error (%)",
    "accuracy": "accuracy (%)",
    "loss": "loss",
    "lr": "learning rate",
}
_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


def figure_of_runs(
    groups: Sequence[RunGroup],
    *,
    metric: Metric = "error",
    place: Place = "steps",
    width: float = 3.25,
    limits: tuple[float, float] | None = None,
    form: str = "svg",
) -> bytes:
    """Draw the curves of runs, as He et al. 2015 do in figure 6: dashed training, solid validation.

    Args:
        groups: Curves of each spec, as :func:`run_curves.read_groups` reads them.
        metric: Metric.
        place: Horizontal axis.
        width: Width in inches.
        limits: Least and greatest value shown.
        form: ``svg``, ``pdf`` or ``png``.

    Returns:
        The file. A band is one standard deviation over the runs.

    Raises:
        UsageError: matplotlib is missing.
    """
    height = 1.3 + 0.3 * width + _legend_height(len(groups), width)
    with _figure(width, height, form) as (figure, file):
        axes = figure.add_subplot()
        unit, divisor = _time_unit(groups) if place == "seconds" else (place, 1)
        for number, group in enumerate(groups):
            color = _COLORS[number % len(_COLORS)]
            for curve in group.curves:
                x, dashed = curve.x / divisor, curve.split == "train" and metric != "lr"
                axes.plot(
                    x,
                    curve.mean,
                    color=color,
                    linestyle=(0, (4, 2)) if dashed else "-",
                    linewidth=0.8 if dashed else None,
                    marker="o" if len(x) == 1 else "",
                    markersize=3.5,
                    clip_on=len(x) > 1,
                )
                if curve.std.any():
                    low, high = curve.mean - curve.std, curve.mean + curve.std
                    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        labels = {"steps": "iterations", "epochs": "epochs"}
        _finish_axes(axes, labels.get(place, f"training time ({unit})"), _METRICS[metric])
        if limits is not None:
            axes.set_ylim(*limits)
        elif metric == "lr":
            _scale_rates(axes)
        elif metric in {"error", "loss"}:
            axes.set_ylim(bottom=0)
        splits = dict.fromkeys(curve.split for group in groups for curve in group.curves)
        _add_legend(
            axes, [group.name for group in groups], [] if metric == "lr" else [*splits], width
        )
    return file.getvalue()


def figure_of_schedules(
    plans: Sequence[tuple[str, Plan]],
    *,
    sizes: Sequence[int],
    width: float = 3.25,
    form: str = "svg",
) -> bytes:
    """Draw the learning rate over the epochs, and the image size if it changes.

    Args:
        plans: Names and plans of trainings.
        sizes: Size of the images of each, where nothing resizes them.
        width: Width in inches.
        form: ``svg``, ``pdf`` or ``png``.

    Raises:
        UsageError: matplotlib is missing, or a learning rate depends on the evaluations.
    """
    for name, plan in plans:
        if plan.needs_history:
            raise UsageError(
                f"{name}: the `plateau` schedule depends on the evaluations, so it is known only "
                "after the training: plot RUN --metric lr"
            )
    changing = [any(plan.recipe.progressive_resizing) for _, plan in plans]
    rows = 1 + any(changing)
    height = 0.3 * width + 0.9 * rows + _legend_height(len(plans), width)
    with _figure(width, height, form) as (figure, file):
        above, *below = np.atleast_1d(
            figure.subplots(rows, sharex=True, height_ratios=[2, 1][:rows])
        )
        for number, ((_, plan), size) in enumerate(zip(plans, sizes, strict=True)):
            color = _COLORS[number % len(_COLORS)]
            steps = _shown_steps(plan)
            epochs = [plan.epoch(step) for step in steps]
            above.plot(epochs, [plan.lr(step) for step in steps], color=color)
            for axes in below:
                seen = [plan.image_size(step, size) for step in steps]
                axes.plot(epochs, seen, color=color, drawstyle="steps-post")
        _finish_axes(above, "" if below else "epochs", "learning rate")
        _scale_rates(above)
        for axes in below:
            _finish_axes(axes, "epochs", "image size")
        if len(plans) > 1:
            _add_legend(above, [name for name, _ in plans], [], width)
    return file.getvalue()


def figure_of_batch(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    *,
    width: float = 3.25,
    form: str = "png",
) -> bytes:
    """Draw images before and after augmentation, one above the other.

    Args:
        before: ``(n, H, W, 3)`` images of the dataset.
        after: ``(n, H', W', 3)`` images that the network sees.
        captions: Lines below each pair.
        width: Width in inches.
        form: ``svg``, ``pdf`` or ``png``.

    Raises:
        UsageError: matplotlib is missing.
    """
    columns = min(batch_columns(width), len(captions))
    rows = -(-len(captions) // columns)
    side, gap = width / columns, 0.03  # inches
    line = 0.06 + 0.11 * max(map(len, captions))
    height = rows * (2 * side + line)
    with _figure(width, height, form) as (figure, file):
        for number, caption in enumerate(captions):
            row, column = divmod(number, columns)
            left, top = column * side, height - row * (2 * side + line)
            for place, image in enumerate((before[number], after[number]), start=1):
                box = (left + gap, top - place * side + gap, side - 2 * gap, side - 2 * gap)
                axes = figure.add_axes(
                    (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
                )
                axes.set_axis_off()
                axes.imshow(image, interpolation="nearest")
            room = max(4, int(side * 22))
            lines = [one if len(one) <= room else f"{one[: room - 1]}…" for one in caption]
            x, y = (left + side / 2) / width, (top - 2 * side) / height
            text = "\n".join(map(printable, lines))
            figure.text(x, y, text, ha="center", va="top", fontsize=6.5)
    return file.getvalue()


def batch_columns(width: float) -> int:
    """Return how many images of a batch stand beside each other in a width of so many inches."""
    return max(2, min(16, round(width / 0.8)))


@contextmanager
def _figure(width: float, height: float, form: str) -> Iterator[tuple["Figure", io.BytesIO]]:
    """Context of an empty figure, which is written into the file at the end.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"plot needs {the_extra('plot')}") from error
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.simplefilter("ignore")  # characters that no font has are drawn as boxes
        figure, file = Figure(figsize=(width, height), layout="constrained"), io.BytesIO()
        yield figure, file
        figure.savefig(file, format=form, metadata=dates[form])


def _finish_axes(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(0, max(float(np.max(line.get_xdata())) for line in axes.lines))
    axes.xaxis.set_major_formatter(_thousands)


def _thousands(value: float, _: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _scale_rates(axes: "Axes") -> None:
    """Show a learning rate from 0, or by its logarithm if it falls in steps, and far."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    in_steps = all(2 * len(np.unique(rates)) <= len(rates) for rates in lines)
    low, high = min(rates.min() for rates in lines), max(rates.max() for rates in lines)
    if in_steps and 0 < 10 * low <= high:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _add_legend(axes: "Axes", names: Sequence[str], splits: Sequence[str], width: float) -> None:
    """Name the colours, and the forms of the lines if there are several."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_COLORS[number % len(_COLORS)], label=printable(name))
        for number, name in enumerate(names)
    ]
    if len(splits) > 1:
        handles += [
            Line2D(
                [],
                [],
                color="#555555",
                label=_SPLITS[split],
                linestyle=(0, (4, 2)) if split == "train" else "-" if split != "test" else "",
                linewidth=0.8 if split == "train" else None,
                marker="o" if split == "test" else "",
                markersize=3.5,
            )
            for split in splits
        ]
    figure = axes.get_figure()
    if len(names) > _MOST_INSIDE and figure is not None:
        columns = _legend_columns(width)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    else:
        axes.legend(handles=handles, loc="best")


def _legend_columns(width: float) -> int:
    return max(1, int(width / 1.5))


def _legend_height(names: int, width: float) -> float:
    """Return the inches of a legend below the axes; that of few names stands in them."""
    return 0.15 * -(-(names + 2) // _legend_columns(width)) if names > _MOST_INSIDE else 0


def _time_unit(groups: Sequence[RunGroup]) -> tuple[str, int]:
    longest = max(float(curve.x[-1]) for group in groups for curve in group.curves)
    return ("hours", 3600) if longest > 7200 else ("min", 60) if longest > 120 else ("s", 1)


def _shown_steps(plan: Plan) -> list[int]:
    """Steps that show a schedule: some thousand, and those at which it falls."""
    falls = {step - before for step in plan.milestones for before in (0, 1)}
    even = np.linspace(0, plan.total_steps - 1, min(plan.total_steps, 4000)).round().astype(int)
    return sorted({*even.tolist(), *(step for step in falls if 0 <= step < plan.total_steps)})
