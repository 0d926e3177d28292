"""``resnet-build validate``: check specs without training them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.messages import examples, note, show, show_json
from resnet_builder.cli.options import SPEC, debug_option, json_option, layer_options
from resnet_builder.errors import ResnetBuilderError, SpecError, UsageError
from resnet_builder.problems import render
from resnet_builder.spec.bundled import find_spec, is_path

if TYPE_CHECKING:
    from resnet_builder.runs.answers import ChangedCount, CheckRecord


@click.command(
    epilog=examples(
        "resnet-build validate my_net.yaml",
        "resnet-build validate specs/*.yaml",
        "resnet-build validate resnet56 --set model.shortcut=projection",
        "resnet-build validate --expect my_net.yaml",
    )
)
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@click.option(
    "--expect", is_flag=True, help="Write what the networks count to into the files' `expect`."
)
@layer_options
@json_option
@debug_option
@click.pass_context
def validate(
    ctx: click.Context,
    specs: tuple[str, ...],
    expect: bool,
    overrides: tuple[str, ...],
    with_: tuple[str, ...],
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check specs in full, without training them.

    Values, parts, shapes and expected counts are checked, and all problems of all specs reported.
    Nothing is downloaded.
    """
    if expect and (overrides or with_):
        raise UsageError("--expect writes what a file alone counts to: leave out --set and --with")
    records, codes = [], [0]
    for source in specs:
        try:
            changed = _renew(source, plugins) if expect else None
            record = _check(source, overrides, with_, plugins)
            record = record.model_copy(update={"changed": changed})
        except ResnetBuilderError as error:
            record = _failed(source, error)
            codes.append(error.exit_code)
            if not as_json:
                note(render(error.errors) if isinstance(error, SpecError) else f"error: {error}")
        else:
            if not as_json:
                _show(record)
        records.append(record)
    if as_json:
        from resnet_builder.runs.answers import ValidationRecord

        show_json(ValidationRecord(specs=tuple(records)))
    ctx.exit(max(codes))


def _check(
    source: str, overrides: tuple[str, ...], with_: tuple[str, ...], plugins: tuple[str, ...]
) -> "CheckRecord":
    """Check one spec.

    Raises:
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
    """
    from resnet_builder.spec.loading import read_draft

    notices = read_draft(source, overrides=overrides, with_=with_).notices

    # Only now: what is no YAML is refused without torch.
    from resnet_builder.builder import check_source
    from resnet_builder.model import count_parameters
    from resnet_builder.runs.answers import CheckRecord

    checked = check_source(
        source,
        overrides=overrides,
        with_=with_,
        plugins=plugins,
        with_macs=True,
        with_weights=True,
    )
    if checked.spec is None:
        raise SpecError(checked.problems)
    assert checked.network is not None, "a spec without problems"
    assert checked.macs is not None, "they were asked for"
    return CheckRecord(
        source=source,
        name=checked.spec.name,
        parameters=count_parameters(checked.network),
        depth=checked.network.depth,
        macs=checked.macs,
        notices=notices,
    )


def _renew(source: str, plugins: tuple[str, ...]) -> "tuple[ChangedCount, ...]":
    """Write what a spec's network counts to into its file.

    Raises:
        SpecError: What is wrong with the spec, but for what it expects.
        StorageError: The file cannot be read or written.
        UsageError: It is bundled, or laid out so that nothing can be added to it.
    """
    if not is_path(source):
        find_spec(source)
        raise UsageError(
            f"{source} comes with the program and is not changed: `resnet-build init --from "
            f"{source}` makes a copy of your own"
        )
    from resnet_builder.expectations import renew_expectations
    from resnet_builder.runs.answers import ChangedCount

    changes = renew_expectations(Path(source), plugins=plugins)
    return tuple(ChangedCount.model_validate(change) for change in changes)


def _failed(source: str, error: ResnetBuilderError) -> "CheckRecord":
    from resnet_builder.runs.answers import CheckRecord, ProblemRecord

    if not isinstance(error, SpecError):
        return CheckRecord(source=source, error=str(error))
    problems = tuple(ProblemRecord.model_validate(problem) for problem in error.errors)
    return CheckRecord(source=source, problems=problems)


def _show(record: "CheckRecord") -> None:
    for notice in record.notices:
        note(f"{record.source}: {notice}")
    for count in record.changed or ():
        before = "none" if count.before is None else f"{count.before:,}"
        show(f"{record.source}: expect.{count.key}: {before} -> {count.after:,}")
    show(
        f"{record.source}: {record.parameters:,} parameters, depth {record.depth}, "
        f"{record.macs:,} MACs"
    )
