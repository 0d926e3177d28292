"""``resnet-build predict``: what pictures show."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, percent, show, show_json, table
from resnet_builder.cli.options import (
    EXISTING,
    Invocation,
    debug_option,
    device_for,
    json_option,
    pass_invocation,
    plugin_option,
)
from resnet_builder.errors import DataError

if TYPE_CHECKING:
    from resnet_builder.runs.answers import PredictionRecord
    from resnet_builder.training.inference import Prediction


@click.command(
    epilog=examples(
        "resnet-build predict runs/resnet20-001 cat.jpg",
        "resnet-build predict best.safetensors photos/ --top 3 --json",
    )
)
@click.argument("weights", type=EXISTING, metavar="RUN|WEIGHTS")
@click.argument("pictures", nargs=-1, required=True, type=EXISTING, metavar="PICTURE...")
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Answers for each."
)
@plugin_option
@json_option
@debug_option
@pass_invocation
def predict(
    invocation: Invocation,
    weights: Path,
    pictures: tuple[Path, ...],
    top: int,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what pictures show, and how surely.

    A PICTURE is a file, or a folder of them. One of another size than the network was trained for
    is resized and cropped.
    """
    from resnet_builder.cli.progress import display
    from resnet_builder.trained import load_model
    from resnet_builder.training import inference

    trained = load_model(weights, plugins=plugins)
    device = device_for(trained.spec, warn=note)
    with invocation.signals.polled() as stop, display() as shown:
        paths = inference.find_pictures(pictures, stop=stop)
        found = list(
            inference.predict(
                trained, paths, top=top, device=device, stop=stop, report=shown.report
            )
        )
    if as_json:
        show_json(_record(trained.path, found))
    else:
        _show(found)
    _raise_broken(found)


def _record(weights: Path, found: "list[Prediction]") -> "PredictionRecord":
    from resnet_builder.runs.answers import Answer, PictureRecord, PredictionRecord

    pictures = tuple(
        PictureRecord(
            path=str(one.path),
            answers=tuple(Answer(name=name, probability=p) for name, p in one.answers),
            fitted=one.fitted,
            error=one.error,
        )
        for one in found
    )
    return PredictionRecord(weights=str(weights), pictures=pictures)


def _show(found: "list[Prediction]") -> None:
    rows = [
        (str(one.path) if rank == 0 else "", name, percent(probability))
        for one in found
        for rank, (name, probability) in enumerate(one.answers)
    ]
    if rows:
        show(table(("picture", "class", "probability"), rows, left=2))
    if fitted := sum(one.fitted for one in found):
        note(f"{fitted} of {len(found)} pictures were resized and cropped to fit the network")


def _raise_broken(found: "list[Prediction]") -> None:
    """Raise an error if pictures could not be read.

    Raises:
        DataError: Naming them.
    """
    broken = [one.error for one in found if one.error is not None]
    if broken:
        head = f"{len(broken)} of {len(found)} pictures cannot be read"
        raise DataError("\n  ".join([head, *broken]))
