"""Charts of the report page as inline SVG: lines, bars, heat map, reliability diagram, scatter.

A page includes :data:`STYLE` once. Custom properties that it sets on ``:root`` go before those of
the style. Every value has a native tooltip, so no chart needs a script.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite

import numpy as np
from numpy.typing import ArrayLike

from resnet_builder.errors import percent, printable
from resnet_builder.reports import svg
from resnet_builder.reports.html import escaped
from resnet_builder.reports.scale import Axis, Scale, Values, scale_of
from resnet_builder.reports.svg import Canvas, image, shortened


def _theme(properties: str, colors: str) -> str:
    series = [f"--series-{number}: #{color};" for number, color in enumerate(colors.split(), 1)]
    return f":where(:root) {{ {properties} {' '.join(series)} }}"


STYLE = f"""
{
    _theme(
        "--page: #fff; --ink: #1f2328; --faint: #59636e; --line: #8c959f; --grid: #e6eaee;",
        "0969da c4500a 12805c 8250df 8f6200 0b7f95 bf2f85 6a737d 3d4fc4 7d4e24 4f7d00 a8122a",
    )
}
@media screen and (prefers-color-scheme: dark) {{
{
    _theme(
        "--page: #0d1117; --ink: #f0f3f6; --faint: #a9b4c0; --line: #6e7781; --grid: #262c34;",
        "58a6ff ff9155 3fc99a bc8cff e3b341 4fd1e0 ff7ac0 a9b4c0 8b9bff d2a278 a3cf4a ff7b86",
    )
}
}}
.resnet-chart:not(:root) {{ display: block; width: 100%; height: auto; }}
.resnet-chart text {{ fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }}
.resnet-chart .title {{ font-size: 14px; font-weight: 600; }}
.resnet-chart .faint {{ fill: var(--faint); }}
.resnet-chart .small {{ font-size: 11px; }}
.resnet-chart .halo {{ paint-order: stroke; stroke: var(--page); stroke-width: 4px; }}
.resnet-chart .grid {{ stroke: var(--grid); fill: none; }}
.resnet-chart .axis {{ stroke: var(--line); fill: none; }}
.resnet-chart .dashes {{ stroke-dasharray: 5 4; }}
.resnet-chart .series {{ stroke: var(--c); stroke-width: 2; fill: none; stroke-linejoin: round; }}
.resnet-chart .dense {{ stroke-width: 1; }}
.resnet-chart .leader {{ stroke: var(--c); fill: none; }}
.resnet-chart .leads {{ stroke: var(--c); stroke-dasharray: 1 3; }}
.resnet-chart .band {{ fill: var(--c); fill-opacity: .2; }}
.resnet-chart .fill {{ fill: var(--c); }}
.resnet-chart .gap {{ fill: var(--c); fill-opacity: .3; stroke: var(--c); }}
.resnet-chart .interval {{ stroke: var(--ink); stroke-width: 1.3; fill: none; }}
.resnet-chart .ring {{ fill: var(--page); stroke: var(--ink); stroke-width: 2; }}
.resnet-chart .hit {{ fill: var(--c); opacity: 0; }}
.resnet-chart .hit:hover {{ opacity: .6; }}
"""
"""Style sheet of the charts, with the colours of a light and of a dark page."""

Box = tuple[float, float, float, float]

_UNNAMED = Axis()
_COLORS = 12
_LINE = 16  # pixels from one label to the next
_PIECES = 200


@dataclass(frozen=True, slots=True)
class Series:
    """Line of a chart; values that are not finite interrupt it.

    Attributes:
        name: Text at the end of the line; without it, there is none.
        x: Places, in rising order.
        y: Values.
        low: Lower ends of the band around the line, if it has one.
        high: Upper ends of the band.
        dashed: Whether the line is dashed.
        color: Number of the colour, from 1; by default the place among the series.
    """

    name: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    dashed: bool = False
    color: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Mark of a line chart: a vertical line with its text, or a ring if ``y`` is given."""

    x: float
    text: str
    y: float | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """Bar of a chart, with the ends of its interval and a note behind its value."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bin:
    """Bin of a reliability diagram: limits, mean confidence, accuracy (0 to 1) and its images."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Point:
    """Point of a scatter chart, with the ends of its error bars."""

    name: str
    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None
    color: int | None = None


def standalone(chart: str) -> str:
    """Return a chart as an SVG file of its own."""
    font = "svg { background: var(--page); font-family: Helvetica, Arial, sans-serif; }"
    return chart.replace("</desc>", f"</desc>\n<style>{STYLE}{font}</style>", 1)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: Axis = _UNNAMED,
    y: Axis = _UNNAMED,
    marks: Sequence[Mark] = (),
    width: int = 520,
    height: int = 290,
) -> str:
    """Draw lines with bands and marks; their names stand at their ends, or below if many."""
    colored = [(one, _color(one.color or number)) for number, one in enumerate(series, 1)]
    named = [(one, color) for one, color in colored if one.name and len(one.x)]
    room = min(150.0, max((_text_width(one.name, 12) for one, _ in named), default=0.0))
    is_beside = len(named) * _LINE <= height - 90
    uprights = [mark for mark in marks if mark.y is None]
    canvas = _titled(title, y.label, width)
    places, values = _axes(
        canvas,
        (x, [*(one.x for one in series), [mark.x for mark in marks]]),
        (y, [each for one in series for each in (one.y, one.low, one.high)]),
        right=width - (room + 32 if is_beside and named else 24),
        top=68 if uprights else 52,
        bottom=height - 42,
    )
    _draw_uprights(canvas, uprights, places, values)
    left, width_ = places.start - 4, places.end - places.start + 8
    above, below = (0 if limit is not None else 4 for limit in reversed(y.limits))
    top, height_ = values.end - above, values.start - values.end + above + below
    canvas.elements.append(
        f'<svg x="{left:g}" y="{top:g}" width="{width_:g}" height="{height_:g}" '
        f'viewBox="{left:g} {top:g} {width_:g} {height_:g}">'  # cuts off what limits leave out
    )
    hits = max(8, 300 // max(1, len(series)))
    ends = {id(one): _draw_line(canvas, one, color, places, values, hits) for one, color in colored}
    canvas.elements.append("</svg>")
    _draw_rings(canvas, marks, places, values)
    if is_beside:
        _label_ends(canvas, [(*one, ends[id(one[0])]) for one in named], places, values, room)
    else:
        height = _draw_legend(canvas, named, width, height, room)
    names = ", ".join(one.name for one, _ in named)
    description = f"{y.label or 'values'} by {x.label or 'place'}: {names or 'no names'}"
    return _image(canvas, title, description, width, height)


def bar_chart(bars: Sequence[Bar], *, title: str, x: Axis = _UNNAMED, width: int = 520) -> str:
    """Draw horizontal bars with intervals; dots, if the axis does not begin at 0."""
    canvas, pitch = _titled(title, x.label, width), 22 if len(bars) <= 40 else 16
    from_zero = x.limits[0] in {None, 0}
    told = [f"{_value(bar, x)} {bar.note}".rstrip() for bar in bars]
    room = max((_text_width(text, 12) for text in told), default=0.0)
    left = 14 + min(170.0, max((_text_width(bar.name, 12) for bar in bars), default=0.0))
    bottom = 46 + pitch * len(bars)
    given = [one for bar in bars for one in (bar.value, bar.low, bar.high) if one is not None]
    scale = scale_of(x, [given, [0.0] if from_zero else []], left + 9, width - room - 24)
    ticks = scale.ticks()
    for tick in ticks:
        canvas.path(f"M{scale(tick):.1f} 46V{bottom + 4}", "grid" if tick else "axis")
        text = scale.tick_text(tick, ticks)
        canvas.text(scale(tick), bottom + 19, text, "faint", anchor="middle")
    for number, (bar, text) in enumerate(zip(bars, told, strict=True)):
        middle = 46 + pitch * (number + 0.5)
        _write(canvas, left, middle + 4, bar.name, left - 14, anchor="end")
        right = scale(max(0.0, scale.low))
        if bar.value is not None and scale.holds(bar.value):
            begin, end = right, scale(bar.value)
            hint, right = f"{bar.name}: {text}", max(right, end)
            if from_zero:
                shape = (
                    f'rect x="{min(begin, end):.1f}" y="{middle - pitch / 3:.1f}" rx="2" '
                    f'width="{abs(end - begin):.1f}" height="{pitch * 2 / 3:.1f}"'
                )
                _hint(canvas, f'{shape} class="fill" fill-opacity="0.75" {_color(1)}', hint)
            box = _interval(canvas, scale, bar.low, bar.high, middle, up=False)
            right = max(right, box[2]) if box else right
            if not from_zero:
                circle = f'circle cx="{end:.1f}" cy="{middle:g}" r="4.5"'
                _hint(canvas, f'{circle} class="fill" {_color(1)}', hint)
        behind = f'<tspan dx="6" class="faint">{escaped(bar.note)}</tspan>'
        canvas.elements.append(
            f'<text x="{right + 8:g}" y="{middle + 4:g}">'
            f"{_value(bar, x)}{behind if bar.note else ''}</text>"
        )
    description = "; ".join(f"{bar.name}: {text}" for bar, text in zip(bars, told, strict=True))
    return _image(canvas, title, description or "no data", width, bottom + 28)


def heat_map(
    counts: ArrayLike,
    names: Sequence[str],
    *,
    title: str,
    rows: str = "true class",
    columns: str = "predicted class",
) -> str:
    """Draw a confusion matrix: right predictions and mistakes, each by their share of the row.

    Args:
        counts: Numbers of images; a row for each true class, a column for each predicted one.
        names: Class names, in the order of the rows and columns.
        title: Heading.
        rows: Name of the rows.
        columns: Name of the columns.
    """
    table = np.asarray(counts, dtype=float).reshape(len(names), len(names))
    room = min(110.0, max((_text_width(name, 11) for name in names), default=0.0))
    free = (520 if len(names) <= 20 else 760) - room - 34
    side = max(4.0, min(40.0, free / max(1, len(names))))
    left, top, every = room + 20, 46.0, ceil(11 / side)
    right, bottom = left + side * len(names), top + side * len(names)
    canvas = _titled(title, f"rows: {rows}; columns: {columns}", max(320, right + 14))
    shares = table / np.maximum(1, table.sum(axis=1, keepdims=True))
    worst = max(float((shares - np.diag(np.diag(shares))).max(initial=0)), 1e-9)
    canvas.path(f"M{left:g} {top:g}H{right:g}V{bottom:g}H{left:g}z", "grid")
    for true, predicted in np.argwhere(table > 0).tolist():
        share, count = float(shares[true, predicted]), f"{table[true, predicted]:,.0f}"
        strength = share if true == predicted else (share / worst) ** 0.5
        x, y = left + side * predicted, top + side * true
        _hint(
            canvas,
            f'rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" class="fill" '
            f'fill-opacity="{0.6 * strength:.2f}" {_color(1 if true == predicted else 2)}',
            f"{names[true]}, predicted {names[predicted]}: {count} ({percent(share)})",
        )
        if _text_width(count, 11) < side:
            canvas.text(x + side / 2, y + side / 2 + 4, count, "small", anchor="middle")
    for number, name in enumerate(names[::every]):
        place = side * (every * number + 0.5) + 4
        _write(canvas, left - 6, top + place, name, room, "small", anchor="end")
        turned = f"translate({left + place:.1f} {bottom + 6:.1f}) rotate(-90)"
        canvas.elements.append(f'<g transform="{turned}">')
        _write(canvas, 0, 0, name, room, "small", anchor="end")
        canvas.elements.append("</g>")
    share = float(np.trace(table) / max(1.0, table.sum()))
    description = (
        f"{len(names)} classes, {table.sum():,.0f} images, {percent(share)} on the diagonal"
    )
    return _image(canvas, title, description, max(320, right + 14), bottom + room + 18)


def reliability_diagram(bins: Sequence[Bin], *, title: str, width: int = 400) -> str:
    """Draw accuracy by confidence, its gap to the diagonal, and the share of images in each bin."""
    canvas = _titled(title, "accuracy; above it, the share of images", width)
    images, most = sum(one.count for one in bins), max((one.count for one in bins), default=0)
    x, y = (Axis(label, limits=(0, 1)) for label in ("confidence", "accuracy"))
    scored = [one.accuracy for one in bins if one.count]
    places, values = _axes(
        canvas, (x, [[]]), (y, [scored]), right=width - 16, top=96, bottom=width + 2
    )
    for one in bins:
        if not one.count:
            continue
        told = (
            f"confidence {one.low:g} to {one.high:g}: {one.count:,} images "
            f"({percent(one.count / images)}), mean confidence {one.confidence:.3f}, "
            f"accuracy {one.accuracy:.3f}"
        )
        begin, end = places(one.low) + 1, places(one.high) - 1
        up, wanted, bottom = values(one.accuracy), values(one.confidence), values(0)
        both, gap = max(up, wanted), 1 if one.accuracy > one.confidence else 2
        height = max(1.0, 36 * one.count / most)
        for top, tall, style in (
            (84 - height, height, f'class="fill" fill-opacity="0.4" {_color(8)}'),
            (both, bottom - both, f'class="fill" fill-opacity="0.75" {_color(1)}'),
            (min(up, wanted), abs(up - wanted), f'class="gap" {_color(gap)}'),
        ):
            box = f'x="{begin:.1f}" y="{top:.1f}" width="{end - begin:.1f}" height="{tall:.1f}"'
            _hint(canvas, f"rect {box} {style}", told)
    if images:
        diagonal = f"M{places(0):g} {values(0):g}L{places(1):g} {values(1):g}"
        canvas.path(diagonal, "interval dashes")
    return _image(canvas, title, f"{images:,} images in {len(bins)} bins", width, width + 44)


def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    x: Axis = _UNNAMED,
    y: Axis = _UNNAMED,
    width: int = 520,
    height: int = 330,
) -> str:
    """Draw points with error bars; a name stands beside its point where there is room."""
    canvas = _titled(title, y.label, width)
    given = [
        [[end for end in ends if end is not None] for ends in one]
        for one in (
            [(point.x, point.x_low, point.x_high) for point in points],
            [(point.y, point.y_low, point.y_high) for point in points],
        )
    ]
    places, values = _axes(
        canvas,
        (x, given[0]),
        (y, given[1]),
        right=width - 24,
        top=52,
        bottom=height - 42,
        margin=0.06,
    )
    shown = [
        (point, places(point.x), values(point.y), _color(point.color or number))
        for number, point in enumerate(points, 1)
        if places.holds(point.x) and values.holds(point.y)
    ]
    taken = [(across - 6, up - 6, across + 6, up + 6) for _, across, up, _ in shown]
    for point, across, up, color in shown:
        for box in (
            _interval(canvas, places, point.x_low, point.x_high, up, up=False),
            _interval(canvas, values, point.y_low, point.y_high, across, up=True),
        ):
            taken += [] if box is None else [box]
        told = f"{point.name}: {values.text(point.y)} at {places.text(point.x)}"
        circle = f'circle cx="{across:.1f}" cy="{up:.1f}" r="5" class="fill" {color}'
        _hint(canvas, circle, told)
    for point, across, up, _ in shown:
        size = min(150.0, _text_width(point.name, 12))
        left, half = -9 - size, -size / 2
        for dx, dy in (
            *((9, 4), (left, 4), (half, -10), (half, 19)),
            *((9, -8), (9, 16), (left, -8), (left, 16)),  # beside error bars
        ):
            box = (across + dx, up + dy - 10, across + dx + size, up + dy + 2)
            inside = places.start < box[0] and box[2] < width - 4 and 52 < box[3] < height - 42
            if inside and not any(_overlap(box, other) for other in taken):
                _write(canvas, box[0], up + dy, point.name, size, "halo")
                taken.append(box)
                break
    description = "; ".join(point.name for point, *_ in shown)
    return _image(canvas, title, description or "no data", width, height)


def _text_width(text: str, size: int) -> float:
    return 1.15 * svg.text_width(text, size)  # the page's font is not known


def _titled(title: str, subtitle: str, width: float) -> Canvas:
    canvas = Canvas()
    _write(canvas, 14, 18, title, width - 28, "title")
    canvas.text(14, 35, subtitle, "faint")
    return canvas


def _image(canvas: Canvas, title: str, description: str, width: float, height: float) -> str:
    most = 1.25 * width
    return image("resnet-chart", canvas.elements, title, description, width, height, max_width=most)


def _color(number: int) -> str:
    return f'style="--c: var(--series-{(number - 1) % _COLORS + 1})"'


def _hint(canvas: Canvas, element: str, told: str) -> None:
    """Draw an element with a tooltip."""
    name = element.partition(" ")[0]
    canvas.elements.append(f"<{element}><title>{escaped(told)}</title></{name}>")


def _write(
    canvas: Canvas,
    x: float,
    y: float,
    name: str,
    room: float,
    style: str = "",
    anchor: str = "start",
) -> None:
    """Write a name, cut to the room, with the whole of it as a tooltip."""
    size = {"title": 14, "small": 11}.get(style, 12)
    shown = shortened(name, room, size)
    element = f'text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}"'
    hint = "" if shown == printable(name) else f"<title>{escaped(name)}</title>"
    canvas.elements.append(f"<{element}>{hint}{escaped(shown)}</text>")


def _axes(
    canvas: Canvas,
    across: tuple[Axis, Sequence[Values]],
    up: tuple[Axis, Sequence[Values]],
    *,
    right: float,
    top: float,
    bottom: float,
    margin: float = 0,
) -> tuple[Scale, Scale]:
    """Draw grid, ticks and labels, and return both scales."""
    is_empty = not any(len(one) for one in up[1])
    values = scale_of(*up, bottom, top, margin=margin, rounded=True)
    ticks = [] if is_empty else values.ticks(42)
    texts = [values.tick_text(tick, ticks) for tick in ticks]
    left = 22 + max((_text_width(text, 12) for text in texts), default=0.0)
    for tick, text in zip(ticks, texts, strict=True):
        canvas.path(f"M{left:g} {values(tick):.1f}H{right:g}", "grid")
        canvas.text(left - 8, round(values(tick) + 4, 1), text, "faint", anchor="end")
    places = scale_of(*across, left, right, margin=margin)
    ticks = [] if is_empty else places.ticks(64)
    canvas.path(f"M{left:g} {bottom:g}H{right:g}", "axis")
    free = 0.0
    for tick in ticks:
        place, text = places(tick), places.tick_text(tick, ticks)
        canvas.path(f"M{place:.1f} {bottom:g}v5", "axis")
        half = _text_width(text, 12) / 2
        if place - half > free:
            canvas.text(round(place, 1), bottom + 18, text, "faint", anchor="middle")
            free = place + half + 4
    canvas.text((left + right) / 2, bottom + 36, across[0].label, "faint", anchor="middle")
    if is_empty:
        canvas.text((left + right) / 2, (top + bottom) / 2, "no data", "faint", anchor="middle")
    return places, values


def _draw_line(
    canvas: Canvas, one: Series, color: str, places: Scale, values: Scale, hits: int
) -> tuple[float, float]:
    """Draw a line, its band and its tooltips; return the end of the line."""
    pieces: list[list[tuple[float, float, int]]] = [[]]
    for number in _kept(one):
        at, value = float(one.x[number]), float(one.y[number])
        if places.holds(at) and values.holds(value):
            pieces[-1].append((places(at), values(value), number))
        elif pieces[-1]:
            pieces.append([])
    for piece in pieces if len(one.low) else []:
        ends = [
            (across, values(low), values(high))
            for across, _, number in piece
            if values.holds(low := float(one.low[number]))
            and values.holds(high := float(one.high[number]))
        ]
        around = [(x, low) for x, low, _ in ends] + [(x, high) for x, _, high in reversed(ends)]
        if around:
            canvas.elements.append(f'<path d="{_line(around)}z" class="band" {color}/>')
    whole = "".join(_line([(x, y) for x, y, _ in piece]) for piece in pieces)
    style = "series" + " dashes" * one.dashed + " dense" * (len(one.x) > 4 * _PIECES)
    _hint(canvas, f'path d="{whole}" class="{style}" {color}', one.name)
    found = [point for piece in pieces for point in piece]
    alone = [piece[0] for piece in pieces if len(piece) == 1]
    for x, y, _ in found if len(found) <= 20 else alone:
        canvas.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="fill" {color}/>')
    for x, y, number in found[:: ceil(len(found) / hits) or 1]:
        told = f"{values.text(float(one.y[number]))} at {places.text(float(one.x[number]))}"
        told = f"{one.name} {told}".strip()
        _hint(canvas, f'circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="hit" {color}', told)
    return found[-1][:2] if found else (places.end, values.start)


def _kept(one: Series) -> list[int]:
    """Indices of the points to draw: all of few, or the ends and extremes of pieces of many."""
    total = len(one.x)
    if total <= 4 * _PIECES:
        return list(range(total))
    kept = set[int]()
    for piece in np.array_split(np.arange(total), _PIECES):
        kept |= {int(piece[0]), int(piece[-1])}
        for values in (one.y, one.low, one.high):
            part = np.asarray(values, dtype=float)[piece[0] : piece[-1] + 1]
            if len(part):
                kept.add(int(piece[np.argmin(np.where(np.isfinite(part), part, np.inf))]))
                kept.add(int(piece[np.argmax(np.where(np.isfinite(part), part, -np.inf))]))
    return sorted(kept)


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _draw_uprights(canvas: Canvas, marks: Sequence[Mark], places: Scale, values: Scale) -> None:
    """Draw vertical lines, with the texts that have room at their tops."""
    free = 0.0
    for mark in sorted(marks, key=lambda mark: mark.x):
        if not places.holds(mark.x) or not places.low <= mark.x <= places.high:
            continue
        x, half = places(mark.x), _text_width(mark.text, 11) / 2
        line = f'path d="M{x:.1f} {values.end - 3:g}V{values.start:g}" class="axis dashes"'
        _hint(canvas, line, f"{mark.text} at {places.text(mark.x)}")
        middle = min(max(x, places.start + half), places.end - half)
        if middle - half >= free:
            canvas.text(round(middle, 1), values.end - 8, mark.text, "small faint", anchor="middle")
            free = middle + half + 8


def _draw_rings(canvas: Canvas, marks: Sequence[Mark], places: Scale, values: Scale) -> None:
    for mark in marks:
        if mark.y is None or not (places.holds(mark.x) and values.holds(mark.y)):
            continue
        x, y = places(mark.x), values(mark.y)
        told = f"{mark.text}: {values.text(mark.y)} at {places.text(mark.x)}"
        _hint(canvas, f'circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="ring"', told)
        side = -1 if x > (places.start + places.end) / 2 else 1
        beside, up = round(x + 9 * side, 1), y + (18 if y < values.end + 20 else -9)
        canvas.text(beside, round(up, 1), mark.text, "halo", anchor="end" if side < 0 else "start")


def _label_ends(
    canvas: Canvas,
    named: Sequence[tuple[Series, str, tuple[float, float]]],
    places: Scale,
    values: Scale,
    room: float,
) -> None:
    """Write names at the ends of their lines, moved apart, each with a line that leads to it."""
    named = sorted(named, key=lambda one: one[2][1])
    heights: list[float] = []
    for _, _, (_, y) in named:
        heights.append(max(y, heights[-1] + _LINE if heights else values.end))
    limit = values.start
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], limit)
        limit = heights[number] - _LINE
    x = places.end + 22
    for (one, color, (begin, y)), height in zip(named, heights, strict=True):
        y = min(max(y, values.end), values.start)
        bend = f"M{places.end + 4:.1f} {y:.1f}L{x - 10:.1f} {height:.1f}h6"
        canvas.elements.append(f'<path d="{bend}" class="leader" {color}/>')
        if begin < places.end - 1:
            far = f"M{begin + 4:.1f} {y:.1f}H{places.end + 4:.1f}"
            canvas.elements.append(f'<path d="{far}" class="leads" {color}/>')
        _write(canvas, x, height + 4, one.name, room)


def _draw_legend(
    canvas: Canvas, named: Sequence[tuple[Series, str]], width: int, height: int, room: float
) -> int:
    """Write names below the axes, in columns; return the height of the chart with them."""
    columns = max(1, floor((width - 14) / (room + 40)))
    for number, (one, color) in enumerate(named):
        row, column = divmod(number, columns)
        x, y = 14 + column * (room + 40), height + 24 + row * _LINE
        dashes = " dashes" * one.dashed
        canvas.elements.append(f'<path d="M{x:g} {y - 4}h18" class="series{dashes}" {color}/>')
        _write(canvas, x + 24, y, one.name, room)
    return height + 16 + ceil(len(named) / columns) * _LINE


def _interval(
    canvas: Canvas, scale: Scale, low: float | None, high: float | None, middle: float, *, up: bool
) -> Box | None:
    """Draw the ends of an interval, if it has any, and return the box around it."""
    if low is None or high is None or not (scale.holds(low) and scale.holds(high)):
        return None
    begin, end = sorted((scale(low), scale(high)))
    if up:
        canvas.path(f"M{middle - 3:.1f} {begin:.1f}h6m-3 0V{end:.1f}m-3 0h6", "interval")
        return middle - 3, begin, middle + 3, end
    canvas.path(f"M{begin:.1f} {middle - 3:.1f}v6m0-3H{end:.1f}m0-3v6", "interval")
    return begin, middle - 3, end, middle + 3


def _value(bar: Bar, axis: Axis) -> str:
    if bar.value is None or not isfinite(bar.value):
        return "no value"
    return Scale(axis, 0, 1, 0, 1).text(bar.value)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
