"""Inference with trained weights: load a model, evaluate it on a split.

Weights come from a run, from a file of this program, or by an import from another program's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from resnet_builder.builder import build, check_source
from resnet_builder.data.class_folders import SPLITS, shorten
from resnet_builder.data.interfaces import (
    DATASETS,
    ImageSource,
    LoadContext,
    LoadedSplit,
    Report,
    Stop,
    never,
    silent,
)
from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.location import default_data_dir, find_data, unused_place
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.splits import DataSplits, check_images, load_data
from resnet_builder.data.statistics import channel_statistics
from resnet_builder.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    SpecError,
    UsageError,
    counted,
)
from resnet_builder.model import ResNet, state_dict_mismatch
from resnet_builder.prediction_table import Cell, joined, probability_columns, write_table
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import ClassScores
from resnet_builder.runs.status import resume_command
from resnet_builder.spec.compose import dataset_at
from resnet_builder.spec.load import load_spec_text
from resnet_builder.spec.schema import DataSpec, Normalize, Spec, ToRgb
from resnet_builder.spec.section import Part
from resnet_builder.spec.yaml_source import parse_plain
from resnet_builder.training.checkpoint import (
    is_checkpoint,
    load_checkpoint,
    load_newest,
)
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.metrics import NO_PREDICTION, Metrics
from resnet_builder.weights.convert import in_own_names
from resnet_builder.weights.file import WeightsHeader, read_weights
from resnet_builder.weights.hub import find_weights

BATCH_SIZE = 128
"""Images of a batch, of an evaluation and of a prediction alike."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """Network with its weights, and what is needed to use it.

    Attributes:
        path: Path of the weights.
        network: Network on the CPU, in evaluation mode.
        spec: Resolved spec of the experiment.
        header: Statistics, preprocessing and metrics, as far as they are known.
        notices: Notices for the user, one line each.
    """

    path: Path
    network: ResNet
    spec: Spec
    header: WeightsHeader
    notices: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; numbers where they are not known."""
        return self.header.classes or tuple(map(str, range(self.spec.model.num_logits)))


def load_model(path: Path, *, plugins: Sequence[str] = ()) -> TrainedModel:
    """Load the best weights of a run, or the weights in a file.

    A run that was stopped before it had best weights has those of its newest checkpoint. Of a
    checkpoint, the moving average is taken, if it has one.

    Args:
        path: Run directory, folder that ``publish`` wrote, file of weights, or checkpoint; or
            ``hf-hub:USER/NAME[@REVISION]``.
        plugins: Plugins that may be imported.

    Raises:
        CheckpointError: The file is damaged, another program's, or not of its own spec.
        SpecError: Its spec cannot be used here; a plugin without consent, for example.
        StorageError: It cannot be read.
        UsageError: The run has no weights yet, or a newer release wrote them.
    """
    file, notices = find_weights(path), []
    if file.is_dir():
        file = _weights_of_run(path)
        if file.parent != path:
            notices.append(f"{path} has no best weights yet; its newest checkpoint is used: {file}")
    weights, header = _read_checkpoint(file) if is_checkpoint(file) else read_weights(file)
    values = parse_plain(header.spec, str(file))
    if not isinstance(values, dict):  # text would be taken for the name of a bundled spec
        raise CheckpointError(f"{file}: its header is damaged: the spec is no mapping")
    found = check_source(values, plugins=plugins)
    if found.spec is None or found.network is None:
        raise SpecError(found.problems)
    model = found.spec.model
    for name, wanted in (
        ("classes", model.num_classes),
        ("mean", model.in_channels),
        ("std", model.in_channels),
    ):
        entries = getattr(header, name)
        if entries is not None and len(entries) != wanted:
            count = counted(len(entries), "entry", "entries")
            raise CheckpointError(
                f"{file}: its header is damaged: `{name}` has {count}, and its spec needs {wanted}"
            )
    # The network on meta is compared: one that is not the weights' might take all memory.
    weights = in_own_names(weights, found.network)
    difference = state_dict_mismatch(found.network.state_dict(), weights)
    if difference is not None:
        raise CheckpointError(f"{file}: the weights are not of its spec: {difference}")
    network = build(found.spec, pretrained=False)
    network.load_state_dict(weights)
    return TrainedModel(file, network.eval(), found.spec, header, tuple(notices))


def _weights_of_run(path: Path) -> Path:
    """File with the best weights of a run, or else its newest valid checkpoint."""
    run = RunDirectory.open(path)
    if run.best.exists():
        return run.best
    checkpoint = load_newest(run)
    if checkpoint is None:
        raise UsageError(
            f"{path} has no weights yet: they are saved by checkpoints, by an evaluation on "
            "validation images, and at the end of the training",
            "to go on, with the --data-dir and --plugin that it was started with: "
            f"{resume_command(path)}",
        )
    return run.checkpoint(checkpoint.step)


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    """Weights that an evaluation at a checkpoint takes, and what is known of them."""
    checkpoint = load_checkpoint(path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}}
    for name, tensor in checkpoint.tensors.items():
        group, _, tensor_name = name.partition("/")
        groups.setdefault(group, {})[tensor_name] = tensor
    spec, data = checkpoint.provenance.spec, checkpoint.provenance.data
    if data is None:
        raise CheckpointError(f"{path}: its metadata are damaged: it has no data")
    section = load_spec_text(spec, name=str(path)).data
    header = WeightsHeader(
        spec=spec,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        preprocess=(section.preprocess or ()) if section else (),
        images=data.fingerprint,
        multi_label=data.multi_label,
        step=checkpoint.step,
    )
    return groups["ema"] or groups["model"], header


# Evaluation.


@dataclass(frozen=True, slots=True)
class SplitEvaluation:
    """Evaluation of weights on a split.

    Attributes:
        weights: Path of the weights.
        split: ``test``, ``val`` or ``train``.
        images: Number of images.
        metrics: Loss, top-1 and the like, by names as ``test.top1``.
        classes: Class names, by label.
        by_class: Precision, recall and F1 of each class, by its name.
        macro: Their means over the classes that any image has or is predicted as.
        weighted: Their means over the classes, by their numbers of images.
        micro: Precision, recall and F1 of all decisions together, where images have several
            labels.
        confusion: Number of images by label (row) and predicted class (column), where each has one
            label.
    """

    weights: Path
    split: str
    images: int
    metrics: Mapping[str, float]
    classes: tuple[str, ...]
    by_class: Mapping[str, ClassScores]
    macro: ClassScores
    weighted: ClassScores
    micro: ClassScores | None
    confusion: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True, slots=True)
class SplitImages:
    """Images of one split, and how they are normalised.

    Attributes:
        split: ``test``, ``val`` or ``train``.
        images: The images.
        classes: Class names of the data; a label is an index into them.
        mean: Mean of each channel, in units where white is 1.
        std: Standard deviation of each channel, in the same units.
        notices: Notices for the user, one line each.
    """

    split: str
    images: ImageSource
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notices: tuple[str, ...] = ()


def load_split(
    trained: TrainedModel,
    split: str | None = None,
    *,
    data: Path | None = None,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    left_out: tuple[str, ...] | None = None,
    should_stop: Stop = never,
    report: Report = silent,
) -> SplitImages:
    """Load the images of one split, preprocessed and normalised as the weights need them.

    Datasets of files need nothing but the split: training images may be gone.

    Args:
        trained: Model to load the images for.
        split: ``test``, ``val`` or ``train``; by default the test images, or the validation images
            where the model's own dataset has no test images.
        data: Folder of images, or table of labels, in place of the dataset that the model was
            trained on. Images that are not divided into splits are test images.
        data_dir: Directory of the datasets.
        skip_bad: Whether images that cannot be decoded are left out, instead of refused.
        left_out: As for :func:`load_data`.
        should_stop: Polled in every loop.
        report: Told of downloads and scans.

    Raises:
        DataError: The dataset is missing, broken or too small, or has other classes.
        SpecError: It is not what the network is for.
        Stopped: ``should_stop`` returned true.
        UsageError: There is no such split, or the spec of the weights names no dataset.
    """
    load = partial(
        _load_split,
        trained,
        data=data,
        data_dir=data_dir,
        skip_bad=skip_bad,
        left_out=left_out,
        should_stop=should_stop,
        report=report,
    )
    if split is not None:
        if split not in SPLITS:
            raise UsageError(f"no split is named '{split}'; there are {', '.join(SPLITS)}")
        return load(split)
    try:
        return load("test")
    except UsageError as error:
        if data is not None:
            raise
        try:
            images = load("val")
        except UsageError:
            raise error from None
        reason = str(error).partition("; ")[0]  # not what else could be evaluated
        notice = f"{reason}; evaluating on the validation images"
        return replace(images, notices=(notice, *images.notices))


def _load_split(
    trained: TrainedModel,
    split: str,
    *,
    data: Path | None,
    data_dir: Path | None,
    skip_bad: bool,
    left_out: tuple[str, ...] | None,
    should_stop: Stop,
    report: Report,
) -> SplitImages:
    header, section = trained.header, trained.spec.data
    if data is not None:
        section = DataSpec(dataset=_dataset_at(data, trained), validation=0)
    if section is None:
        raise UsageError(f"{trained.path}: its spec has no `data` to evaluate on; use --data PATH")
    section = find_data(section, data_dir)
    dataset = DATASETS.get(section.dataset.type)(**section.dataset.options)
    load_alone = getattr(dataset, "load_split", None)
    is_set_aside = section.validation != 0 and split != "test"
    if load_alone is None or is_set_aside or (header.mean is None and data is None):
        splits = load_own_splits(
            trained,
            data_dir=data_dir,
            skip_bad=skip_bad,
            left_out=left_out,
            should_stop=should_stop,
            report=report,
        )
        images = _one_of(splits, split)
        is_chosen = split == "val" and len(splits.validation_indices) > 0
        if is_chosen and header.images not in {None, splits.fingerprint}:
            notice = (
                f"the images have changed since {trained.path} was trained: others are set aside "
                "for validation now, and some of them may have been trained on"
            )
            images = replace(images, notices=(*images.notices, notice))
        return images

    context = LoadContext(
        data_dir or default_data_dir(),
        Preprocessing(header.preprocess),
        stop=should_stop,
        report=report,
        skip_bad=skip_bad,
        verify=left_out is None,
        left_out=left_out or (),
    )
    # Images that are not divided are training images, but for those of another dataset.
    whole = "train" if data is None else "test"
    found: LoadedSplit = load_alone(context, split, undivided=split == whole)
    check_images(trained.spec.model, found.classes, {split: found.images})
    notices = [*unused_place(section, data_dir), *found.notices]
    notices += _missing_classes(trained, found.classes)
    if header.classes is None and len(found.classes) != trained.spec.model.num_classes:
        raise DataError(
            f"{trained.path} does not name its {trained.spec.model.num_classes} classes, and the "
            f"data has {len(found.classes)}: {shorten(found.classes)}"
        )
    if header.mean is not None and header.std is not None:
        mean, std = header.mean, header.std
    else:
        mean, deviations = channel_statistics(found.images, should_stop)
        std = tuple(deviation or 1.0 for deviation in deviations)
        notices.append(_own_statistics(trained))
    return SplitImages(split, found.images, found.classes, mean, std, tuple(notices))


def _dataset_at(path: Path, trained: TrainedModel) -> Part:
    """Dataset of a folder of images, or of a table, read as that of the training if it is alike.

    Images have the channels of the weights.
    """
    takes_grey = any(isinstance(step, ToRgb) for step in trained.header.preprocess)
    channels = 1 if takes_grey else trained.spec.model.in_channels
    if channels not in {1, 3, 4}:
        raise UsageError(f"images have 1, 3 or 4 channels, the network takes {channels}")
    given = dataset_at(path)
    own = trained.spec.data.dataset if trained.spec.data else None
    options = dict(own.options) if own and own.type == given["type"] else {}
    if not (path.parent / str(options.get("root") or "")).is_dir():
        del options["root"]  # it belongs to the other table
    return Part.model_validate({**options, **given, "channels": channels})


def _one_of(splits: DataSplits, split: str) -> SplitImages:
    sources = {"train": splits.train, "val": splits.validation, "test": splits.test}
    source = sources[split]
    if source is None:
        present = ", ".join(name for name, source in sources.items() if source is not None)
        raise UsageError(f"there are no {split} images; there are {present}")
    return SplitImages(split, source, splits.classes, splits.mean, splits.std, splits.notices)


def _missing_classes(trained: TrainedModel, classes: tuple[str, ...]) -> Iterator[str]:
    known = trained.header.classes
    if known is None:
        shown = shorten(classes)
        yield f"{trained.path} does not name its classes; they are taken to be, in order, {shown}"
    elif set(classes) < set(known):
        yield f"the data has {len(classes)} of the {len(known)} classes of {trained.path}"


def _own_statistics(trained: TrainedModel) -> str:
    return f"{trained.path} does not say how images are normalised; here, by their own statistics"


def load_own_splits(
    trained: TrainedModel,
    *,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    left_out: tuple[str, ...] | None = None,
    should_stop: Stop = never,
    report: Report = silent,
) -> DataSplits:
    """Load the dataset that a model was trained on, with the statistics of that training.

    Where the weights do not have these, the spec decides, and a notice is added.

    Args:
        trained: Model to load the data for.
        data_dir: Directory of the datasets.
        skip_bad: Whether images that cannot be decoded are left out, instead of refused.
        left_out: As for :func:`load_data`.
        should_stop: Polled in every loop.
        report: Told of downloads and scans.

    Raises:
        DataError: The dataset is missing, broken or too small.
        SpecError: It is not what the network is for.
        Stopped: ``should_stop`` returned true.
        UsageError: The spec of the weights names no dataset.
    """
    spec, header = trained.spec, trained.header
    if spec.data is None:
        raise UsageError(f"{trained.path}: its spec has no `data` to evaluate on")
    own: dict[str, object] = {"preprocess": header.preprocess}
    if header.mean is not None and header.std is not None:
        own["normalize"] = Normalize(mean=header.mean, std=header.std)
    own_spec = spec.model_copy(update={"data": spec.data.model_copy(update=own)})
    splits = load_data(
        own_spec,
        data_dir=data_dir,
        skip_bad=skip_bad,
        left_out=left_out,
        check_classes=header.classes is None,
        stop=should_stop,
        report=report,
    )
    notices = [*splits.notices, *_missing_classes(trained, splits.classes)]
    if header.mean is None:
        notices.append(_own_statistics(trained))
    return replace(splits, notices=tuple(notices))


def evaluate_split(
    trained: TrainedModel,
    data: SplitImages,
    *,
    device: torch.device,
    table: Path | None = None,
    should_stop: Stop = never,
) -> SplitEvaluation:
    """Evaluate a model on the images of :func:`load_split`, in fp32.

    Classes are matched by their names: the data may have another order, or only some of them.

    Args:
        trained: Model; its network is moved to the device.
        data: Images of one split.
        device: Device to compute on.
        table: File to write with a row for each image, ``.csv`` or ``.json``.
        should_stop: Polled at every batch.

    Raises:
        DataError: The data have classes that the model was not trained on, or several labels where
            that has one.
        NonFiniteError: No image has finite logits.
        StorageError: The table cannot be written.
        Stopped: ``should_stop`` returned true.
        UsageError: The images are normalised otherwise than for the training, or the table exists.
    """
    header = trained.header
    header.check_classes(trained.path, data.classes, matched_by_name=True)
    if header.mean is not None and (header.mean, header.std) != (data.mean, data.std):
        raise UsageError(
            f"{trained.path} needs images of mean {header.mean} and standard deviation "
            f"{header.std}, not {data.mean} and {data.std}: load them by load_split"
        )
    several = data.images.labels.ndim == 2
    if header.source is None and header.multi_label != several:
        kinds = ("one label", "several labels")
        raise DataError(
            f"{trained.path} is for images of {kinds[header.multi_label]} each, and the data has "
            f"images of {kinds[several]}"
        )
    # Labels count the data's classes; the network's outputs are in the order of the weights'.
    classes = header.classes or data.classes
    outputs = torch.tensor(
        [classes.index(name) for name in header.names_of(data.classes)], device=device
    )
    batches = evaluation_batches(
        data.images, batch_size=BATCH_SIZE, mean=data.mean, std=data.std, device=device
    )
    found = evaluate(
        trained.network.to(device),
        ((images, _by_output(labels, outputs, len(classes))) for images, labels in batches),
        cpu_kernels=trained.spec.run.cpu_kernels is not False,
        with_probabilities=table is not None,
        should_stop=should_stop,
    )
    if not found.has_predictions:
        raise NonFiniteError(
            f"{trained.path}: its logits are not finite for any {data.split} image"
        )
    if table is not None:
        names = getattr(data.images, "names", None)
        image = "index" if names is None else "file"
        named = probability_columns(classes)
        columns = (image, "label", "prediction", "confidence", "correct", *named)
        rows = _table_rows(found, classes) if found.labels.ndim == 1 else _several(found, classes)
        images = range(found.num_images) if names is None else names
        write_table(table, columns, ((one, *row) for one, row in zip(images, rows, strict=True)))
    return SplitEvaluation(
        weights=trained.path,
        split=data.split,
        images=found.num_images,
        metrics=found.named(data.split),
        classes=classes,
        by_class=dict(zip(classes, found.by_class, strict=True)),
        macro=found.macro,
        weighted=found.weighted,
        micro=found.micro,
        confusion=None if found.multi_label else tuple(map(tuple, found.confusion().tolist())),
    )


def _by_output(labels: Tensor, outputs: Tensor, num_classes: int) -> Tensor:
    """Labels of the data by the network's outputs.

    Args:
        labels: ``(B,)`` labels, or ``(B, L)`` zeros and ones of several labels.
        outputs: ``(L,)`` output of each class of the data.
        num_classes: Number of outputs.
    """
    if labels.ndim == 1:
        return outputs[labels]
    return labels.new_zeros(len(labels), num_classes).index_copy_(1, outputs, labels)


def _table_rows(metrics: Metrics, classes: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """Rows of a table of predictions, in the order of the images, without their first cell."""
    assert metrics.probabilities is not None, "they were asked for"
    labels, predictions = metrics.labels.tolist(), metrics.predictions.tolist()
    for index, probabilities in enumerate(metrics.probabilities.tolist()):
        label, predicted = labels[index], predictions[index]
        known = predicted != NO_PREDICTION
        yield (
            classes[label],
            classes[predicted] if known else None,
            probabilities[predicted] if known else None,
            label == predicted,
            *probabilities,
        )


def _several(metrics: Metrics, classes: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """Rows of a table where images have several labels.

    The confidence is that of the least certain decision about a class.
    """
    assert metrics.probabilities is not None, "they are always there, with several labels"
    decisions = zip(metrics.labels, metrics.predictions, metrics.probabilities, strict=True)
    for label, predicted, probabilities in decisions:
        known = bool((predicted != NO_PREDICTION).all())
        certain = torch.where(predicted == 1, probabilities, 1 - probabilities).min().item()
        yield (
            joined(classes, label),
            joined(classes, predicted) if known else None,
            certain if known else None,
            torch.equal(label, predicted.to(label.dtype)) and known,
            *probabilities.tolist(),
        )
