"""``resnet-build init``: a new spec to begin with."""

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
@click.option("--width", type=_COUNT, metavar="K", help="Of wrn: how many times as wide.")
@click.option("--groups", type=_COUNT, metavar="G", help="Of resnext: groups of a block.")
@click.option(
    "--width-per-group", type=_COUNT, metavar="W", help="Of resnext: channels of a group."
)
@click.option("--dataset", metavar="NAME", help="What it is trained on.  [default: cifar10]")
@click.option("--shortcut", metavar="NAME", help="Another than the paper's.")
@click.option(
    "--block",
    type=click.Choice(["basic", "bottleneck"]),
    help="Of preact, where both can make the depth.",
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

    It has a network of a FAMILY, and its paper's recipe. Families: resnet, plain, preact, wrn,
    resnext, se_resnet. On image_folder they have ImageNet's depths and recipe. No file is
    overwritten.
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
    elif family is None or depth is None:
        raise UsageError("say what to begin with: a family and its --depth, or --from a spec")
    else:
        _write_new(family, given, out)


def _write_new(family: str, given: Mapping[str, Any], out: str | None) -> None:
    """Write a spec of a family's network, with what it counts to.

    Raises:
        SpecError: A part is not registered, or does not go with the others.
        StorageError: The file cannot be written.
        UsageError: There is no such network, or there is such a file.
    """
    from resnet_builder.expectations import measure
    from resnet_builder.families import Wish, default_name, new_spec
    from resnet_builder.spec.expectations import expected
    from resnet_builder.spec.plain import plain
    from resnet_builder.spec.reading import checked
    from resnet_builder.spec.tree import parse_yaml

    wish = Wish(family, **given)
    name = default_name(wish)
    file = _target(out, f"{name}.yaml")
    flags = (f"--{key.replace('_', '-')} {value}" for key, value in given.items())
    header = [
        f"Train: resnet-build train {quote(str(file))}{' --data-dir DIR' * wish.is_large}",
        f"Written by: resnet-build init {family} {' '.join(flags)}",
    ]
    text = new_spec(wish, name=_name(file, name), header=header)
    counts = measure(plain(parse_yaml(checked(text, str(file))).root))
    text, _ = expected(text, counts)
    if out == PRINTED:
        show(text.removesuffix("\n"))
        return
    _create(file, text)
    show(
        f"wrote {file}: {counts['parameters']:,} parameters, depth {counts['depth']}, "
        f"{counts['macs']:,} MACs"
    )


def _copy(source: str, out: str | None) -> None:
    """Copy a spec, with its comments.

    Raises:
        SpecError: There is no such spec, or something is wrong with it.
        StorageError: A file cannot be read or written.
        UsageError: There is such a file, or the copy would lose what it names.
    """
    from resnet_builder.runs.files import storage_errors
    from resnet_builder.spec.copying import copied_spec
    from resnet_builder.spec.load import load_spec

    spec, original = load_spec(source), find_spec(source)
    file = _target(out, original.name)
    if out != PRINTED and file.absolute().parent.resolve() != original.parent.resolve():
        _refuse_relative_names(source, original)
    with storage_errors("read", original):
        text = original.read_bytes().decode()
    is_bundled = not is_path(source)
    version = f" of resnet-builder {resnet_builder.__version__}" if is_bundled else ""
    text = copied_spec(
        text,
        origin=f"`{source}`{version}",
        name=spec.name if out == PRINTED else _name(file, spec.name),
        source=source,
        target=quote(str(file)),
    )
    if out == PRINTED:
        show(text.removesuffix("\n"))
        return
    _create(file, text)
    show(f"wrote {file}, a copy of {source}")


def _refuse_relative_names(source: str, original: Path) -> None:
    """Refuse to take a spec away from files that it names.

    Raises:
        UsageError: It names some.
    """
    from resnet_builder.spec.copying import relative_names
    from resnet_builder.spec.plain import plain
    from resnet_builder.spec.reading import read_yaml

    names = relative_names(plain(read_yaml(original).root))
    if names:
        raise UsageError(
            f"{source} names '{names[0]}', which counts from its own folder: copy it there, by -o"
        )


def _target(out: str | None, default: str) -> Path:
    """Return the file to write, or that would be written.

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
    return f"{file} is there already, and is not overwritten: name another file by -o"


def _name(file: Path, default: str) -> str:
    """Return what a spec in a file is called: like the file, if it can be."""
    from resnet_builder.spec.section import is_name

    return file.stem if is_name(file.stem) else default


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
