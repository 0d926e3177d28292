"""``resnet-build schema``: JSON Schema of specs, for editors."""

from pathlib import Path

import click

from resnet_builder.cli.console import examples, note, show
from resnet_builder.cli.options import debug_option, plugin_option, write_new

FILE = "resnet-builder.schema.json"

_FIRST_LINES = "\n".join(
    [
        "\b",
        "First line of a spec beside the file:",
        f"  # yaml-language-server: $schema={FILE}   (VS Code, Neovim and others)",
        f"  # $schema: {FILE}                        (JetBrains)",
    ]
)


@click.command(
    epilog=f"{_FIRST_LINES}\n\n"
    + examples(
        f"resnet-build schema -o {FILE}",
        f"resnet-build schema --plugin my_blocks.py -o {FILE}",
        "resnet-build schema --sweep -o sweep.schema.json",
    )
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to this file instead of printing.",
)
@click.option("--sweep", is_flag=True, help="Print the schema of sweep files instead.")
@plugin_option
@debug_option
def schema(out: Path | None, sweep: bool, plugins: tuple[str, ...]) -> None:
    """Print the JSON Schema of specs, or of sweep files, for editors.

    An editor completes and checks a spec by the schema that the spec's first line names.
    """
    if sweep:
        from resnet_builder.launch.sweep_file import sweep_json_schema_text

        text = sweep_json_schema_text()
    else:
        from resnet_builder.parts import REGISTRIES
        from resnet_builder.plugins import import_named_plugins
        from resnet_builder.spec.json_schema import json_schema_text

        import_named_plugins(plugins)
        text = json_schema_text(REGISTRIES)
    if out is None:
        show(*text.removesuffix("\n").split("\n"))
        return
    write_new(out, text)
    kind = "sweep" if sweep else "spec"
    note(
        f"wrote {out}: a {kind} beside it begins with `# yaml-language-server: $schema={out.name}`"
        f", or, for the JetBrains editors, with `# $schema: {out.name}`"
    )
