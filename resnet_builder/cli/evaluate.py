"""``resnet-build evaluate``: how trained weights do on a split."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, percent, show, show_json, table
from resnet_builder.cli.options import (
    EXISTING,
    Invocation,
    data_dir_option,
    debug_option,
    device_for,
    json_option,
    pass_invocation,
    plugin_option,
    skip_bad_option,
)

if TYPE_CHECKING:
    from resnet_builder.runs.answers import EvaluationRecord
    from resnet_builder.trained import TrainedModel
    from resnet_builder.training.evaluation import Metrics

MOST_COLUMNS = 20
"""A confusion matrix of more classes is not drawn."""


@click.command(
    epilog=examples(
        "resnet-build evaluate runs/resnet20_digits-001",
        "resnet-build evaluate best.safetensors --split val --json",
    )
)
@click.argument("weights", type=EXISTING, metavar="RUN|WEIGHTS")
@click.option(
    "--split",
    type=click.Choice(["test", "val", "train"]),
    default="test",
    show_default=True,
    help="The images.",
)
@data_dir_option
@skip_bad_option
@plugin_option
@json_option
@debug_option
@pass_invocation
def evaluate(
    invocation: Invocation,
    weights: Path,
    split: str,
    data_dir: Path | None,
    skip_bad: bool,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate trained weights on a split.

    The weights are those that a run selected, or a file's. Shown are top-1, top-5, the top-1 of
    each class, and what is mistaken for what.
    """
    from resnet_builder.cli.progress import display
    from resnet_builder.trained import load_model
    from resnet_builder.training.inference import evaluate_split, load_own_splits

    trained = load_model(weights, plugins=plugins)
    device = device_for(trained.spec, warn=note)
    with invocation.signals.polled() as stop, display() as shown:
        splits = load_own_splits(
            trained, data_dir=data_dir, skip_bad=skip_bad, stop=stop, report=shown.report
        )
        for notice in splits.notices:
            shown.say(notice)
        found = evaluate_split(trained, splits, split, device=device, stop=stop)
    record = _record(trained, splits.classes, split, found)
    if as_json:
        show_json(record)
    else:
        _show(record)


def _record(
    trained: "TrainedModel", classes: tuple[str, ...], split: str, found: "Metrics"
) -> "EvaluationRecord":
    from resnet_builder.runs.answers import EvaluationRecord

    return EvaluationRecord.model_validate(
        {
            "weights": str(trained.path),
            "split": split,
            "images": found.num_images,
            "metrics": found.named(split),
            "classes": trained.header.classes or classes,
            "top1_by_class": found.per_class,
            "confusion": found.confusion().tolist(),
        }
    )


def _show(record: "EvaluationRecord") -> None:
    metrics = record.metrics
    loss, top1, top5 = (metrics.get(f"{record.split}.{name}") for name in ("loss", "top1", "top5"))
    written = "not finite" if loss is None else f"{loss:.4f}"
    show(
        f"{record.split}, {record.images:,} images: top-1 {percent(top1)}, "
        f"top-5 {percent(top5)}, loss {written}\n"
    )
    pairs = zip(record.classes, record.top1_by_class, strict=True)
    show(table(("class", "top-1"), [(name, percent(top1)) for name, top1 in pairs]))
    if len(record.classes) > MOST_COLUMNS:
        return
    labels = [str(number) for number in range(len(record.classes))]
    rows = [
        (label if name == label else f"{label} {name}", *(str(n) if n else "." for n in counts))
        for name, label, counts in zip(record.classes, labels, record.confusion, strict=True)
    ]
    show("\nimages by class (row) and what they were taken for (column)")
    show(table(("", *labels), rows))
