"""Drawings of networks as Mermaid flowcharts, which GitHub and GitLab show in Markdown."""

import re
from collections.abc import Iterator
from dataclasses import replace

from resnet_builder.errors import printable
from resnet_builder.reports.block_runs import BlockRun, block_runs, shape_text
from resnet_builder.summary import Summary


def draw_mermaid(found: Summary, *, full: bool = False) -> str:
    """Draw a network as a Mermaid flowchart.

    Args:
        found: Summary of the network.
        full: Whether to draw every block instead of one of each kind.
    """
    counts = f"{found.parameters:,} parameters, {found.macs:,} MACs"
    title = _lines(found.name, counts, f"depth {found.depth_arithmetic}")
    lines = [
        '%%{init: {"flowchart": {"wrappingWidth": 500}}}%%',
        "flowchart TB",
        f'  image(["{title}<br>{_text(f"images of {shape_text(found.image)}")}"])',
    ]
    last = "image"
    for row in found.rows:
        if row.name in {"stem", "head"}:
            lines += [f'  {row.name}["{_lines(row.name, row.kind)}"]', f"  {last} --> {row.name}"]
            last = row.name
            continue
        lines.append(f'  subgraph {row.name}["{_text(f"{row.name}: {shape_text(row.output)}")}"]')
        inside, links = [], []
        for number, run in enumerate(_runs(found, row.name, full)):
            name = f"{row.name}_{number}"
            inside.append(f'    {name}["{_block_text(run)}"]')
            links.append(f"  {last} --> {name}")
            if run.block.shortcut is not None:
                end = f"{name}_sum"
                inside.append(f'    {end}(("add"))')
                links += [f"  {name} --> {end}", f"  {last} {_arc(run)} {end}"]
                name = end
            last = name
        lines += [*inside, "  end", *links]
    return "\n".join([*lines, ""])


def _runs(found: Summary, stage: str, full: bool) -> Iterator[BlockRun]:
    for run in block_runs(found, stage):
        if full:
            yield from (replace(run, blocks=(block,)) for block in run.blocks)
        else:
            yield run


def _arc(run: BlockRun) -> str:
    """Link of a shortcut: dotted where the shape changes."""
    label = f'|"{_text(run.shortcut)}"|' if run.shortcut else ""
    return f"{'-.->' if run.changes_shape else '-->'}{label}"


def _block_text(run: BlockRun) -> str:
    times = f"{len(run.blocks)} x " if len(run.blocks) > 1 else ""
    return _lines(f"{times}{run.block.kind}", *(", ".join(line) for line in run.lines))


def _lines(*texts: str) -> str:
    return "<br>".join(map(_text, texts))


def _text(text: str) -> str:
    """Write a text without the characters that could mean something to Mermaid."""
    return re.sub(r"[^\w .,:/+=-]", "?", printable(text))
