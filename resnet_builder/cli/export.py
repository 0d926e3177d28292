"""``resnet-build export``: trained weights for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import escaped, examples, show, show_json
from resnet_builder.cli.options import EXISTING, debug_option, json_option, plugin_option

if TYPE_CHECKING:
    from resnet_builder.export import ExportReport, FormatName
    from resnet_builder.runs.answers import ExportRecord
    from resnet_builder.trained import TrainedModel

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    epilog=examples(
        "resnet-build export runs/resnet20-001 -o resnet20.onnx",
        "resnet-build export best.safetensors -o resnet20.pt2",
    )
)
@click.argument("weights", type=EXISTING, metavar="RUN|WEIGHTS")
@click.option("-o", "--out", type=_FILE, required=True, metavar="FILE", help="The file to make.")
@click.option(
    "format_",
    "--format",
    type=click.Choice(["safetensors", "pt2", "onnx"]),
    help="Its format. [default: by its ending]",
)
@plugin_option
@json_option
@debug_option
def export(
    weights: Path,
    out: Path,
    format_: "FormatName | None",
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export trained weights to a file that other programs run.

    safetensors holds the tensors by torchvision's names, pt2 the program for torch.export.load,
    onnx a model with input `images` and output `logits`. All are fp32; pt2 and onnx take batches
    of any size.

    The network is exported as it is, so it has to be fed normalised images: pixels from 0 to 1,
    minus the mean, divided by the standard deviation. Both are in the file's metadata, with the
    classes, the preprocessing and the spec.

    The file is loaded again and computes random images; if its logits are not the network's, it
    is an error and nothing is written.
    """
    from resnet_builder.export import export as export_file
    from resnet_builder.trained import load_model

    trained = load_model(weights, plugins=plugins)
    record = _record(trained, export_file(trained, out, format=format_))
    if as_json:
        show_json(record)
    else:
        _show(record)


def _record(trained: "TrainedModel", report: "ExportReport") -> "ExportRecord":
    from resnet_builder.runs.answers import ExportRecord

    return ExportRecord(
        weights=str(trained.path),
        files=tuple(map(str, report.files)),
        format=report.format,
        bytes=report.size,
        image=report.image,
        input=report.input,
        preprocess=tuple(step.model_dump() for step in trained.header.preprocess),
        mean=trained.header.mean,
        std=trained.header.std,
        difference=report.difference,
    )


def _show(record: "ExportRecord") -> None:
    from resnet_builder.spec.dump import dump_value

    show(escaped(f"{' and '.join(record.files)}: {record.format}, {record.bytes:,} bytes"))
    within = f", to {record.difference:.1e} of the largest" if record.difference else " exactly"
    show(f"loaded again, it computes the network's logits{within}")
    show(f"input: {record.input}")
    if record.preprocess:
        show(f"preprocess: {dump_value(list(record.preprocess))}")
    for name, values in (("mean", record.mean), ("std", record.std)):
        if values is not None:
            show(f"{name}: {', '.join(f'{value:.6g}' for value in values)}")
