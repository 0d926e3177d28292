"""``resnet-build validate``: check specs without training them."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_builder.cli.console import examples, note, show, show_error, show_json
from resnet_builder.cli.options import (
    SPEC,
    data_dir_option,
    data_option,
    debug_option,
    json_option,
    training_options,
)
from resnet_builder.errors import (
    MissingDataError,
    Problem,
    ResnetBuilderError,
    SpecError,
    UsageError,
    counted,
)

if TYPE_CHECKING:
    from resnet_builder.model import ResNet
    from resnet_builder.spec.load import Draft
    from resnet_builder.spec.schema import Spec


@dataclass(slots=True)
class SpecCheck:
    """A spec that was checked.

    Attributes:
        source: Name that the user gave.
        name: Name of the spec; ``None``, like the counts below, if it has problems.
        parameters: Learnt parameters.
        depth: Depth, as in the names of He et al. 2015.
        macs: Multiply-adds for one image.
        memory_bytes: Estimate of the memory of training; ``None``, like the two below, if there is
            no recipe.
        activation_bytes: Part of it that is kept for the backward pass.
        disk_bytes: Largest size of a run on the disk.
        problems: Problems, in file order.
        notices: Notices for the user.
        error: Reason why the spec cannot be read at all.
        runs: Number of runs of a sweep, or of trials of a search; ``None`` of a spec.
        expect: Line to paste into the spec, if its ``expect`` lacks a count or has a wrong one.
    """

    source: str
    name: str | None = None
    parameters: int | None = None
    depth: int | None = None
    macs: int | None = None
    memory_bytes: int | None = None
    activation_bytes: int | None = None
    disk_bytes: int | None = None
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    error: str | None = None
    runs: int | None = None
    expect: str | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """Every spec that was checked, in the order given."""

    specs: tuple[SpecCheck, ...]


@click.command(
    epilog=examples(
        "resnet-build validate my_net.yaml",
        "resnet-build validate specs/*.yaml",
        "resnet-build validate resnet56 --set model.shortcut=projection",
    )
)
@click.argument("specs", nargs=-1, required=True, type=SPEC, metavar="SPEC...")
@training_options
@data_option
@data_dir_option
@click.option(
    "--nproc",
    type=click.IntRange(1, 1_024),
    default=1,
    metavar="N",
    help="Check for a training with N processes, which divide every batch.",
)
@json_option
@debug_option
@click.pass_context
def validate(
    ctx: click.Context,
    specs: tuple[str, ...],
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    data_dir: Path | None,
    nproc: int,
    as_json: bool,
) -> None:
    """Check specs and sweep files in full, without training them.

    Values, parts, shapes and expected counts are checked, and all problems of all specs are
    reported; of a sweep file, those of all trials. A training step is tried, without memory for it.
    If the data are there, their classes and their number are checked too. A warning is shown where
    training may not fit into this machine's memory. For a spec without counts, or with wrong ones,
    the right `expect` line is printed. Nothing is downloaded.
    """
    from resnet_builder.launch.sweep_file import is_sweep
    from resnet_builder.spec.bundled import is_path
    from resnet_builder.spec.load import read_draft

    # Nothing here outlives the command, so looking for garbage would only cost time: torch makes
    # half a million objects when a network first runs on meta.
    gc.set_threshold(1_000_000)
    checks, codes = [], [0]
    for source in specs:
        check = SpecCheck(source)
        try:
            if is_path(source) and is_sweep(Path(source)):
                laid = {"overrides": overrides, "fragments": fragments, "data": data}
                check.runs = _check_sweep(Path(source), laid, plugins, data_dir, nproc)
            else:
                draft = read_draft(source, overrides=overrides, fragments=fragments, data=data)
                _check(check, draft, plugins, data_dir, nproc)
        except SpecError as error:
            check.problems = error.errors
            codes.append(error.exit_code)
        except ResnetBuilderError as error:
            check.error = str(error)
            codes.append(error.exit_code)
        if not as_json:
            _show(check)
        checks.append(check)
    if as_json:
        show_json(Validation(tuple(checks)))
    ctx.exit(max(codes))


def _check(
    check: SpecCheck,
    draft: "Draft",
    plugins: tuple[str, ...],
    data_dir: Path | None,
    nproc: int,
) -> None:
    """Check one spec.

    Raises:
        CheckpointError: Its pretrained weights are those of another network.
        DataError: Its data is there, but cannot be used.
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
        UsageError: A tracker's package is missing.
    """
    # Torch is imported only now, so that what is no YAML is refused at once.
    from resnet_builder.builder import build, check_source
    from resnet_builder.spec.dump import dump_value
    from resnet_builder.trackers import check_packages

    checked = check_source(
        draft,
        plugins=plugins,
        with_forward=True,
        with_weights=True,
        with_data=True,
        data_dir=data_dir,
        processes=nproc,
    )
    expected = {} if draft.expect is None else draft.expect.model_dump()
    is_counted = checked.assumed_classes is None
    if (
        is_counted
        and checked.counts != expected
        and all(one.code == "expect" for one in checked.problems)
    ):
        check.expect = f"expect: {dump_value(checked.counts)}"
    if checked.spec is None or checked.network is None:
        raise SpecError(checked.problems)
    check_packages(checked.spec.run.log)
    check.notices = (*draft.notices, *checked.notices)
    if isinstance(checked.data_error, MissingDataError):
        first, *more = (line.strip() for line in checked.data_error.args)
        check.notices += ("; ".join([f"checked without the data: {first}", *more]),)
    elif checked.data_error is not None:
        raise checked.data_error
    weights = checked.spec.model.weights
    is_file = weights is not None and weights.published_name is None and not weights.is_on_hub
    if is_counted and is_file:
        build(checked.spec)  # raises if the weights are not the network's; nothing is downloaded
    check.name = checked.spec.name
    check.parameters, check.depth, check.macs = checked.counts.values()
    _estimate_memory(check, checked.spec, checked.network, nproc)


def _check_sweep(
    path: Path,
    laid: dict[str, Any],
    plugins: tuple[str, ...],
    data_dir: Path | None,
    nproc: int,
) -> int:
    """Check a sweep file and the spec of each trial; return the number of runs.

    Raises:
        DataError: Its data is there, but cannot be used.
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
    """
    from resnet_builder.launch.check import check_trials
    from resnet_builder.launch.plan import plan_sweep
    from resnet_builder.launch.sweep_file import read_sweep

    plan = plan_sweep(read_sweep(path), **laid)
    check_trials(plan, plugins=plugins, data_dir=data_dir, processes=nproc, needs_data=False)
    return plan.num_runs


def _estimate_memory(check: SpecCheck, spec: "Spec", network: "ResNet", nproc: int) -> None:
    """Estimate the memory of training; a device that is not here has room enough."""
    if spec.data is None or spec.train is None:
        return
    from resnet_builder.device import pick_device
    from resnet_builder.experiment import Experiment
    from resnet_builder.memory import estimate_training, memory_warning
    from resnet_builder.training.runtime import pick_precision

    device, is_here = pick_device("cpu"), False
    try:
        device, is_here = pick_device(spec.run.device), True
    except UsageError as error:
        check.notices += (f"checked without the device: {error}",)
    precision = pick_precision(spec.run.precision, device)
    estimate = estimate_training(Experiment(spec, network), precision, processes=nproc)
    check.memory_bytes = estimate.memory
    check.activation_bytes = estimate.activations
    check.disk_bytes = estimate.disk
    warning = memory_warning(estimate, device, processes=nproc) if is_here else None
    if warning is not None:
        check.notices += (warning,)


def _show(check: SpecCheck) -> None:
    for notice in check.notices:
        note(f"{check.source}: {notice}")
    if check.problems:
        show_error(SpecError(check.problems))
    if check.error is not None:
        note(*f"error: {check.error}".split("\n"))
    if check.name is not None:
        show(
            f"{check.source}: {check.parameters:,} parameters, depth {check.depth}, "
            f"{check.macs:,} MACs"
        )
    if check.runs is not None:
        show(f"{check.source}: a sweep of {counted(check.runs, 'run')}")
    if check.memory_bytes is not None:
        from resnet_builder.memory import size_text

        sizes = (check.memory_bytes, check.activation_bytes, check.disk_bytes)
        memory, activations, disk = (size_text(size or 0) for size in sizes)
        show(
            f"{check.source}: training takes about {memory} of memory "
            f"({activations} activations), {disk} of disk"
        )
    if check.expect is not None:
        show(check.expect)
