"""``resnet-build init``: a new spec, of a family's network or copied."""

import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import click

import resnet_builder
from resnet_builder.cli.console import examples, show
from resnet_builder.cli.options import SPEC, debug_option
from resnet_builder.errors import UsageError
from resnet_builder.spec.bundled import find_spec, is_path

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
@click.option("from_", "--from", type=SPEC, metavar="SPEC", help="Copy this spec instead.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write to this file; - prints.  [default: the spec's name]",
)
@debug_option
def init(
    family: str | None,
    depth: int | None,
    width: int | None,
    groups: int | None,
    width_per_group: int | None,
    dataset: str | None,
    shortcut: str | None,
    block: str | None,
    from_: str | None,
    out: str | None,
) -> None:
    """Write a new spec to begin with.

    The spec has a network of FAMILY and the recipe of its paper. Families: resnet, plain, preact,
    wrn, resnext, se_resnet. For the dataset image_folder, it has a depth and the recipe of
    ImageNet. Existing files are not overwritten.
    """
    wishes = {
        "depth": depth,
        "width": width,
        "groups": groups,
        "width_per_group": width_per_group,
        "dataset": dataset,
        "shortcut": shortcut,
        "block": block,
    }
    given = {key: value for key, value in wishes.items() if value is not None}
    if from_ is not None:
        if family is not None or given:
            raise UsageError("--from copies a spec as it is: leave out all but -o")
        _copy(from_, out)
    elif family is None or "depth" not in given:
        raise UsageError("name a family and its --depth, or a spec to copy with --from")
    else:
        _write_new(family, given, out)


def _write_new(family: str, given: Mapping[str, Any], out: str | None) -> None:
    """Write a spec of a family's network, with its counts.

    Raises:
        SpecError: A part is not registered, or does not go with the others.
        StorageError: The file cannot be written.
        UsageError: There is no such network, or there is such a file.
    """
    from resnet_builder.spec.families import Wish, default_name, new_spec
    from resnet_builder.spec.section import is_name

    wish = Wish(family, **given)
    name = default_name(wish)
    file = _target(out, f"{name}.yaml")
    flags = (f"--{key.replace('_', '-')} {value}" for key, value in given.items())
    header = [
        f"Train: resnet-build train {quote(str(file))}{' --data-dir DIR' * wish.is_large}",
        f"Written by: resnet-build init {family} {' '.join(flags)}",
    ]
    text = new_spec(
        wish,
        **_dataset_info(wish),
        name=file.stem if is_name(file.stem) else name,
        header=header,
        describe=_describe,
    )
    counts, line = _counts(text, str(file))
    text += f"{line}\n"
    if out == PRINTED:
        show(text.removesuffix("\n"))
        return
    _create(file, text)
    show(
        f"wrote {file}: {counts['parameters']:,} parameters, depth {counts['depth']}, "
        f"{counts['macs']:,} MACs"
    )


def _dataset_info(wish: Any) -> dict[str, Any]:
    """Classes of a wish's dataset, and pixels a side of its images.

    Raises:
        UsageError: There is no such dataset.
    """
    from resnet_builder.data.interfaces import DATASETS
    from resnet_builder.errors import RegistryError

    if wish.is_large:
        return {"num_classes": 1000, "image_size": 224}
    try:
        info = DATASETS.get(wish.dataset)().info
    except RegistryError as error:
        raise UsageError(f"{error}: one of {', '.join(error.allowed)}") from error
    return {"num_classes": info.num_classes, "image_size": info.image_size}


def _describe(key: str, name: str) -> str:
    """First line of a part's docstring."""
    from resnet_builder.parts import MODEL_PARTS

    registry = MODEL_PARTS[key]
    text = (registry.get(name).__doc__ or "") if name in registry else ""
    return text.partition("\n")[0].replace("``", "`")


def _counts(text: str, name: str) -> tuple[dict[str, int], str]:
    """Counts of a spec's network, and the line that expects them.

    Raises:
        SpecError: The spec has problems.
    """
    from resnet_builder.builder import check_source
    from resnet_builder.errors import SpecError
    from resnet_builder.spec.dump import dump_value
    from resnet_builder.spec.yaml_source import parse_plain

    checked = check_source(parse_plain(text, name), with_macs=True)
    if checked.problems:
        raise SpecError(checked.problems)
    return checked.counts, f"expect: {dump_value(checked.counts)}"


def _copy(source: str, out: str | None) -> None:
    """Copy a spec, with its comments.

    Raises:
        SpecError: There is no such spec, or it has problems.
        StorageError: A file cannot be read or written.
        UsageError: There is such a file, or the copy would lose the files that it names.
    """
    from resnet_builder.runs.files import storage_errors
    from resnet_builder.spec.dump import copied_spec, relative_names
    from resnet_builder.spec.load import load_spec
    from resnet_builder.spec.section import is_name
    from resnet_builder.spec.yaml_source import parse_plain

    spec, original = load_spec(source), find_spec(source)
    file = _target(out, original.name)
    with storage_errors("read", original):
        text = original.read_bytes().decode("utf-8-sig")
    is_moved = out != PRINTED and file.absolute().parent.resolve() != original.parent.resolve()
    if is_moved and (names := relative_names(parse_plain(text))):
        raise UsageError(
            f"{source} names '{names[0]}', relative to its folder: write the copy there, with -o"
        )
    version = "" if is_path(source) else f" of resnet-builder {resnet_builder.__version__}"
    keeps_name = out == PRINTED or not is_name(file.stem)
    text = copied_spec(
        text,
        origin=f"`{source}`{version}",
        name=spec.name if keeps_name else file.stem,
        source=source,
        target=quote(str(file)),
    )
    if out == PRINTED:
        show(text.removesuffix("\n"))
        return
    _create(file, text)
    show(f"wrote {file}, a copy of {source}")


def _target(out: str | None, default: str) -> Path:
    """File to write, or that would be written.

    Raises:
        UsageError: It is there already.
    """
    if out == PRINTED:
        return Path(default)
    file = Path(default if out is None else out)
    if os.path.lexists(file):
        raise UsageError(_taken(file))
    return file


def _taken(file: Path) -> str:
    return f"{file} exists already and is not overwritten: name another file with -o"


def _create(file: Path, text: str) -> None:
    """Write a file that is not there yet.

    Raises:
        StorageError: It cannot be written.
        UsageError: It has come to be there.
    """
    from resnet_builder.runs.files import storage_errors, write_atomically

    with storage_errors("write", file):
        try:
            file.open("xb").close()  # the name is ours
        except FileExistsError as error:
            raise UsageError(_taken(file)) from error
    try:
        write_atomically(file, [text.encode()])
    except BaseException:
        file.unlink(missing_ok=True)
        raise
