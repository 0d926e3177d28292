"""Completion of a finished run whose process was killed before it could write its report."""

from collections.abc import Sequence
from pathlib import Path

from resnet_builder.data.loader import evaluation_batches
from resnet_builder.device import pick_device
from resnet_builder.errors import CheckpointError, first_line
from resnet_builder.inference import load_model, load_split
from resnet_builder.reports.diagnostics import agrees, left_out_images
from resnet_builder.reports.page import write_report
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import ResultRecord
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.result import run_predictions


def complete_run(
    path: Path,
    plugins: Sequence[str],
    data_dir: Path | None,
    warn: Warn,
    *,
    with_report: bool,
) -> tuple[Path, ...]:
    """Write ``predictions.npz`` and ``report.html`` of a finished run, if they are missing.

    The run is finished: whatever goes wrong is a warning.

    Args:
        path: Run directory.
        plugins: Plugins that may be imported.
        data_dir: Folder of datasets.
        warn: Told of what goes wrong.
        with_report: Whether the run has a report, as ``run.report`` says.

    Returns:
        The files that were written.
    """
    run, written = RunDirectory(path), []
    if not run.predictions.is_file():
        try:
            if _write_predictions(run, plugins, data_dir):
                written.append(run.predictions)
        except Exception as error:
            warn(f"predictions.npz was not written: {first_line(error)}")
    if with_report and (written or not run.report.is_file()):
        try:
            write_report([path], run.report, plugins=plugins, data_dir=data_dir)
            written.append(run.report)
        except Exception as error:
            warn(f"the report was not written: {first_line(error)}")
    return tuple(written)


def _write_predictions(run: RunDirectory, plugins: Sequence[str], data_dir: Path | None) -> bool:
    """Evaluate the selected weights again; return whether such a run has predictions."""
    result = ResultRecord.read(run.result)
    is_of_one_label = result.test_map is None and result.val_map is None
    split = "test" if result.test_top1 is not None else "val"
    if not is_of_one_label or (split == "val" and result.val_top1 is None):
        return False
    trained = load_model(run.path, plugins=plugins)
    recipe = trained.spec.train
    assert recipe is not None, "a run has a recipe"
    images = load_split(trained, split, data_dir=data_dir, left_out=left_out_images(run))
    device = pick_device("auto")
    batches = evaluation_batches(
        images.images,
        batch_size=recipe.batch_size // recipe.accumulate,
        mean=images.mean,
        std=images.std,
        device=device,
    )
    metrics = evaluate(
        trained.network.to(device),
        batches,
        cpu_kernels=trained.spec.run.cpu_kernels is not False,
    )
    found = run_predictions(split, result.selected_step, images.classes, images.images, metrics)
    if found is None or not agrees(found, result):
        recorded = result.test_top1 if split == "test" else result.val_top1
        raise CheckpointError(
            f"the weights have a {split} top-1 of {metrics.top1:.4f} now, and {run.result} says "
            f"{recorded:.4f}"
        )
    found.write(run.predictions)
    return True
