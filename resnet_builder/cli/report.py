"""``resnet-build report``: the results of runs as a page, or as numbers."""

from pathlib import Path

import click

from resnet_builder.cli.console import examples, json_text, note, show, show_json
from resnet_builder.cli.options import (
    EXISTING,
    data_dir_option,
    debug_option,
    plugin_option,
    write_new,
)
from resnet_builder.errors import StorageError, UsageError

_FORMATS = {".html": "html", ".md": "md", ".csv": "csv", ".json": "json"}
_PAGE = "report.html"


@click.command(
    epilog=examples(
        "resnet-build report runs/resnet20-001",
        "resnet-build report runs/resnet20-* -o resnet20.html",
        "resnet-build report runs/resnet20-* --format md",
    )
)
@click.argument("runs", type=EXISTING, metavar="RUN...", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write.  [default: report.html, in RUN if there is one RUN; Markdown, CSV and "
    "JSON are printed]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "csv", "json"]),
    help="A page (html), or its numbers as Markdown, CSV or JSON.  [default: by the ending of "
    "FILE, else html]",
)
@plugin_option
@data_dir_option
@debug_option
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    form: str | None,
    plugins: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Show the results of runs as one page, or as numbers.

    The page has the accuracy beside the published one, curves, the spec and its differences, the
    network, cost and environment. It is one file, which loads nothing from the internet. Runs that
    differ only in their seeds are shown by their mean and standard deviation.

    RUN is a run directory, or a folder of run directories. A run need not be finished. The
    report.html in RUN is replaced; no other file is overwritten.
    """
    from resnet_builder.reports.run_curves import find_run_directories

    directories = find_run_directories(runs)
    form = form or _form_of(out)
    # A folder of runs has its page, as a run has.
    own = runs[0] / _PAGE if len(runs) == 1 else Path(_PAGE)
    if form == "html" and out is None:
        out = own
    is_own = (
        form == "html" and out is not None and len(runs) == 1 and out.absolute() == own.absolute()
    )
    if is_own and (runs[0] / "model.safetensors").is_file():
        raise UsageError(
            f"{runs[0]} is a published folder, and its {_PAGE} is that of the run; -o FILE writes "
            "another page"
        )
    if out is not None and not is_own:
        from resnet_builder.runs.files import refuse_existing

        refuse_existing(out)  # before torch is imported

    from resnet_builder.reports.report import read_report

    found = read_report(directories, plugins=plugins, data_dir=data_dir)
    for run in found.runs:
        for problem in run.problems:
            note(f"{run.path}: {problem}")
    if form == "json" and out is None:
        show_json(found)
        return
    if form == "html":
        from resnet_builder.reports.page import render_html

        text = render_html(found)
    elif form == "json":
        text = json_text(found)
    else:
        from resnet_builder.reports.tables import render_csv, render_markdown

        text = render_markdown(found) if form == "md" else render_csv(found)
    if out is None:
        show(*text.removesuffix("\n").split("\n"))
        return
    if is_own:
        from resnet_builder.runs.files import write_atomically

        try:
            write_atomically(out, [text.encode()])
        except StorageError as error:  # others' runs can often be read alone
            raise StorageError(f"{error}; -o FILE writes the page to another place") from error
    else:
        write_new(out, text)
    show(f"wrote {out}")


def _form_of(out: Path | None) -> str:
    """Format of a file, by the ending of its name.

    Raises:
        UsageError: The ending is another one.
    """
    ending = ".html" if out is None else out.suffix.lower()
    if ending not in _FORMATS:
        raise UsageError(f"{out}: name a file that ends in {', '.join(_FORMATS)}; or give --format")
    return _FORMATS[ending]
