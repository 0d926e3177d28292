"""``resnet-build publish``: a run as a folder with a model card, and on the Hugging Face Hub."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_builder.cli.console import examples, note, show, show_json
from resnet_builder.cli.options import FOLDER, debug_option, json_option, plugin_option

if TYPE_CHECKING:
    from resnet_builder.publishing.folder import PublishReport


@click.command(
    epilog=examples(
        "resnet-build publish runs/resnet20_digits-001 --to digits",
        "resnet-build publish runs/pets-001 --to pets --license cc-by-4.0",
        "resnet-build publish runs/pets-001 --to pets --push USER/pets --private",
    )
)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "folder", type=FOLDER, required=True, metavar="DIR", help="Folder to write.")
@click.option("--name", metavar="NAME", help="Name of the network. [default: the spec's]")
@click.option(
    "--license",
    "license_",
    metavar="ID",
    help="Licence of the weights, as the Hub names it: mit, apache-2.0, cc-by-4.0. [default: none]",
)
@click.option(
    "--dataset",
    metavar="USER/NAME",
    help="Name of the dataset on the Hub. [default: known for cifar10, cifar100 and "
    "fashion_mnist, else none]",
)
@click.option(
    "--report/--no-report",
    "with_report",
    default=True,
    help="Publish the run's report.html, too. It may show images.  [default: --report]",
)
@click.option(
    "--unfinished",
    is_flag=True,
    help="Publish a run that is not finished, with its best weights so far.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the files that an earlier publish wrote to DIR. Other files stay.",
)
@click.option(
    "--push",
    metavar="USER/NAME",
    help="Upload the folder to this repository of the Hugging Face Hub.",
)
@click.option(
    "--private/--public",
    "private",
    default=None,
    help="Make a new repository private or public.  [default: as the Hub does: public]",
)
@plugin_option
@json_option
@debug_option
def publish(
    run: Path,
    folder: Path,
    name: str | None,
    license_: str | None,
    dataset: str | None,
    with_report: bool,
    unfinished: bool,
    overwrite: bool,
    push: str | None,
    private: bool | None,
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Publish a run as a folder with a model card, and on the Hub.

    The folder has the weights, spec, model card, drawing, result and report. The commands predict,
    evaluate, export and summary take it in place of a run; `model.weights` and `import` take it in
    place of a file. If timm has the network, timm loads the folder. No path of this machine is in
    it.

    With --push, the folder is uploaded to the Hugging Face Hub. Log in first: run `hf auth login`,
    or set HF_TOKEN.
    """
    from resnet_builder.publishing.folder import publish as publish_run

    report = publish_run(
        run,
        folder,
        name=name,
        license=license_,
        dataset=dataset,
        overwrite=overwrite,
        unfinished=unfinished,
        with_report=with_report,
        push=push,
        private=private,
        plugins=plugins,
    )
    for notice in report.notices:
        note(notice)
    if as_json:
        show_json(report)
    else:
        _show(report)


def _show(report: "PublishReport") -> None:
    show(f"wrote {report.folder}: {', '.join(report.files)}; {report.bytes:,} bytes")
    if report.timm is not None:
        show(f"timm loads it: timm.create_model('local-dir:{report.folder}', pretrained=True)")
    if report.url is not None:
        show(f"pushed it to {report.url}")
