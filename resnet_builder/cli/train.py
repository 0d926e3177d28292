"""``resnet-build train``: train the network of a spec, or resume a run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show_json
from resnet_builder.cli.group import seeds_options
from resnet_builder.cli.launcher import distributed_context, is_worker, nproc_option
from resnet_builder.cli.options import (
    SPEC,
    Invocation,
    data_dir_option,
    data_option,
    debug_option,
    json_option,
    pass_invocation,
    skip_bad_option,
    training_options,
)
from resnet_builder.cli.result import show_next, show_result
from resnet_builder.cli.signals import Interrupted
from resnet_builder.errors import ProcessLostError, Stopped, StorageError

if TYPE_CHECKING:
    from resnet_builder.runs.directory import RunDirectory

_HERE = ""
"""Value of ``--resume`` without a directory, which means that of ``--out``."""


@click.command(
    epilog=examples(
        "resnet-build train resnet20_digits",
        "resnet-build train resnet18_cifar --data my_images",
        "resnet-build train my_net.yaml --out runs/mine --resume",
        "resnet-build train --resume runs/resnet20-001",
        "resnet-build train resnet56 --with one_cycle10 --epochs 5 --seeds 0-4",
    )
)
@click.argument("spec", required=False, type=SPEC, metavar="[SPEC]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run directory to make. [default: the next runs/NAME-NNN]",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_HERE,
    metavar="[DIR]",
    help="Resume the run in DIR, or in --out. If there is none and SPEC is given, start it.",
)
@training_options
@data_option
@data_dir_option
@skip_bad_option
@click.option(
    "--allow-spec-change",
    is_flag=True,
    help="Resume even if the recipe, a plugin or the place of the data has changed; a complete run "
    "trains on if the recipe is longer. Each change is recorded.",
)
@click.option(
    "--allow-inexact",
    is_flag=True,
    help="Resume even if the device, a version or a setting of the run differs, and so the bits.",
)
@click.option("--no-report", is_flag=True, help="Write no report.html. [run.report=false]")
@nproc_option
@seeds_options
@json_option
@debug_option
@pass_invocation
def train(
    invocation: Invocation,
    spec: str | None,
    out: Path | None,
    resume: str | None,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    data_dir: Path | None,
    skip_bad: bool,
    allow_spec_change: bool,
    allow_inexact: bool,
    no_report: bool,
    nproc: int | None,
    as_json: bool,
) -> None:
    """Train a network, and compare it with the published result.

    The test images are evaluated once, with the weights that are best on the validation images.
    No run is overwritten.

    Press Ctrl-C once to save a checkpoint and stop. --resume continues, and ends with the same
    bits as a run without a stop. With --out and --resume, the same command can be repeated until
    the run is complete.
    """
    from resnet_builder.spec.load import read_draft

    directory = _directory(spec, out, resume)
    overrides += ("run.report=false",) if no_report else ()
    # Errors that need no torch come first: importing it takes seconds. Of several processes, one
    # reports an error, which it can do only once they are connected.
    read = partial(read_draft, overrides=overrides, fragments=fragments, data=data)
    draft = None if is_worker() else read(_source(spec, directory))

    from resnet_builder.builder import load_experiment
    from resnet_builder.cli.progress import AtStart, display
    from resnet_builder.reports.completion import complete_run
    from resnet_builder.reports.page import report_callbacks
    from resnet_builder.runs.status import resume_command
    from resnet_builder.training import session
    from resnet_builder.training.distributed import process_loss_reported
    from resnet_builder.training.trainer import fit

    with distributed_context(invocation, nproc) as ctx:
        if draft is None:
            draft = read(_source(spec, directory))
        if ctx.is_main_process:
            for notice in draft.notices:
                note(notice)
        # A run with a checkpoint does not need the pretrained weights any more, nor a finished one
        # its data, unless only they tell what the spec is.
        is_new = resume is None and ctx.is_main_process
        experiment = load_experiment(
            draft,
            plugins=plugins,
            with_weights=is_new,
            with_data=is_new or draft.asks_data,
            data_dir=data_dir,
            processes=ctx.world_size,
        )
        with (
            display(is_shown=ctx.is_main_process) as shown,
            process_loss_reported(),
            ExitStack() as stack,
        ):
            signals = invocation.signals

            def should_stop() -> bool:
                return signals.came() or (ctx.world_size > 1 and invocation.is_orphan)

            opened = session.open_session(
                experiment,
                directory,
                resume=resume is not None,
                allow_spec_change=allow_spec_change,
                data_dir=data_dir,
                skip_bad=skip_bad,
                report=shown.report,
                warn=shown.on_warning,
                should_stop=should_stop,
                ctx=ctx,
            )
            found = stack.enter_context(opened)
            if isinstance(found, session.Session):
                invocation.crash_log = found.run.crash_log
                shown.say(f"run directory: {found.run.path}")
                is_one_machine = ctx.world_size == ctx.local_world_size
                processes = ctx.world_size if is_one_machine else 1
                again = resume_command(found.run.path, data_dir, plugins, processes)
                again += "" if is_one_machine else " (by torchrun, on each machine as before)"
                # Before the first step there is nothing to finish: a signal ends all at once.
                at_start = AtStart(lambda: stack.enter_context(signals.polled()))
                report = report_callbacks(
                    experiment, found.run.path, plugins, data_dir, shown.on_warning
                )
                with _resume_told(found.run, again), process_loss_reported():
                    record = fit(
                        found.model,
                        found.data,
                        experiment,
                        found.run,
                        callbacks=[at_start, shown, *report],
                        should_stop=should_stop,
                        allow_spec_change=allow_spec_change,
                        allow_inexact=allow_inexact,
                        ctx=ctx,
                    ).record
            else:
                record = found
                shown.say(f"{directory} is already complete")
                if directory is not None and ctx.is_main_process:
                    wanted = experiment.run.report
                    for file in complete_run(
                        directory, plugins, data_dir, shown.on_warning, with_report=wanted
                    ):
                        shown.say(f"wrote {file}")
    if ctx.is_main_process and as_json:
        show_json(record)
    elif ctx.is_main_process:
        show_result(record)
        if isinstance(found, session.Session):
            show_next(found.run.path, plugins)


def _directory(spec: str | None, out: Path | None, resume: str | None) -> Path | None:
    """Return the directory that the arguments name.

    Raises:
        UsageError: They name none, two, or nothing to train.
    """
    if resume and out is not None:
        raise click.UsageError(
            f"--out names one directory, --resume another ('{resume}'); "
            "to resume the run in --out, write --resume without a directory, as the last word"
        )
    directory = Path(resume) if resume else out
    if resume is not None and directory is None:
        raise click.UsageError("--resume needs a directory: --resume DIR, or --out DIR --resume")
    if spec is None and resume is None:
        raise click.UsageError("give a SPEC to train, such as resnet20, or --resume DIR")
    return directory


def _source(spec: str | None, directory: Path | None) -> str | Path:
    """Return the spec's path or name: as given, or that of the run."""
    if spec is not None:
        return spec

    from resnet_builder.runs.directory import RunDirectory

    assert directory is not None, "without a spec, a run is given"
    return RunDirectory.open(directory).spec


@contextmanager
def _resume_told(run: "RunDirectory", command: str) -> Iterator[None]:
    """Context that adds a command to the end of a run that was stopped, if it has begun."""
    try:
        yield
    except (Stopped, ProcessLostError, StorageError) as error:
        if not run.is_published:
            raise
        raise type(error)(f"{error}; to resume: {command}") from error
    except Interrupted:
        hint = f"to resume: {command}" if run.is_published else f"{run.path} is removed"
        note(f"stopped before the first step; {hint}")
        raise
