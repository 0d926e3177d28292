"""``resnet-build train``: train a spec's network, or go on with a run."""

import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.invocation import Invocation, pass_invocation
from resnet_builder.cli.messages import examples, note, percent, show, show_json, table
from resnet_builder.cli.options import (
    SPEC,
    data_dir_option,
    debug_option,
    json_option,
    layer_options,
)
from resnet_builder.errors import Stopped, UsageError

if TYPE_CHECKING:
    from resnet_builder.cli.progress import Display
    from resnet_builder.data.contract import Stop
    from resnet_builder.data.splits import Splits
    from resnet_builder.runs.directory import RunDirectory
    from resnet_builder.runs.records import ResultRecord
    from resnet_builder.spec.schema import Spec

_HERE = ""
"""What ``--resume`` gives without a directory: the one of ``--out``."""


@click.command(
    epilog=examples(
        "resnet-build train resnet20_digits",
        "resnet-build train my_net.yaml --out runs/mine --resume",
        "resnet-build train --resume runs/resnet20-001",
        "resnet-build train resnet56 --with one_cycle10 --set train.seed=1",
    )
)
@click.argument("spec", required=False, type=SPEC, metavar="[SPEC]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Make exactly this run directory. [default: the next runs/NAME-NNN]",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_HERE,
    metavar="[DIR]",
    help="Go on with the run there, or in --out; start it if SPEC is given and there is none.",
)
@layer_options
@data_dir_option
@click.option(
    "--allow-spec-change",
    is_flag=True,
    help="Go on although recipe or data have changed; that is recorded.",
)
@click.option(
    "--allow-inexact",
    is_flag=True,
    help="Go on although this machine cannot give the same bits.",
)
@json_option
@debug_option
@pass_invocation
def train(
    invocation: Invocation,
    spec: str | None,
    out: Path | None,
    resume: str | None,
    overrides: tuple[str, ...],
    with_: tuple[str, ...],
    plugins: tuple[str, ...],
    data_dir: Path | None,
    allow_spec_change: bool,
    allow_inexact: bool,
    as_json: bool,
) -> None:
    """Train a spec's network, test the weights that validation chose, and compare with the source.

    Nothing is ever overwritten. Press Ctrl-C once to save and stop; --resume goes on to the same
    bits. With --out and --resume the same line can be given again until the run is complete.
    """
    directory = _directory(spec, out, resume)

    from resnet_builder.cli.progress import display
    from resnet_builder.cli.specs import read_spec

    source = _run_spec(directory) if spec is None else spec
    resolved = read_spec(source, overrides=overrides, with_=with_, plugins=plugins, warn=note)
    if resolved.data is None or resolved.train is None:
        raise UsageError(f"{resolved.name}: a spec to train needs `data` and `train`")
    with invocation.signals.polled() as stop, display() as shown:
        job = _Job(
            invocation, resolved, shown, stop, data_dir, allow_spec_change, allow_inexact
        )
        record = job.begin(out) if resume is None else job.go_on(directory)
    if as_json:
        show_json(record)
    else:
        _show(record)


def _directory(spec: str | None, out: Path | None, resume: str | None) -> Path | None:
    """Return the directory that the arguments name.

    Raises:
        UsageError: They name none, two, or nothing to train.
    """
    if resume and out is not None:
        raise click.UsageError(
            f"--out names one directory, --resume another ('{resume}'); "
            "where --resume is to mean --out, write it last"
        )
    directory = Path(resume) if resume else out
    if resume is not None and directory is None:
        raise click.UsageError("--resume needs a directory, behind it or as --out")
    if spec is None and resume is None:
        raise click.UsageError("give a SPEC to train, or --resume DIR to go on with a run")
    return directory


def _run_spec(directory: Path | None) -> Path:
    from resnet_builder.runs.directory import RunDirectory

    assert directory is not None, "without a spec, a run is given"
    return RunDirectory.open(directory).spec


@dataclass(frozen=True)
class _Job:
    """What is to be trained, and what both ways of doing it need.

    Attributes:
        invocation: Learns where a crash log would go.
        spec: The experiment, resolved.
        shown: What the user sees.
        stop: Polled everywhere.
        data_dir: Where data sets live.
        allow_spec_change: Whether a run may go on with another recipe.
        allow_inexact: Whether it may go on on another machine.
    """

    invocation: Invocation
    spec: "Spec"
    shown: "Display"
    stop: "Stop"
    data_dir: Path | None
    allow_spec_change: bool
    allow_inexact: bool

    def begin(self, out: Path | None) -> "ResultRecord":
        """Train in a directory of its own; data come first, so that no empty one is left."""
        from resnet_builder.runs.directory import RunDirectory
        from resnet_builder.training.session import begun

        if out is not None and out.exists():
            RunDirectory.create(out)  # says why it cannot be made
        splits = self._load()
        with begun(self.spec, splits, out) as run:
            return self._fit(run, splits)

    def go_on(self, directory: Path | None) -> "ResultRecord":
        """Train to the end whatever a directory holds, if anything."""
        from resnet_builder.runs.records import ResultRecord
        from resnet_builder.training.session import publish, settle_data

        assert directory is not None, "--resume names one"
        with self._found(directory) as run:
            if run.is_finished:
                self.shown.say(f"{run.path} is already complete")
                return ResultRecord.read(run.result)
            splits = self._load()
            if run.is_published:
                settle_data(run, splits, allow_spec_change=self.allow_spec_change)
            else:
                publish(run, self.spec, splits)
            return self._fit(run, splits)

    def _found(self, directory: Path) -> "AbstractContextManager[RunDirectory]":
        from resnet_builder.training.session import found

        return found(
            self.spec,
            directory,
            allow_spec_change=self.allow_spec_change,
            warn=self.shown.warned,
        )

    def _load(self) -> "Splits":
        from resnet_builder.data.splits import load_splits

        splits = load_splits(
            self.spec, data_dir=self.data_dir, stop=self.stop, report=self.shown.report
        )
        for notice in splits.notices:
            self.shown.say(notice)
        return splits

    def _fit(self, run: "RunDirectory", splits: "Splits") -> "ResultRecord":
        from resnet_builder.builder import build
        from resnet_builder.training.fit import fit
        from resnet_builder.training.process import configure
        from resnet_builder.training.session import threads

        assert self.spec.train is not None, "checked before"
        self.invocation.crash_log = run.crash_log
        self.shown.say(f"run directory: {run.path}")
        undo = configure(threads=threads(self.spec, run))
        try:
            result = fit(
                build(self.spec, seed=self.spec.train.seed),
                splits,
                self.spec,
                run,
                observer=self.shown,
                stop=self.stop,
                allow_inexact=self.allow_inexact,
            )
        except Stopped as error:
            command = shlex.join(["resnet-build", "train", "--resume", str(run.path)])
            raise Stopped(f"{error}; to go on: {command}") from error
        finally:
            undo()
        return result.record


def _show(record: "ResultRecord") -> None:
    published = record.published
    rows = []
    for name, ours, theirs, difference in (
        (
            "test top-1",
            record.test_top1,
            published and published.test_top1,
            published and published.test_top1_difference,
        ),
        (
            "test top-5",
            record.test_top5,
            published and published.test_top5,
            published and published.test_top5_difference,
        ),
    ):
        if ours is not None:
            points = "" if difference is None else f"{100 * difference:+.2f}"
            rows.append((name, percent(ours), percent(theirs), points))
    show(table(("", "ours", "published", "difference"), rows) if rows else "no test images")
    if published is not None:
        show(f"published: {published.source}")
    chosen = "the last weights" if record.selected_on == "none" else "chosen on validation images"
    val = f", validation top-1 {percent(record.val_top1)}" if record.val_top1 is not None else ""
    show(f"weights of step {record.selected_step:,} of {record.steps:,}: {chosen}{val}")
    show(f"{record.seconds:,.0f} s of training, {record.images_per_second:,.0f} images/s")
