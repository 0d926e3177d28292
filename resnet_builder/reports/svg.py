"""SVG images: texts, boxes and lines, readable on light and dark pages."""

from collections.abc import Iterable

from resnet_builder.errors import columns, printable
from resnet_builder.reports.html import escaped

# Scoped to its class, so that a page may hold the drawing inline.
_STYLE = """
.resnet-drawing { --page: #fff; --ink: #1f2328; --faint: #59636e; --line: #444c56; }
.resnet-drawing text { fill: var(--ink); }
.resnet-drawing text { font: 12px Helvetica, Arial, "Liberation Sans", sans-serif; }
.resnet-drawing .title { font-size: 20px; font-weight: bold; }
.resnet-drawing .bold { font-weight: bold; }
.resnet-drawing .times { font-size: 20px; font-weight: bold; }
.resnet-drawing .faint { fill: var(--faint); }
.resnet-drawing .small { font-size: 11px; }
.resnet-drawing .page { fill: var(--page); }
.resnet-drawing .panel { fill: hsl(var(--hue) 70% 96%); }
.resnet-drawing .box { fill: hsl(var(--hue) 70% 87%); stroke: hsl(var(--hue) 45% 45%); }
.resnet-drawing .side { fill: hsl(var(--hue) 30% 96%); }
.resnet-drawing .line, .resnet-drawing .arc { fill: none; stroke: var(--line); stroke-width: 1.3; }
.resnet-drawing .arc { stroke-width: 1.6; }
.resnet-drawing .dotted { stroke-dasharray: 2 4; stroke-width: 2; stroke-linecap: round; }
.resnet-drawing .head { fill: var(--line); }
@media print { .resnet-drawing:root { width: 100%; height: 100%; } }
@media screen and (prefers-color-scheme: dark) {
.resnet-drawing { --page: #0d1117; --ink: #f0f3f6; --faint: #a9b4c0; --line: #b1bac4; }
.resnet-drawing .panel { fill: hsl(var(--hue) 35% 13%); }
.resnet-drawing .box { fill: hsl(var(--hue) 45% 26%); stroke: hsl(var(--hue) 45% 58%); }
.resnet-drawing .side { fill: hsl(var(--hue) 20% 17%); }
}
"""


class Canvas:
    """Elements of a drawing, in order."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        style: str = "",
        *,
        anchor: str = "start",
        room: int = 0,
    ) -> None:
        """Write a text at its baseline, squeezed if it needs more than ``room``."""
        shown = printable(text)
        squeezed = f' textLength="{room}" lengthAdjust="spacingAndGlyphs"'
        fits = not room or text_width(shown, 11 if "small" in style else 12) <= room
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}"'
            f"{'' if fits else squeezed}>{escaped(shown)}</text>"
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        style: str,
        *,
        hue: int,
        data: str = "",
    ) -> None:
        """Draw a box with round corners."""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'class="{style}" style="--hue: {hue}"{_data(data)}/>'
        )

    def path(self, d: str, style: str, *, arrow: bool = False, data: str = "") -> None:
        """Draw a line, with an arrow's head at its end if wanted."""
        head = ' marker-end="url(#resnet-drawing-arrow)"' if arrow else ""
        self.elements.append(f'<path d="{d}" class="{style}"{head}{_data(data)}/>')

    def svg(self, title: str, description: str, width: float, height: float) -> str:
        """Return the drawing, with a title and a description for those who cannot see it."""
        elements = [
            f"<style>{_STYLE}</style>",
            '<defs><marker id="resnet-drawing-arrow" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerUnits="userSpaceOnUse" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 8 4 0 8z" class="head"/></marker></defs>',
            f'<rect width="{width:g}" height="{height:g}" class="page"/>',
            *self.elements,
        ]
        return image("resnet-drawing", elements, title, description, width, height)


def image(
    kind: str,
    elements: Iterable[str],
    title: str,
    description: str,
    width: float,
    height: float,
    *,
    max_width: float | None = None,
) -> str:
    """Return an image of this class, with a title and a description for those who cannot see it.

    Args:
        kind: Class of the image.
        elements: Its elements.
        title: Title.
        description: Description in a sentence.
        width: Width in pixels.
        height: Height in pixels.
        max_width: Width up to which a page may enlarge it.
    """
    style = "" if max_width is None else f' style="max-width: {max_width:g}px"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}"{style} role="img" '
            f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">',
            f"<title>{escaped(title)}</title>",
            f"<desc>{escaped(description)}</desc>",
            *elements,
            "</svg>\n",
        ]
    )


def shortened(text: str, room: float, size: int) -> str:
    """Return a text, cut to the pixels that there are."""
    shown = printable(text)
    while text_width(shown, size) > room and len(shown) > 1:
        shown = shown.removesuffix("…")[:-1] + "…"
    return shown


def text_width(text: str, size: int) -> float:
    """Width of a text in Helvetica, in pixels; about, for other scripts."""
    widths = (
        0.28
        if character in " .,:/ijlt·"
        else 0.7
        if character.isupper() or character in "mw"
        else 0.556
        for character in text
    )
    return size * (sum(widths) + 0.5 * (columns(text) - len(text)))


def _data(name: str) -> str:
    return f' data-name="{escaped(name)}"' if name else ""
