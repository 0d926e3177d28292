"""``resnet-build predict``: classes of images."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json, table
from resnet_builder.cli.options import (
    EXISTING,
    WEIGHTS,
    debug_option,
    device_for,
    json_option,
    plugin_option,
)
from resnet_builder.errors import DataError, counted, percent

if TYPE_CHECKING:
    from resnet_builder.prediction import ImagePrediction, Predictions


@click.command(
    epilog=examples(
        "resnet-build predict runs/resnet20-001 cat.jpg",
        "resnet-build predict best.safetensors photos/ --top 3 --json",
        "resnet-build predict best.safetensors photos/ -o photos.csv",
    )
)
@click.argument("weights", type=WEIGHTS, metavar="RUN|WEIGHTS")
@click.argument("images", nargs=-1, required=True, type=EXISTING, metavar="IMAGE...")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of classes for each image; where it may have several, all above 50 % are shown.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the probabilities of all classes to this new file, .csv or .json.",
)
@plugin_option
@json_option
@debug_option
def predict(
    weights: Path,
    images: tuple[Path, ...],
    top: int,
    out: Path | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict the classes of images, with their probabilities.

    Give a run, a file of weights, a folder that `publish` wrote, or hf-hub:USER/NAME, such a folder
    on the Hugging Face Hub. An IMAGE is a file, or a folder of them. An image of another size than
    the network was trained for is resized and cropped.
    """
    from resnet_builder import prediction
    from resnet_builder.cli.progress import display
    from resnet_builder.inference import load_model
    from resnet_builder.prediction_table import check_table_path

    if out is not None:
        check_table_path(out)
    trained = load_model(weights, plugins=plugins)
    for notice in trained.notices:
        note(notice)
    device = device_for(trained.spec)
    with display() as shown:
        result = prediction.predict(trained, images, top=top, device=device, report=shown.report)
    if out is not None:
        _write(result, out)
    if as_json:
        show_json(result)
    else:
        _show(result, out)
    for notice in result.notices:
        note(notice)
    broken = [one.error for one in result.images if one.error is not None]
    if broken:
        head = f"{len(broken)} of {len(result.images)} images cannot be read"
        raise DataError(head, *(f"  {line}" for line in broken))


def _write(result: "Predictions", out: Path) -> None:
    from resnet_builder.prediction_table import SEPARATOR, Cell, probability_columns, write_table

    def row(one: "ImagePrediction") -> list[Cell]:
        if one.probabilities is None:  # it cannot be read
            return [str(one.path), *(None for _ in columns[1:])]
        names = SEPARATOR.join(found.name for found in one.predictions)
        return [str(one.path), names, one.confidence, *one.probabilities.tolist()]

    columns = ("file", "prediction", "confidence", *probability_columns(result.classes))
    write_table(out, columns, map(row, result.images))


def _show(result: "Predictions", out: Path | None) -> None:
    rows = [
        (str(one.path) if rank == 0 else "", name, probability)
        for one in result.images
        if one.error is None
        for rank, (name, probability) in enumerate(_classes(one))
    ]
    if out is not None:
        show(f"wrote {out}: {counted(len(result.images), 'image')}")
    elif rows:
        show(*table(("image", "class", "probability"), rows, left=2))
    if greyed := sum(one.greyed for one in result.images):
        lost = "image lost its" if greyed == 1 else "images lost their"
        note(f"{greyed} {lost} colours: the network takes grey images")
    if fitted := sum(one.fitted for one in result.images):
        were = "was" if fitted == 1 else "were"
        note(
            f"{fitted} of {len(result.images)} images {were} resized and cropped to fit the network"
        )


def _classes(one: "ImagePrediction") -> list[tuple[str, str]]:
    """Classes of an image, which may have none where it may have several."""
    named = [(found.name, percent(found.probability)) for found in one.predictions]
    return named or [("none", "")]
