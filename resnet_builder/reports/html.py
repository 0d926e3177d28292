"""Pieces of HTML that several parts of the report have in common."""

from collections.abc import Sequence
from html import escape

from resnet_builder import errors
from resnet_builder.errors import printable


def escaped(value: str) -> str:
    """Escape a text for HTML and SVG; what cannot be printed is spelled out."""
    return escape(printable(value))


def note(sentence: str) -> str:
    """Write a sentence below a chart or a table; it is escaped."""
    return f'<p class="note caption">{escaped(sentence)}</p>'


def percent(value: float | None, digits: int = 2) -> str:
    """Write a fraction as a percentage."""
    return errors.percent(value, digits) or "-"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int) -> str:
    """Write a table.

    Args:
        heads: Heads of the columns; none, if there is no row of them.
        rows: Texts of the cells.
        numbers: Number of the last columns that are aligned at the right.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        first = len(cells) - numbers
        styles = [' class="num"' if place >= first else "" for place in range(len(cells))]
        written = (
            f"<{tag}{style}>{escaped(cell)}</{tag}>"
            for cell, style in zip(cells, styles, strict=True)
        )
        return f"<tr>{''.join(written)}</tr>"

    head = f"<thead>{row(heads, 'th')}</thead>" if heads else ""
    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def gallery(figures: Sequence[str]) -> str:
    """Lay out pairs of images in a grid."""
    lines = "\n".join(f"<figure>{figure}</figure>" for figure in figures)
    columns = "grid-template-columns: repeat(auto-fill, minmax(max(9.5rem, 21%), 1fr))"
    return f'<div class="gallery" style="{columns}">\n{lines}\n</div>'
