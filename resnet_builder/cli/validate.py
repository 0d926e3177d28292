"""``resnet-build validate``: check specs without training them."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json
from resnet_builder.cli.options import (
    SPEC,
    debug_option,
    first_notices,
    ignore_memory_option,
    json_option,
    spec_options,
)
from resnet_builder.errors import ResnetBuilderError, SpecError, UsageError, render
from resnet_builder.spec.bundled import find_spec, is_path

if TYPE_CHECKING:
    from resnet_builder.model import ResNet
    from resnet_builder.runs.answers import ChangedCount, CheckRecord
    from resnet_builder.spec.schema import Spec
    from resnet_builder.training.resources import Estimate


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
@spec_options
@ignore_memory_option
@json_option
@debug_option
@click.pass_context
def validate(
    ctx: click.Context,
    specs: tuple[str, ...],
    expect: bool,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    ignore_memory_estimate: bool,
    as_json: bool,
) -> None:
    """Check specs in full, without training them.

    Values, parts, shapes and expected counts are checked, and whether training is expected to fit
    into this machine's memory; all problems of all specs are reported. Nothing is downloaded.
    """
    if expect and (overrides or fragments):
        raise UsageError("--expect writes what a file alone counts to: leave out --set and --with")
    records, codes = [], [0]
    for source in specs:
        try:
            changed = _renew(source, plugins) if expect else None
            limited = not ignore_memory_estimate
            record = _check(source, overrides, fragments, plugins, limited=limited)
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
    source: str,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    *,
    limited: bool,
) -> "CheckRecord":
    """Check one spec.

    Raises:
        ResourceError: Its training does not fit into memory, if that is ``limited``.
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
    """
    notices = first_notices(source, overrides=overrides, fragments=fragments)

    # Only now: what is no YAML is refused without torch.
    from resnet_builder.builder import check_source
    from resnet_builder.model import count_parameters
    from resnet_builder.runs.answers import CheckRecord

    checked = check_source(
        source,
        overrides=overrides,
        fragments=fragments,
        plugins=plugins,
        with_macs=True,
        with_weights=True,
    )
    if checked.spec is None:
        raise SpecError(checked.problems)
    assert checked.network is not None, "a spec without problems"
    assert checked.macs is not None, "they were asked for"
    estimate = _estimate(checked.spec, checked.network, limited=limited)
    return CheckRecord(
        source=source,
        name=checked.spec.name,
        parameters=count_parameters(checked.network),
        depth=checked.network.depth,
        macs=checked.macs,
        memory_bytes=None if estimate is None else estimate.memory,
        activation_bytes=None if estimate is None else estimate.activations,
        disk_bytes=None if estimate is None else estimate.disk,
        notices=notices,
    )


def _estimate(spec: "Spec", network: "ResNet", *, limited: bool) -> "Estimate | None":
    """Estimate what training a spec takes, if it can be trained.

    A device that is not here has room enough, and computes in what the CPU would.

    Raises:
        ResourceError: It does not fit into memory, if that is ``limited``.
    """
    if spec.data is None or spec.train is None:
        return None
    from resnet_builder.device import pick_device
    from resnet_builder.training.resources import check_memory, estimate_training
    from resnet_builder.training.runtime import pick_precision

    device, is_here = pick_device("cpu"), False
    with suppress(UsageError):
        device, is_here = pick_device(spec.run.device), True
    precision = pick_precision(spec.run.precision, device)
    estimate = estimate_training(spec, precision, network=network)
    if limited and is_here:
        check_memory(estimate, device)
    return estimate


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
    if record.memory_bytes is not None:
        show(f"{record.source}: {_needs(record)}")


def _needs(record: "CheckRecord") -> str:
    """Say what training takes."""
    from resnet_builder.training.resources import size_text

    sizes = (record.memory_bytes, record.activation_bytes, record.disk_bytes)
    memory, activations, disk = (size_text(size or 0) for size in sizes)
    return f"training takes about {memory} of memory ({activations} activations), {disk} of disk"
