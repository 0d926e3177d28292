"""``resnet-build init``: a new spec, of a family's network or copied."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click

import resnet_builder
from resnet_builder.cli.console import examples, show
from resnet_builder.cli.options import SPEC, debug_option, write_new
from resnet_builder.errors import UsageError, printable
from resnet_builder.spec.bundled import bundled_file, bundled_names, find_spec

PRINTED = "-"

_COUNT = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "resnet-build init resnet --depth 32",
        "resnet-build init wrn --depth 28 --width 10 --dataset cifar100",
        "resnet-build init resnext --depth 29 --groups 8 --width-per-group 64 -o my_net.yaml",
        "resnet-build init --from resnet56 -o my_net.yaml",
    )
)
@click.argument("family", required=False)
@click.option("--depth", type=_COUNT, metavar="N", help="Layers, as the family's paper counts.")
@click.option("--width", type=_COUNT, metavar="K", help="Width multiplier, for wrn.")
@click.option("--groups", type=_COUNT, metavar="G", help="Groups of a block, for resnext.")
@click.option(
    "--width-per-group", type=_COUNT, metavar="W", help="Channels of a group, for resnext."
)
@click.option("--dataset", metavar="NAME", help="Dataset to train on.  [default: cifar10]")
@click.option("--shortcut", metavar="NAME", help="Shortcut, instead of the paper's.")
@click.option(
    "--block",
    type=click.Choice(["basic", "bottleneck"]),
    help="Block of a preact network, if both fit the depth.",
)
@click.option("from_", "--from", type=SPEC, metavar="NAME", help="Copy this bundled spec instead.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write to this file; - prints.  [default: the spec's name]",
)
@debug_option
def init(family: str | None, from_: str | None, out: str | None, **options: Any) -> None:
    """Write a new spec to begin with.

    The spec has a network of FAMILY and the recipe of its paper. Families: resnet, plain, preact,
    wrn, resnext, seresnet. For the dataset image_folder, it has a depth and the recipe of
    ImageNet. Existing files are not overwritten.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if from_ is not None:
        if family is not None or given:
            raise UsageError("--from copies a spec as it is: leave out all but -o")
        _copy(from_, out)
    elif family is None or "depth" not in given:
        raise UsageError("name a family and its --depth, or a spec to copy with --from")
    else:
        _write_new_spec(family, given, out)


def _write_new_spec(family: str, given: Mapping[str, Any], out: str | None) -> None:
    """Write a spec of a family's network, with its counts.

    Raises:
        SpecError: A part is not registered, or does not go with the others.
        StorageError: The file cannot be written.
        UsageError: There is no such network, or there is such a file.
    """
    from resnet_builder.builder import check_source
    from resnet_builder.data.datasets import image_sizes
    from resnet_builder.errors import SpecError
    from resnet_builder.spec.dump import dump_value
    from resnet_builder.spec.families import Wish, new_spec
    from resnet_builder.spec.section import is_name
    from resnet_builder.spec.yaml_source import parse_plain

    wish = Wish(family, **given)
    file = Path(out if out not in {None, PRINTED} else f"{wish.name}.yaml")
    command = f"resnet-build train {printable(quote(str(file)))}{' --data-dir DIR' * wish.is_large}"
    flags = (f"--{key.replace('_', '-')} {value}" for key, value in given.items())
    text = new_spec(
        wish,
        **image_sizes(wish.dataset),
        name=file.stem if is_name(file.stem) else wish.name,
        header=[
            f"Train: {command}",
            f"Written by: resnet-build init {family} {' '.join(flags)}",
        ],
    )
    checked = check_source(parse_plain(text, str(file)), with_forward=True)
    if checked.problems:
        raise SpecError(checked.problems)
    text += f"expect: {dump_value(checked.counts)}\n"
    if out == PRINTED:
        show(*text.removesuffix("\n").split("\n"))
        return
    write_new(file, text)
    parameters, depth, macs = checked.counts.values()
    # Only the paper of wide networks counts so.
    other_count = (
        f" ({wish.depth} in the paper, which counts the convolutions of shortcuts and not the "
        "classifier)"
    )
    theirs = "" if depth == wish.depth else other_count
    show(f"wrote {file}: {parameters:,} parameters, depth {depth}{theirs}, {macs:,} MACs")


def _copy(name: str, out: str | None) -> None:
    """Copy a bundled spec, with its comments, under the name of its new file.

    Raises:
        SpecError: No bundled spec has this name.
        StorageError: The file cannot be written.
        UsageError: It is no bundled spec, or there is such a file.
    """
    from resnet_builder.spec.dump import dump_value
    from resnet_builder.spec.section import is_name

    if name not in bundled_names():
        raise UsageError(f"--from copies bundled specs, and {find_spec(name)} is a file: copy it")
    file = Path(out if out not in {None, PRINTED} else f"{name}.yaml")
    new_name = dump_value(file.stem) if is_name(file.stem) else name
    text = bundled_file(name).read_text(encoding="utf-8")
    text = text.replace(f"\nname: {name}\n", f"\nname: {new_name}\n")
    text = text.replace(
        f"resnet-build train {name}\n", f"resnet-build train {printable(quote(str(file)))}\n"
    )
    text = f"# Copied from `{name}` of resnet-builder {resnet_builder.__version__}.\n{text}"
    if out == PRINTED:
        show(*text.removesuffix("\n").split("\n"))
        return
    write_new(file, text)
    show(f"wrote {file}, a copy of {name}")
