"""Drawings of networks as SVG: folded, or with every convolution as in He et al. 2015, figure 3."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod

from resnet_builder.reports.block_runs import BlockRun, block_runs, shape_text
from resnet_builder.reports.svg import Canvas
from resnet_builder.summary import Row, Summary

ASPECT = 1.414
"""Height of an A4 page, by its width."""

_HUES = (265, 125, 350, 205, 305, 170)
_OUTSIDE = 42  # stem and head


def draw_svg(found: Summary, *, full: bool = False) -> str:
    """Draw a network as one SVG image, readable on light and dark pages.

    Solid arcs are shortcuts that keep the shape, dotted ones change it (He et al. 2015, figure 3).

    Args:
        found: Summary of the network.
        full: Whether to draw every convolution, in columns, instead of one block of each kind.
    """
    return _draw_full(found) if full else _draw_folded(found)


def _description(found: Summary) -> str:
    """Describe a network in one sentence, for those who cannot see its drawing."""
    stages = "; ".join(
        f"{row.name}, {row.kind}, output {shape_text(row.output)}" for row in found.rows
    )
    return f"images of {shape_text(found.image)}; {stages}; depth {found.depth_arithmetic}"


def _layers_of(found: Summary, row: Row) -> list[tuple[Row, bool]]:
    """Layers of the stem or of the head; with each, whether it computes or pools."""
    names = row.kind.split(", ")
    size, layers = prod(found.image), []
    for layer in found.layers:
        if layer.name.split(".", 1)[0] in names:
            layers.append((layer, layer.macs > 0 or prod(layer.output) < size))
        size = prod(layer.output)
    return layers


def _draw_folded(found: Summary) -> str:
    """Draw the stem, the head, and one block of each kind in each stage."""
    canvas, width = Canvas(), 960
    canvas.text(24, 40, found.name, "title")
    canvas.text(24, 62, f"images of {shape_text(found.image)}, depth {found.depth_arithmetic}")
    for x, text in zip(_NUMBERS, ("parameters", "MACs", "depth"), strict=True):
        canvas.text(x, 62, text, "faint", anchor="end")
    y, boxes = 76.0, Canvas()
    begin = end = y
    for number, row in enumerate(found.rows):
        top, hue = y, _OUTSIDE
        if row.name in {"stem", "head"}:
            end = _draw_layers(boxes, _layers_of(found, row), y + 12) - 14
        else:
            hue = _HUES[(number - 1) % len(_HUES)]
            for run in block_runs(found, row.name):
                y = _draw_block(boxes, run, y, hue)
        y = max(y, end + 14, top + 58)
        canvas.box(12, top, width - 24, y - top - 4, "panel", hue=hue)
        _write_row(canvas, row, top)
    canvas.path(f"M{_MIDDLE} {begin:g}V{end:g}", "line")
    canvas.elements += boxes.elements
    _write_cells(canvas, y + 16, (found.parameters, found.macs, found.depth), "bold")
    canvas.text(24, y + 16, "total", "bold")
    return canvas.svg(found.name, _description(found), width, y + 30)


_LEFT, _WIDTH, _MIDDLE = 226, 330, 391
_NUMBERS = (780, 890, 936)


def _write_row(canvas: Canvas, row: Row, top: float) -> None:
    """Write the name, size and counts of a stem, stage or head."""
    canvas.text(24, top + 21, row.name, "bold")
    canvas.text(24, top + 38, shape_text(row.output), room=130)
    if row.name not in {"stem", "head"}:
        canvas.text(24, top + 55, row.kind, "faint", room=130)
    _write_cells(canvas, top + 21, (row.parameters, row.macs, row.depth))


def _write_cells(canvas: Canvas, y: float, cells: tuple[int, ...], style: str = "") -> None:
    for x, cell in zip(_NUMBERS, cells, strict=True):
        canvas.text(x, y, f"{cell:,}", style, anchor="end")


def _draw_layers(canvas: Canvas, layers: Sequence[tuple[Row, bool]], y: float) -> float:
    """Draw the layers of a stem or head, one line for each that computes or pools."""
    lines: list[list[Row]] = []
    for layer, is_main in layers:
        if is_main or not lines:
            lines.append([])
        lines[-1].append(layer)
    for line in lines:
        y = _draw_line(canvas, [layer.label for layer in line], y, _OUTSIDE, line[0].name)
    return y


def _draw_line(canvas: Canvas, line: Sequence[str], y: float, hue: int, name: str) -> float:
    canvas.path(f"M{_MIDDLE} {y - 8:g}V{y:g}", "line", arrow=True)
    canvas.box(_LEFT, y, _WIDTH, 22, "box", hue=hue, data=name)
    canvas.text(_MIDDLE, y + 15, " · ".join(line), anchor="middle", room=_WIDTH - 12)
    return y + 30


def _draw_block(canvas: Canvas, run: BlockRun, y: float, hue: int) -> float:
    """Draw a block, the number of such blocks at its left and the shortcut at its right."""
    begins, top, done = y + 6, y + 4, 0
    y += 18
    for line in run.lines:
        y = _draw_line(canvas, line, y, hue, run.block.name)
        done += len(line)
        if done <= run.block.shortcut_from:
            begins = y - 6
    if run.block.shortcut is not None:
        canvas.path(f"M{_MIDDLE} {y - 8:g}V{y:g}", "line", arrow=True)
        canvas.box(_MIDDLE - 60, y, 120, 20, "box side", hue=hue)
        text = " · ".join(["add", *run.after])
        canvas.text(_MIDDLE, y + 14, text, "bold", anchor="middle", room=110)
        style, right = f"arc{' dotted' * run.changes_shape}", _LEFT + _WIDTH + 26
        canvas.path(
            f"M{_MIDDLE} {begins:g}H{right - 14}q14 0 14 14V{y - 4:g}q0 14 -14 14H{_MIDDLE + 62}",
            style,
            arrow=True,
            data=run.block.name,
        )
        for number, text in enumerate(run.shortcut.split(", ", 1) if run.shortcut else []):
            middle = (begins + y) / 2
            canvas.text(right + 10, middle + 16 * number, text, "small", room=120)
        y += 28
    bottom = y - 8
    if len(run.blocks) > 1:
        canvas.text(
            _LEFT - 34, (top + bottom) / 2 + 7, f"{len(run.blocks)} x", "times", anchor="end"
        )
        canvas.path(f"M{_LEFT - 14} {top:g}q-8 0 -8 8V{bottom - 8:g}q0 8 8 8", "line")
    return y


_COLUMN, _BOX, _PITCH = 258, 160, 28
_HEADING = 52


@dataclass(frozen=True, slots=True)
class _Piece:
    """Piece of a column: a block, or a layer outside the stages.

    Attributes:
        row: Stem, stage or head.
        hue: Colour.
        boxes: Labels, and whether the box counts for the depth.
        block: Block, if it is one.
        starts: Whether the stem, stage or head begins here.
    """

    row: Row
    hue: int
    boxes: tuple[tuple[str, bool], ...]
    block: BlockRun | None = None
    starts: bool = False

    @property
    def height(self) -> float:
        """Height in pixels."""
        return len(self.boxes) * _PITCH + 12 * (self.block is not None) + _HEADING * self.starts


def _draw_full(found: Summary) -> str:
    """Draw every convolution as a box, in as many columns as a page has room for."""
    pieces = list(_pieces(found))
    total = sum(piece.height for piece in pieces)
    for number in count(1):
        columns_ = _in_columns(pieces, max(total / number, *(one.height for one in pieces)), number)
        height = max(sum(piece.height for piece in column) for column in columns_) + 110
        if height <= ASPECT * _COLUMN * number:
            break
    canvas, width = Canvas(), max(_COLUMN * len(columns_), 420) + 24
    canvas.text(24, 40, found.name, "title")
    canvas.text(24, 60, f"images of {shape_text(found.image)}", room=width - 48)
    counts = f"{found.parameters:,} parameters, {found.macs:,} MACs"
    canvas.text(24, 76, f"{counts}, depth {found.depth_arithmetic}", room=width - 48)
    for number, column in enumerate(columns_):
        x, y = 24 + _COLUMN * number + _BOX / 2, 96.0
        for piece in column:
            y = _draw_piece(canvas, piece, x, y, is_first=piece is column[0])
        if number + 1 < len(columns_):  # on to the top of the next column
            right = 24 + _COLUMN * (number + 1) - 22
            end, start = right + 22 + _BOX / 2, _first_box(columns_[number + 1])
            canvas.path(
                f"M{x:g} {y - 8:g}q0 8 8 8H{right - 8:g}q8 0 8 -8V{start - 2:g}"
                f"q0 -8 8 -8H{end - 8:g}q8 0 8 8v2",
                "line",
                arrow=True,
            )
    return canvas.svg(found.name, _description(found), width, height)


def _first_box(column: Sequence[_Piece]) -> float:
    return 96 + _HEADING * column[0].starts


def _pieces(found: Summary) -> Iterator[_Piece]:
    """Yield what is drawn, in order."""
    for number, row in enumerate(found.rows):
        if row.name in {"stem", "head"}:
            layers = [layer for layer, is_main in _layers_of(found, row) if is_main]
            for layer in layers:
                box = (layer.label, bool(layer.depth))
                yield _Piece(row, _OUTSIDE, (box,), starts=layer is layers[0])
            continue
        hue, starts = _HUES[(number - 1) % len(_HUES)], True
        for run in block_runs(found, row.name):
            names = {f"{run.block.name}.{step}" for step in run.block.path}
            counted = [layer for layer in found.layers if layer.name in names and layer.depth]
            boxes = [(layer.label, True) for layer in counted] or [(run.block.kind, False)]
            for block in run.blocks:
                yield _Piece(row, hue, tuple(boxes), replace(run, blocks=(block,)), starts)
                starts = False


def _in_columns(pieces: Sequence[_Piece], limit: float, number: int) -> list[list[_Piece]]:
    """Break the pieces into columns of about equal height."""
    while True:
        columns_: list[list[_Piece]] = [[]]
        height = 0.0
        for piece in pieces:
            if columns_[-1] and height + piece.height > limit:
                columns_.append([])
                height = 0.0
            columns_[-1].append(piece)
            height += piece.height
        if len(columns_) <= number:
            return columns_
        limit += _PITCH


def _draw_piece(canvas: Canvas, piece: _Piece, x: float, y: float, *, is_first: bool) -> float:
    """Draw a block, or a layer of stem or head, around the line at ``x``."""
    if piece.starts:
        if not is_first:
            canvas.path(f"M{x:g} {y - 8:g}v{_HEADING}", "line")
        row, left = piece.row, x + 8
        for number, text in enumerate(
            (
                f"{row.name}: {shape_text(row.output)}",
                f"{row.parameters:,} parameters",
                f"{row.macs:,} MACs",
            )
        ):
            style = "small faint" if number else "small bold"
            canvas.text(left, y + 10 + 14 * number, text, style, room=_COLUMN - _BOX // 2 - 40)
        y += _HEADING
    top, block = y - 6, piece.block
    for number, (text, counts) in enumerate(piece.boxes):
        if number or not is_first:
            canvas.path(f"M{x:g} {y - 8:g}V{y:g}", "line", arrow=True)
        style = f"box{' counted' if counts else ' side'}"
        canvas.box(x - _BOX / 2, y, _BOX, 20, style, hue=piece.hue)
        canvas.text(x, y + 14, text, anchor="middle", room=_BOX - 10)
        y += _PITCH
    if block is None:
        return y
    canvas.path(f"M{x:g} {y - 8:g}v12", "line")
    if block.block.shortcut is not None:
        style, right = f"arc{' dotted' * block.changes_shape}", x + _BOX / 2 + 18
        canvas.path(
            f"M{x:g} {top:g}H{right - 16:g}q16 0 16 16V{y - 16:g}q0 16 -16 16H{x + 1:g}",
            style,
            arrow=True,
            data=block.block.name,
        )
    return y + 12
