"""``resnet-build evaluate``: metrics of trained weights on a split."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json, table
from resnet_builder.cli.options import (
    WEIGHTS,
    data_dir_option,
    data_option,
    debug_option,
    device_for,
    json_option,
    plugin_option,
    skip_bad_option,
)
from resnet_builder.errors import counted, percent

if TYPE_CHECKING:
    from resnet_builder.inference import SplitEvaluation
    from resnet_builder.runs.records import ClassScores

_FILE = click.Path(dir_okay=False, path_type=Path)
_RARE = 3
"""How many times as many images the commonest class has as one that is called rare."""

_MAX_CLASSES = 20
"""Classes of the largest confusion matrix that is printed."""


@click.command(
    epilog=examples(
        "resnet-build evaluate runs/resnet20_digits-001",
        "resnet-build evaluate best.safetensors --split val --json",
        "resnet-build evaluate runs/resnet20_digits-001 -o predictions.csv",
        "resnet-build evaluate runs/pets-001 --data more_pets",
    )
)
@click.argument("weights", type=WEIGHTS, metavar="RUN|WEIGHTS")
@click.option(
    "--split",
    type=click.Choice(["test", "val", "train"]),
    help="Images to evaluate on. [default: test; val where the dataset has no test images]",
)
@data_option
@data_dir_option
@skip_bad_option
@click.option(
    "-o",
    "--out",
    type=_FILE,
    metavar="FILE",
    help="Table to write, .csv or .json: the prediction for each image.",
)
@plugin_option
@json_option
@debug_option
def evaluate(
    weights: Path,
    split: str | None,
    data: Path | None,
    data_dir: Path | None,
    skip_bad: bool,
    out: Path | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate trained weights on a split.

    Give a run, whose best weights are taken, a file of weights, a folder that `publish` wrote, or
    hf-hub:USER/NAME, such a folder on the Hugging Face Hub. The output has loss, top-1,
    top-5, precision, recall and F1 of each class, and the confusion matrix.

    The images are those of the weights' own dataset, or those of --data, which needs nothing but
    the split: a folder with `test/`, or a folder of classes, whose images are test images then.
    Classes are matched by name.
    """
    from resnet_builder.cli.progress import display
    from resnet_builder.data.class_folders import shorten
    from resnet_builder.inference import evaluate_split, load_model, load_split
    from resnet_builder.prediction_table import check_table_path

    if out is not None:
        check_table_path(out)
    trained = load_model(weights, plugins=plugins)
    for notice in trained.notices:
        note(notice)
    device = device_for(trained.spec)
    with display() as shown:
        images = load_split(
            trained,
            split,
            data=data,
            data_dir=data_dir,
            skip_bad=skip_bad,
            report=shown.report,
        )
        for notice in images.notices:
            shown.say(notice)
        result = evaluate_split(trained, images, device=device, table=out)
    if as_json:
        show_json(result)
    else:
        _show(result)
        if unseen := _never_predicted(result):
            note(
                f"no image is predicted as {shorten(unseen)}; for rare classes there are "
                "train.loss.class_weights, data.sampler and train.monitor"
            )
    if out is not None:
        note(f"wrote {out}: {counted(result.images, 'image')}")


def _show(result: "SplitEvaluation") -> None:
    metrics = result.metrics
    loss, top1, top5 = (metrics.get(f"{result.split}.{name}") for name in ("loss", "top1", "top5"))
    written = "not finite" if loss is None else f"{loss:.4f}"
    top = f"top-1 {percent(top1)}" + ("" if top5 is None else f", top-5 {percent(top5)}")
    if (mean := metrics.get(f"{result.split}.map")) is not None:
        top = f"mAP {percent(mean)}, all labels right {percent(top1)}"
    show(f"{result.split}, {counted(result.images, 'image')}: {top}, loss {written}", "")
    scores = [*result.by_class.items(), ("macro", result.macro), ("weighted", result.weighted)]
    if result.micro is not None:
        scores.append(("micro", result.micro))
    show(*table(("class", "images", "precision", "recall", "F1"), [_row(*one) for one in scores]))
    if result.confusion is None or len(result.classes) > _MAX_CLASSES:
        return
    labels = [str(number) for number in range(len(result.classes))]
    rows = [
        (label if name == label else f"{label} {name}", *(str(n) if n else "." for n in counts))
        for name, label, counts in zip(result.classes, labels, result.confusion, strict=True)
    ]
    show("", "images by class (row) and predicted class (column)")
    show(*table(("", *labels), rows))


def _never_predicted(result: "SplitEvaluation") -> list[str]:
    """Names of the classes that no image is predicted as, if they have far fewer than another."""
    if result.confusion is None:
        return []
    most = max(map(sum, result.confusion))
    counts = zip(result.classes, result.confusion, zip(*result.confusion, strict=True), strict=True)
    return [
        name
        for name, images, predicted in counts
        if not sum(predicted) and 0 < _RARE * sum(images) <= most
    ]


def _row(name: str, scores: "ClassScores") -> tuple[str, ...]:
    images = f"{scores.images:,}" if scores.images else "no images"
    return name, images, percent(scores.precision), percent(scores.recall), percent(scores.f1)
