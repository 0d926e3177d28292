"""``resnet-build sweep``: train a spec in every setting of some keys, or search for the best."""

import os
from pathlib import Path
from typing import Any

import click

from resnet_builder.cli.console import examples
from resnet_builder.cli.group import jobs_option, show_plan, train_group
from resnet_builder.cli.launcher import nproc_option
from resnet_builder.cli.options import (
    data_dir_option,
    data_option,
    debug_option,
    json_option,
    skip_bad_option,
    training_options,
)
from resnet_builder.errors import UsageError
from resnet_builder.spec.bundled import bundled_names

_FILE = """\b
A sweep file:
  spec: resnet20_digits
  axes:
    model.shortcut: [pad, projection]
  seeds: 0-2

"""


class _SweepFile(click.Path):
    """Type of the argument: a file, and no name of a bundled spec."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the file."""
        if value in bundled_names() and not os.path.exists(value):
            raise UsageError(
                f"{value} is a spec, and no sweep file", f"did you mean: resnet-build train {value}"
            )
        return super().convert(value, param, ctx)


@click.command(
    epilog=_FILE
    + examples(
        "resnet-build sweep shortcuts.yaml --dry-run",
        "resnet-build sweep shortcuts.yaml",
        "resnet-build sweep rates.yaml --jobs 2 --out runs/rates",
        "resnet-build list runs runs/shortcuts",
    )
)
@click.argument(
    "file", type=_SweepFile(exists=True, dir_okay=False, path_type=Path), metavar="SWEEP.yaml"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory for the runs. [default: runs/ and the name of the file]",
)
@click.option("--dry-run", is_flag=True, help="Check the trials and list them, without training.")
@jobs_option
@training_options
@data_option
@data_dir_option
@skip_bad_option
@nproc_option
@json_option
@debug_option
def sweep(
    file: Path,
    out: Path | None,
    dry_run: bool,
    jobs: int | None,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None,
    data_dir: Path | None,
    skip_bad: bool,
    nproc: int | None,
    as_json: bool,
) -> None:
    """Train a spec with many settings, or search for the best setting.

    A sweep file names a spec, values for some of its keys (the axes), and seeds. All trials are
    checked before the first one is trained. Each trial is an ordinary run, and all runs are in one
    directory.

    After a stop or a crash, the same line continues the sweep: finished runs are kept, the others
    are resumed. New values of an axis, and new seeds, add runs. Settings are ranked by their
    accuracy on the validation images.
    """
    from resnet_builder.launch.sweep_file import read_sweep

    # What is no sweep is refused before torch is imported.
    found = read_sweep(file)

    from resnet_builder.launch.plan import plan_sweep

    plan = plan_sweep(found, overrides=overrides, fragments=fragments, data=data)
    path = out or Path("runs") / found.name
    if dry_run:
        from resnet_builder.launch.check import check_trials
        from resnet_builder.launch.group import check_group

        check_group(path, plan)
        checks = check_trials(
            plan, plugins=plugins, data_dir=data_dir, processes=nproc or 1, needs_data=False
        )
        show_plan(plan, checks, path, as_json=as_json)
        return
    train_group(
        plan,
        path,
        jobs=jobs or 1,
        plugins=plugins,
        data_dir=data_dir,
        skip_bad=skip_bad,
        nproc=nproc,
        as_json=as_json,
    )
