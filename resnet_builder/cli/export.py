"""``resnet-build export``: files of trained weights for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json
from resnet_builder.cli.options import WEIGHTS, debug_option, json_option, plugin_option

if TYPE_CHECKING:
    from resnet_builder.export import ExportReport

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    epilog=examples(
        "resnet-build export runs/resnet20-001 -o resnet20.onnx",
        "resnet-build export best.safetensors -o resnet20.pt2",
        "resnet-build export best.safetensors -o app.onnx --normalize --softmax --opset 20",
    )
)
@click.argument("weights", type=WEIGHTS, metavar="RUN|WEIGHTS")
@click.option("-o", "--out", type=_FILE, required=True, metavar="FILE", help="File to write.")
@click.option(
    "format_",
    "--format",
    type=click.Choice(["safetensors", "pt2", "onnx"]),
    help="Format of the file. [default: by its suffix]",
)
@click.option(
    "--normalize",
    is_flag=True,
    help="Let the file normalise: it takes uint8 pixels from 0 to 255.",
)
@click.option(
    "--softmax",
    is_flag=True,
    help="Let the file give probabilities, not logits: of several labels, each by a sigmoid.",
)
@click.option(
    "--dynamic",
    default="batch",
    metavar="DIMENSIONS",
    show_default=True,
    help="Free dimensions of the input: batch, height, width, divided by commas; or none.",
)
@click.option(
    "--opset",
    type=click.IntRange(min=1),
    metavar="N",
    help="Version of ONNX's operators. [default: torch's]",
)
@plugin_option
@json_option
@debug_option
def export(
    weights: Path,
    out: Path,
    format_: str | None,
    normalize: bool,
    softmax: bool,
    dynamic: str,
    opset: int | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export trained weights to a file that other programs run.

    safetensors holds the tensors by torchvision's names, pt2 the program for torch.export.load,
    onnx a model with input `images` and output `logits`. All are fp32; pt2 and onnx take batches
    of any size, and with --dynamic images of any size.

    By default the network is exported as it is, so its input is normalised images: pixels from 0
    to 1, minus the mean, divided by the standard deviation. Both are in the file's metadata, with
    the classes, the preprocessing and the spec. With --normalize, the input is pixels as they are
    in image files.

    The file is loaded again and compared with the network on random images. If the logits differ,
    the command fails and writes nothing.
    """
    from resnet_builder.export import export as export_file
    from resnet_builder.inference import load_model

    trained = load_model(weights, plugins=plugins)
    for notice in trained.notices:
        note(notice)
    report = export_file(
        trained,
        out,
        format=format_,
        normalize=normalize,
        softmax=softmax,
        dynamic=[] if dynamic == "none" else [name.strip() for name in dynamic.split(",")],
        opset=opset,
    )
    if as_json:
        show_json(report)
    else:
        _show(report)


def _show(report: "ExportReport") -> None:
    from resnet_builder.spec.dump import dump_value

    show(f"{' and '.join(map(str, report.files))}: {report.format}, {report.bytes:,} bytes")
    within = f", to {report.difference:.1e} of the largest" if report.difference else " exactly"
    show(f"loaded again, it computes the network's {report.output}{within}")
    show(f"input: {report.input}")
    if report.output != "logits":
        show(f"output: {report.output}")
    steps = [step.model_dump(exclude_defaults=True) for step in report.preprocess]
    if steps:
        show(f"preprocess: {dump_value(steps)}")
    for name, values in (("mean", report.mean), ("std", report.std)):
        if values is not None:
            show(f"{name}: {', '.join(f'{value:.6g}' for value in values)}")
