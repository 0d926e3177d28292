"""``resnet-build import``: conversion of other programs' checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json, table
from resnet_builder.cli.options import (
    SPEC,
    WEIGHTS,
    debug_option,
    json_option,
    read_spec,
    spec_options,
)

if TYPE_CHECKING:
    from resnet_builder.importing import ImportReport

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "import",
    epilog=examples(
        "resnet-build import resnet20-12fca82f.th --spec resnet20 -o akamaster20.safetensors",
        "resnet-build import resnet50.pth --spec my_flowers.yaml --new-head -o start.safetensors",
        "resnet-build import hf-hub:timm/resnet50.a1_in1k --spec resnet50 -o r50.safetensors",
        "resnet-build import d.pth --spec resnet50d --preprocess timm:resnet50d -o d.safetensors",
    ),
)
@click.argument("checkpoint", type=WEIGHTS, metavar="CHECKPOINT")
@click.option(
    "--spec", type=SPEC, required=True, metavar="SPEC", help="Spec of the checkpoint's network."
)
@click.option(
    "-o", "--out", type=_FILE, required=True, metavar="FILE", help="File of weights to write."
)
@click.option(
    "--new-head",
    is_flag=True,
    help="Initialise a new head, for classes other than the checkpoint's.",
)
@click.option(
    "--ema", is_flag=True, help="Take the averaged (EMA) weights instead of the trained ones."
)
@click.option(
    "--adapt-channels",
    is_flag=True,
    help="Adapt the first convolution to images of another number of channels.",
)
@click.option(
    "--preprocess",
    metavar="PRESET",
    help="Preprocessing that the weights were made for: "
    "torchvision:ResNet50_Weights.IMAGENET1K_V2 or timm:resnet50d.ra2_in1k or the like, a "
    "config.json of timm, or `spec`. [default: what is known of the file]",
)
@click.option("--allow-missing", is_flag=True, help="Initialise tensors that the checkpoint lacks.")
@click.option(
    "--allow-unexpected", is_flag=True, help="Leave out tensors that the network has no place for."
)
@spec_options
@json_option
@debug_option
def import_(
    checkpoint: Path,
    spec: str,
    out: Path,
    new_head: bool,
    ema: bool,
    adapt_channels: bool,
    preprocess: str | None,
    allow_missing: bool,
    allow_unexpected: bool,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert another program's checkpoint to a file of weights.

    The checkpoint may have the tensor names of torchvision, timm, mmpretrain, pycls or the
    well-known CIFAR repositories. What a training script saved beside the weights is ignored.
    Every tensor needs a place in the spec's network. hf-hub:USER/NAME[@REVISION] names a repository
    of the Hugging Face Hub.

    The tensors do not say how images are prepared. timm's config.json beside the file says it, and
    files that torchvision publishes are recognised; otherwise --preprocess says it, or the spec:
    --set data.normalize='{mean: [...], std: [...]}'. `predict` needs it.
    """
    from resnet_builder.importing import import_weights

    resolved = read_spec(spec, overrides=overrides, fragments=fragments, plugins=plugins)
    report = import_weights(
        checkpoint,
        resolved,
        out,
        new_head=new_head,
        ema=ema,
        adapt_channels=adapt_channels,
        preprocess=preprocess,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
    )
    if as_json:
        show_json(report)
    else:
        _show(report)
    if report.converted:
        note(f"weights of type {', '.join(report.converted)} became float32")
    if report.has_other and not ema:
        note("the checkpoint has averaged weights too, which --ema takes")
    for notice in report.notices:
        note(notice)


def _show(report: "ImportReport") -> None:
    wrapped = f", in {' '.join(report.wrappers)}" if report.wrappers else ""
    show(f"{report.checkpoint}: {report.layout}'s names{wrapped}", "")
    show(*table(("", "tensors", ""), _rows(report), left=3))
    show("", *_preprocessing(report), f"wrote {report.weights}")


def _preprocessing(report: "ImportReport") -> Iterator[str]:
    """Yield lines on what the file says of images, if it is known from elsewhere than the spec."""
    from resnet_builder.spec.dump import dump_value

    if report.preset is None:
        return
    yield f"images are prepared as for {report.preset}:"
    steps = [step.model_dump(exclude_defaults=True) for step in report.preprocess]
    yield f"  preprocess: {dump_value(steps)}"
    for name, values in (("mean", report.mean), ("std", report.std)):
        if values is not None:
            yield f"  {name}: {', '.join(f'{value:.6g}' for value in values)}"
    yield f"  image: {' x '.join(map(str, report.image))}"
    if report.num_named_classes:
        yield f"  classes: the names of {report.num_named_classes:,} are known"
    yield ""


def _rows(report: "ImportReport") -> Iterator[tuple[str, str, str]]:
    """Yield a row for each outcome: its name, the number of tensors, and the first of them."""
    renamed = [f"{theirs} is {ours}" for theirs, ours in report.renamed.items()]
    folded = [f"{bias} in {mean}" for bias, mean in report.folded.items()]
    for outcome, names in (
        ("matched", report.matched),
        ("renamed", renamed),
        ("reshaped", report.reshaped),
        ("adapted", report.adapted),
        ("folded", folded),
        ("fresh", report.fresh),
        ("uncounted", report.uncounted),
        ("missing", report.missing),
        ("unexpected", report.unexpected),
    ):
        if names:
            yield outcome, f"{len(names):,}", names[0] + (", ..." if len(names) > 1 else "")
