"""Python API of a whole experiment: train it, open its run, evaluate it, predict with it."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from torch import nn

from resnet_builder.builder import load_experiment, read_spec
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.device import pick_device
from resnet_builder.errors import ResnetBuilderError, UsageError
from resnet_builder.inference import (
    SplitEvaluation,
    TrainedModel,
    evaluate_split,
    load_model,
    load_split,
)
from resnet_builder.model import Normalize
from resnet_builder.prediction import Predictions, predict
from resnet_builder.reports.completion import complete_run
from resnet_builder.reports.notebook import NotebookProgress, in_notebook, run_html
from resnet_builder.reports.page import report_callbacks
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, MetricsRow, ResultRecord
from resnet_builder.spec.compose import SpecSource
from resnet_builder.spec.load import read_draft
from resnet_builder.spec.schema import Spec
from resnet_builder.training.callbacks import Callback, CallbackList
from resnet_builder.training.session import Session, open_session
from resnet_builder.training.trainer import fit
from resnet_builder.weights.hub import find_folder

if TYPE_CHECKING:
    from resnet_builder.publishing.folder import PublishReport

_TRAINING = RLock()


class Run:
    """Run of an experiment, read from its directory.

    :func:`train` and :func:`load_run` make one. Each attribute is read when it is first used, so a
    run that has no weights yet still has a spec and a history.

    Attributes:
        path: Run directory.
    """

    def __init__(
        self, path: str | Path, *, plugins: Sequence[str] = (), normalize: bool = False
    ) -> None:
        self._directory = RunDirectory.open(find_folder(path))
        self.path = self._directory.path
        self._plugins = tuple(plugins)
        self._normalize = normalize

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str | None:
        """HTML for notebooks: state, result and curves; ``None``, if a file is damaged."""
        try:
            return run_html(self.path)
        except ResnetBuilderError:
            return None

    @cached_property
    def spec(self) -> Spec:
        """Resolved spec of the experiment.

        Raises:
            SpecError: It cannot be used here; a plugin without consent, for example.
        """
        return read_spec(self._directory.spec, plugins=self._plugins)

    @cached_property
    def result(self) -> ResultRecord | None:
        """Contents of ``result.json``; ``None`` of a run that is not finished."""
        return ResultRecord.read(self._directory.result) if self._directory.is_finished else None

    @cached_property
    def history(self) -> list[MetricsRow]:
        """Rows of ``metrics.jsonl``: reports while training, and evaluations, in order."""
        return MetricsLog(self._directory).read()

    @cached_property
    def trained(self) -> TrainedModel:
        """Best weights with their classes, statistics and preprocessing.

        Raises:
            CheckpointError: The file is damaged.
            UsageError: The run has no weights yet.
        """
        return load_model(self._directory.path, plugins=self._plugins)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.trained.classes

    @cached_property
    def model(self) -> nn.Module:
        """Network with the best weights, on the CPU, in evaluation mode.

        It takes normalised images; or, with ``normalize``, pixels: floating-point from 0 to 1, or
        uint8. The network alone is ``model.network`` then.

        Shape:
            ``(N, C, H, W)`` to ``(N, num_classes)``.
        """
        network, header = self.trained.network, self.trained.header
        if not self._normalize:
            return network
        if header.mean is None or header.std is None:
            raise UsageError(f"{self.trained.path} does not say how images are normalised")
        layers = {"normalize": Normalize(header.mean, header.std), "network": network}
        return nn.Sequential(OrderedDict(layers)).eval()

    def evaluate(
        self,
        split: str = "test",
        *,
        data: str | Path | None = None,
        data_dir: str | Path | None = None,
        device: str = "auto",
        skip_bad: bool = False,
    ) -> SplitEvaluation:
        """Evaluate the best weights in fp32, as ``resnet-build evaluate`` does.

        Args:
            split: ``test``, ``val`` or ``train``.
            data: Folder of images, or table of labels, in place of the run's own data.
            data_dir: Folder of datasets.
            device: Torch device, or ``auto``.
            skip_bad: Whether images that cannot be decoded are left out, instead of refused.

        Raises:
            DataError: The data is missing, damaged, or of other classes.
            UsageError: There are no such images, or there is no such device.
        """
        images = load_split(
            self.trained,
            split,
            data=None if data is None else Path(data),
            data_dir=None if data_dir is None else Path(data_dir),
            skip_bad=skip_bad,
        )
        return evaluate_split(self.trained, images, device=pick_device(device))

    def predict(
        self, images: str | Path | Iterable[str | Path], *, top: int = 1, device: str = "auto"
    ) -> Predictions:
        """Predict the classes of image files, as ``resnet-build predict`` does.

        Args:
            images: Image, folder of images, or several of them.
            top: Number of classes for each image.
            device: Torch device, or ``auto``.

        Raises:
            DataError: There are no images.
            UsageError: The weights do not say how images are normalised; or ``top`` is below 1.
        """
        if top < 1:
            raise UsageError(f"top is the number of classes for each image, not {top}")
        return predict(self.trained, _paths(images), top=top, device=pick_device(device))

    def publish(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        license: str | None = None,
        dataset: str | None = None,
        overwrite: bool = False,
        unfinished: bool = False,
        with_report: bool = True,
        push: str | None = None,
        private: bool | None = None,
    ) -> "PublishReport":
        """Publish the run as a folder with a model card, as ``resnet-build publish`` does.

        Args:
            folder: Folder to make.
            name: Name of the published network; by default the spec's.
            license: Licence of the weights, by the Hub's name: ``mit``, ``cc-by-4.0``.
            dataset: Name of the dataset on the Hub, if the spec's dataset does not tell it.
            overwrite: Whether files that an earlier call wrote are replaced; others stay.
            unfinished: Whether a run that is not finished is published, with its best weights.
            with_report: Whether ``report.html`` is published too, which may show images.
            push: Repository of the Hugging Face Hub, ``USER/NAME``, to upload the folder to.
            private: Whether a new repository is private; ``None`` leaves it to the Hub.

        Raises:
            HubError: The Hub cannot be reached, or refuses.
            UsageError: The run is not finished, or the folder is in use.
        """
        from resnet_builder.publishing.folder import publish  # seldom needed, and slow to import

        return publish(
            self.path,
            Path(folder),
            name=name,
            license=license,
            dataset=dataset,
            overwrite=overwrite,
            unfinished=unfinished,
            with_report=with_report,
            push=push,
            private=private,
            plugins=self._plugins,
        )


def _paths(images: object) -> list[Path]:
    """Return one path, or several, as a list."""
    given = [images] if not isinstance(images, Iterable) or isinstance(images, str) else [*images]
    paths = [Path(one) for one in given if isinstance(one, str | Path)]
    if len(paths) < len(given):
        raise UsageError(
            "predict takes paths of images and of folders; for pixels there is the network: "
            "load_run(path, normalize=True).model"
        )
    return paths


def load_run(path: str | Path, *, plugins: Sequence[str] = (), normalize: bool = False) -> Run:
    """Open a run: its spec, history, result, network.

    Args:
        path: Run directory, finished or not; a folder that ``publish`` wrote, or
            ``hf-hub:USER/NAME[@REVISION]`` of one.
        plugins: Plugins that may be imported.
        normalize: Whether ``model`` takes pixels, and normalises them itself.

    Raises:
        UsageError: The directory is no run.
    """
    return Run(path, plugins=plugins, normalize=normalize)


def train(
    spec: SpecSource,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    plugins: Sequence[str] = (),
    data: str | Path | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    allow_spec_change: bool = False,
    allow_inexact: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    should_stop: Stop = never,
) -> Run:
    """Train a network and test it, as ``resnet-build train`` does in one process.

    Of several threads, one trains at a time: torch's random numbers are the process's.

    In a notebook the cell shows the progress. Elsewhere nothing is shown.

    Args:
        spec: Path, name of a bundled spec, mapping, or the ``spec`` of a run.
        out: Run directory; by default the next ``runs/NAME-NNN``.
        resume: Whether to resume the run in ``out``, if there is one. A finished run is returned.
        overrides: ``path.to.key=value``, as ``--set``; or a flag, as ``--epochs 10``.
        fragments: Fragments and recipes to lay over the spec, as ``--with``.
        plugins: Plugins that may be imported.
        data: Folder of images, or table of labels, to train on instead, as ``--data``.
        data_dir: Folder of datasets.
        skip_bad: Whether images that cannot be decoded are left out, instead of refused.
        allow_spec_change: Whether to resume with another recipe, other plugins or data elsewhere.
        allow_inexact: Whether to resume on a machine that cannot give the same bits.
        progress: Whether a notebook shows the progress.
        callbacks: Called on each event.
        should_stop: Polled at every step; once it is true, a checkpoint is saved.

    Returns:
        The finished run.

    Raises:
        BusyError: Another process uses the run directory.
        DataError: The data is missing, damaged or too small, or has changed.
        NonFiniteError: A loss, a gradient or a weight is not finite.
        ResourceError: Memory ran out.
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read or written.
        Stopped: ``should_stop`` became true. ``resume=True`` goes on from there.
        UsageError: The run directory exists, or the run cannot be resumed to the same bits.
    """
    if wrong := [one for one in callbacks if not isinstance(one, Callback)]:
        raise UsageError(f"callbacks are objects of `Callback`, not {type(wrong[0]).__name__}")
    if isinstance(plugins, str):
        raise UsageError(f"plugins takes a list: [{plugins!r}]")
    directory = None if out is None else Path(out)
    where = None if data_dir is None else Path(data_dir)
    if resume and directory is None:
        raise UsageError("resume needs `out`, the run directory")
    report: Report = silent
    if progress and in_notebook():
        shown = NotebookProgress()
        callbacks, report = [shown, *callbacks], shown.report
    events = CallbackList(callbacks)
    images = None if data is None else Path(data)
    draft = read_draft(spec, overrides=overrides, fragments=fragments, data=images)
    for notice in draft.notices:
        events.on_warning(notice)
    with _TRAINING:
        # A run with a checkpoint needs its pretrained weights no more, nor a finished one its data,
        # unless only they tell what the spec is.
        experiment = load_experiment(
            draft,
            plugins=plugins,
            with_weights=not resume,
            with_data=not resume or draft.asks_data,
            data_dir=where,
        )
        opened = open_session(
            experiment,
            directory,
            resume=resume,
            allow_spec_change=allow_spec_change,
            data_dir=where,
            skip_bad=skip_bad,
            report=report,
            warn=events.on_warning,
            should_stop=should_stop,
        )
        with opened as session:
            if isinstance(session, Session):
                directory = session.run.path
                page = report_callbacks(experiment, directory, plugins, where, events.on_warning)
                fit(
                    session.model,
                    session.data,
                    experiment,
                    session.run,
                    callbacks=[*callbacks, *page],
                    should_stop=should_stop,
                    allow_spec_change=allow_spec_change,
                    allow_inexact=allow_inexact,
                )
            elif directory is not None:
                has_report = experiment.run.report
                complete_run(directory, plugins, where, events.on_warning, with_report=has_report)
    assert directory is not None, "a session has a run, and a result is of the directory given"
    return load_run(directory, plugins=plugins)
