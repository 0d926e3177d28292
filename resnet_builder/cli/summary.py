"""``resnet-build summary``: a network, stage by stage, and the state of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, show, show_json, table
from resnet_builder.cli.options import (
    SPEC,
    data_option,
    debug_option,
    json_option,
    read_spec,
    spec_options,
)
from resnet_builder.cli.result import progress
from resnet_builder.errors import percent

if TYPE_CHECKING:
    from resnet_builder.summary import Row, Summary

_HEADER = ("", "kind", "output", "parameters", "MACs", "field", "depth")


@click.command(
    epilog=examples(
        "resnet-build summary resnet32",
        "resnet-build summary my_net.yaml --depth",
        "resnet-build summary resnet56 --set model.shortcut=projection --json",
        "resnet-build summary runs/resnet20-001",
        "resnet-build summary best.safetensors",
    )
)
@click.argument("spec", type=SPEC, metavar="SPEC")
@click.option("--depth", is_flag=True, help="Show every layer, not only stages.")
@spec_options
@data_option
@json_option
@debug_option
def summary(
    spec: str,
    depth: bool,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    as_json: bool,
) -> None:
    """Show a network, stage by stage.

    The table has shapes, parameters, MACs (multiply-adds for one image), receptive field and depth.
    Of a run directory, the state and the accuracies follow. A file of weights has its spec inside.
    """
    from resnet_builder.memory import size_text
    from resnet_builder.summary import summarize

    resolved = read_spec(
        spec,
        overrides=overrides,
        fragments=fragments,
        plugins=plugins,
        data=data,
        without_data=True,
    )
    found = summarize(resolved)
    if as_json:
        show_json(found)
        return
    rows = found.layers if depth else found.rows
    show(f"{found.name}: images of {_shape(found.image)}", "")
    show(*table(_HEADER, [*map(_cells, rows), _totals(found)], left=2))
    show("", f"depth {found.depth_arithmetic}")
    kept = size_text(found.activation_bytes)
    show(f"a training step keeps {kept} of activations an image, in fp32")
    if Path(spec).is_dir():
        _show_run(Path(spec))


def _show_run(path: Path) -> None:
    """Print how far a run came, and how good it is."""
    from resnet_builder.runs.directory import RunDirectory
    from resnet_builder.runs.status import run_status

    run = run_status(RunDirectory(path))
    steps, seed, time = progress(run)
    facts = {
        "state": run.state if run.error is None else f"{run.state}: {run.error}",
        "steps": steps,
        "seed": seed,
        "training time": time,
        "best validation top-1": percent(run.val_top1),
        "test top-1": percent(run.test_top1),
        "device": "" if run.result is None else f"{run.result.device}, {run.result.precision}",
    }
    show("", *(f"{name}: {fact}" for name, fact in facts.items() if fact))


def _cells(row: "Row") -> tuple[str, ...]:
    field = "all" if row.receptive_field is None else str(row.receptive_field)
    depth = str(row.depth) if row.depth else ""
    return (
        row.name,
        row.kind,
        _shape(row.output),
        f"{row.parameters:,}",
        f"{row.macs:,}",
        field,
        depth,
    )


def _totals(found: "Summary") -> tuple[str, ...]:
    return ("total", "", "", f"{found.parameters:,}", f"{found.macs:,}", "", str(found.depth))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
