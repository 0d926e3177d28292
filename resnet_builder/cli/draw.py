"""``resnet-build draw``: a network as a diagram."""

from pathlib import Path

import click

from resnet_builder.cli.console import examples, show
from resnet_builder.cli.options import (
    SPEC,
    data_option,
    debug_option,
    read_spec,
    spec_options,
    write_new,
)
from resnet_builder.errors import UsageError


@click.command(
    epilog=examples(
        "resnet-build draw resnet32 -o resnet32.svg",
        "resnet-build draw resnet34 --full -o resnet34.svg",
        "resnet-build draw my_net.yaml -o my_net.md",
    )
)
@click.argument("spec", type=SPEC, metavar="SPEC")
@click.option("--full", is_flag=True, help="Draw every convolution, not one block of each kind.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to this file: .svg, .mmd (Mermaid), or .md (Mermaid in Markdown).  "
    "[default: print the SVG]",
)
@spec_options
@data_option
@debug_option
def draw(
    spec: str,
    full: bool,
    out: Path | None,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
) -> None:
    """Draw a network as a diagram.

    The drawing has the stem, one block of each kind in each stage, and the head, with output
    sizes, parameters, MACs (multiply-adds for one image) and depth. Solid arcs are shortcuts that
    keep the shape; dotted ones change it. Existing files are not overwritten.
    """
    form = ".svg" if out is None else out.suffix.lower()
    if form not in {".svg", ".mmd", ".md"}:
        raise UsageError(f"{out}: name a file that ends in .svg, .mmd or .md")
    if out is not None:
        from resnet_builder.runs.files import refuse_existing

        refuse_existing(out)  # before torch is imported

    resolved = read_spec(
        spec,
        overrides=overrides,
        fragments=fragments,
        plugins=plugins,
        data=data,
        without_data=True,
    )
    from resnet_builder.reports.drawing import draw_svg
    from resnet_builder.reports.mermaid import draw_mermaid
    from resnet_builder.summary import summarize

    found = summarize(resolved)
    text = draw_svg(found, full=full) if form == ".svg" else draw_mermaid(found, full=full)
    if form == ".md":
        text = f"```mermaid\n{text}```\n"
    if out is None:
        show(*text.removesuffix("\n").split("\n"))
        return
    write_new(out, text)
    show(f"wrote {out}: {found.name}, depth {found.depth_arithmetic}")
