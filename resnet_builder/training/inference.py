"""Using a trained network: on a split of its data set, or on pictures."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from resnet_builder.data.decode import IMAGE_EXTENSIONS, decode_image
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.loader import evaluation_batches, normalise
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.device import full_precision
from resnet_builder.errors import DataError, Stopped, UsageError
from resnet_builder.spec.schema import CenterCrop, Normalize, Resize, Spec, ToRgb
from resnet_builder.trained import TrainedModel
from resnet_builder.training.evaluation import Metrics, evaluate, prepare_for_inference
from resnet_builder.weights.file import WeightsHeader

BATCH_SIZE = 128
"""Images that are computed at a time."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a picture was taken for.

    Attributes:
        path: The file.
        answers: The likeliest classes and their probabilities, the likeliest first.
        fitted: Whether it was resized and cropped to what the network is fed.
        error: Why there are no answers.
    """

    path: Path
    answers: tuple[tuple[str, float], ...] = ()
    fitted: bool = False
    error: str | None = None


def load_own_splits(
    trained: TrainedModel,
    *,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    stop: Stop = never,
    report: Report = silent,
) -> DataSplits:
    """Read the data that a network was trained on, to be normalised as it was then.

    Where the weights do not say how that was, the spec does, and a notice is given.

    Args:
        trained: The network.
        data_dir: Where data sets live.
        skip_bad: Whether pictures that cannot be decoded are left out, instead of refused.
        stop: Polled in every loop.
        report: Told of downloads and scans.

    Raises:
        DataError: The data set is missing, broken or too small.
        SpecError: It is not what the network is for.
        Stopped: ``stop`` became true.
        UsageError: The spec of the weights names none.
    """
    spec, header = trained.spec, trained.header
    if spec.data is None:
        raise UsageError(f"{trained.path}: its spec has no `data` to evaluate on")
    own: dict[str, object] = {"preprocess": header.preprocess}
    if header.mean is not None and header.std is not None:
        own["normalize"] = Normalize(mean=header.mean, std=header.std)
    own_spec = spec.model_copy(update={"data": spec.data.model_copy(update=own)})
    splits = load_data(own_spec, data_dir=data_dir, skip_bad=skip_bad, stop=stop, report=report)
    if header.mean is not None:
        return splits
    notice = f"{trained.path} does not say how images are normalised; here, by their own statistics"
    return replace(splits, notices=(*splits.notices, notice))


def evaluate_split(
    trained: TrainedModel,
    splits: DataSplits,
    split: str,
    *,
    device: torch.device,
    stop: Stop = never,
) -> Metrics:
    """Evaluate a network on one split, in fp32.

    Args:
        trained: The network; it is moved to the device.
        splits: Its data.
        split: ``test``, ``val`` or ``train``.
        device: Where to compute.
        stop: Polled at every batch.

    Raises:
        Stopped: ``stop`` became true.
        UsageError: There is no such split.
    """
    sources = {"train": splits.train, "val": splits.validation, "test": splits.test}
    source = sources[split]
    if source is None:
        present = ", ".join(name for name, source in sources.items() if source is not None)
        raise UsageError(f"there are no {split} images; there are {present}")
    batches = evaluation_batches(
        source, batch_size=BATCH_SIZE, mean=splits.mean, std=splits.std, device=device
    )
    return evaluate(
        trained.network.to(device), batches, cpu_kernels=_cpu_kernels(trained), should_stop=stop
    )


def find_pictures(paths: Iterable[Path], *, stop: Stop = never) -> list[Path]:
    """List files, and all pictures in folders, in order; what is hidden is left out.

    Raises:
        DataError: There are none.
        Stopped: ``stop`` became true.
    """
    found: list[Path] = []
    for path in paths:
        found += _pictures_in(path, stop) if path.is_dir() else [path]
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, paths))}")
    return found


def _pictures_in(folder: Path, stop: Stop) -> list[Path]:
    found: list[Path] = []
    for here, folders, files in os.walk(folder):
        if stop():
            raise Stopped(f"stopped while listing {folder}")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(here, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")
        ]
    return found


def predict(
    trained: TrainedModel,
    paths: Sequence[Path],
    *,
    top: int,
    device: torch.device,
    stop: Stop = never,
    report: Report = silent,
) -> Iterator[Prediction]:
    """Say what pictures show, in their order.

    A picture that preprocessing leaves in another size than the network was trained for is
    resized and cropped to that size.

    Args:
        trained: The network; it is moved to the device.
        paths: Picture files.
        top: Answers for each.
        device: Where to compute.
        stop: Polled at every picture.
        report: Told how many are done.

    Raises:
        Stopped: ``stop`` became true.
        UsageError: The network is fed neither grey nor colour pictures, or its weights do not
            say how they are normalised.
    """
    reader = _Reader(trained.spec, trained.header)
    compute = _computer(trained, device)
    for first in range(0, len(paths), BATCH_SIZE):
        chunk = paths[first : first + BATCH_SIZE]
        read: list[tuple[Tensor, bool] | str] = []
        for path in chunk:
            if stop():
                raise Stopped("stopped while predicting")
            read.append(reader.read(path))
        yield from _answer(trained.classes, chunk, read, top, compute)
        report("predicting", first + len(chunk), len(paths))


class _Reader:
    """Reads pictures as the network is fed them."""

    def __init__(self, spec: Spec, header: WeightsHeader) -> None:
        channels, size, _ = spec.model.image_shape
        if channels not in {1, 3}:
            raise UsageError(f"pictures have 1 or 3 channels, the network takes {channels}")
        is_grey = any(isinstance(step, ToRgb) for step in header.preprocess)
        self._channels = 1 if is_grey else channels
        self._size = size
        self._preprocess = Preprocessing(header.preprocess)
        self._fit = Preprocessing(
            (Resize(type="resize", size=size), CenterCrop(type="center_crop", size=size))
        )

    def read(self, path: Path) -> tuple[Tensor, bool] | str:
        """Return ``(C, H, W)`` uint8 and whether it had to be made to fit, or what is wrong."""
        try:
            picture = self._preprocess(decode_image(path, self._channels)[None])
        except DataError as error:
            return str(error)
        fits = picture.shape[-2:] == (self._size, self._size)
        return (picture if fits else self._fit(picture))[0], not fits


@torch.inference_mode()
def _answer(
    classes: Sequence[str],
    paths: Sequence[Path],
    read: Sequence[tuple[Tensor, bool] | str],
    top: int,
    compute: Callable[[Tensor], Tensor],
) -> Iterator[Prediction]:
    """Compute the pictures that could be read, all at once."""
    pictures = [one[0] for one in read if not isinstance(one, str)]
    answers = iter(_likeliest(classes, compute(torch.stack(pictures)), top) if pictures else ())
    for path, one in zip(paths, read, strict=True):
        if isinstance(one, str):
            yield Prediction(path, error=one)
        else:
            yield Prediction(path, next(answers), fitted=one[1])


def _cpu_kernels(trained: TrainedModel) -> bool:
    """Tell whether a network may be computed by CPU kernels."""
    return trained.spec.run.cpu_kernels is not False


def _computer(trained: TrainedModel, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what computes a network's ``(B, K)`` logits of ``(B, C, H, W)`` uint8 pictures.

    Raises:
        UsageError: Its weights do not say how pictures are normalised.
    """
    header = trained.header
    if header.mean is None or header.std is None:
        raise UsageError(
            f"{trained.path} does not say how pictures are normalised: import it again with "
            "--set data.normalize='{mean: [...], std: [...]}'"
        )
    mean, std = (torch.tensor(values, device=device) for values in (header.mean, header.std))
    network, layout = prepare_for_inference(
        trained.network.to(device).eval(), cpu_kernels=_cpu_kernels(trained)
    )

    @full_precision()
    def compute(pictures: Tensor) -> Tensor:
        images = normalise(pictures.to(device), mean, std)
        return network(images.contiguous(memory_format=layout))

    return compute


def _likeliest(
    classes: Sequence[str], logits: Tensor, top: int
) -> Iterator[tuple[tuple[str, float], ...]]:
    """Yield each image's likeliest classes, with probabilities."""
    likeliest = logits.float().softmax(1).topk(min(top, len(classes)))
    for labels, found in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
        yield tuple((classes[label], p) for label, p in zip(labels, found, strict=True))
