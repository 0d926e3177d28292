"""Export of trained weights to files that other programs run: safetensors, pt2 and ONNX.

A file is written under a temporary name, loaded again, compared with the network on random
images, and published only then.
"""

import contextlib
import importlib
import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from resnet_builder.builder import build
from resnet_builder.errors import (
    ExportError,
    NonFiniteError,
    ResnetBuilderError,
    StorageError,
    UsageError,
)
from resnet_builder.inference import TrainedModel
from resnet_builder.runs.files import (
    TEMPORARY,
    refuse_existing,
    storage_errors,
    sync_directory,
    sync_file,
    write_atomically,
)
from resnet_builder.runs.records import package_version
from resnet_builder.spec.schema import PreprocessSpec, Spec
from resnet_builder.weights.file import save_weights

Logits = Callable[[Tensor], Tensor]
"""Function from ``(N, C, H, W)`` to ``(N, num_classes)``, in fp32 on the CPU."""

BATCH, INPUT, OUTPUT = "batch", "images", "logits"
"""Names in ONNX files of the first dimension, the input and the output."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_FATAL = 4  # highest of ONNX Runtime's severities; errors are raised as well

_BATCH_SIZES = (1, 7)
"""Batch sizes of the comparison: one and several, neither as in tracing."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Outcome of an export.

    Attributes:
        weights: Path of the weights.
        files: Files that were written; the first is the one that was asked for.
        format: Format of the file.
        bytes: Size of all files.
        image: Shape of one image, ``(C, H, W)``.
        input: Description of the network's input.
        preprocess: Preprocessing of an image before it is normalised, as in specs.
        mean: Mean of each channel, in units where white is 1; ``None`` where it is not known.
        std: Standard deviation of each channel, in the same units.
        difference: Largest difference of the file's logits from the network's, on random images,
            as a fraction of the largest logit.
    """

    weights: Path
    files: tuple[Path, ...]
    format: str
    bytes: int
    image: tuple[int, int, int]
    input: str
    preprocess: tuple[PreprocessSpec, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    difference: float


def export(trained: TrainedModel, path: str | Path, *, format: str | None = None) -> ExportReport:
    """Write trained weights as a file that other programs run.

    The file takes what the network takes: normalised images, in batches of any size. How they are
    normalised stands in its metadata. It is loaded again before it gets its name, and has to give
    the network's logits, computed on the CPU in fp32.

    Args:
        trained: Model on any device; it is left as it is.
        path: Path of the file to make.
        format: Format of the file; by default what ``path`` ends with: ``.safetensors``, ``.pt2``
            or ``.onnx``.

    Raises:
        ExportError: The network cannot be exported, or the file computes something else.
        NonFiniteError: The network's own logits are not finite.
        StorageError: The disk is full, read-only or failing.
        UsageError: The file exists, its format is not known, or packages are missing.
    """
    path = Path(path)
    name = format or path.suffix.removeprefix(".")
    if name not in FORMATS:
        raise UsageError(
            f"{path}: unknown format '{name}'; name the file *.safetensors, *.pt2 or "
            "*.onnx, or add --format"
        )
    chosen = FORMATS[name]
    refuse_existing(path)
    trained = _in_fp32(trained)
    expected = _expected_logits(trained)
    with (
        storage_errors("write", path),
        tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder,
    ):
        draft = Path(folder, path.name)
        with _export_errors(path, name):
            chosen.write(draft, trained, _metadata(trained))
            difference = _largest_difference(expected, chosen.load(draft, trained.spec))
        # Wrong files happen: with onnxscript 0.5.6, where a block's shortcut is a projection, two
        # convolutions get one bias (pytorch/pytorch#166797).
        if not difference <= chosen.tolerance:
            raise ExportError(
                f"{path} is not written: loaded again, its logits differ from the network's by "
                f"{difference:.2g} of the largest, and {chosen.tolerance:g} is allowed; other "
                "releases of torch, onnxscript and onnxruntime may do better"
            )
        files = _publish(Path(folder), path)
    return ExportReport(
        weights=trained.path,
        files=files,
        format=name,
        bytes=sum(file.stat().st_size for file in files),
        image=trained.spec.model.image_shape,
        input=_input_text(trained),
        preprocess=trained.header.preprocess,
        mean=trained.header.mean,
        std=trained.header.std,
        difference=difference,
    )


def _in_fp32(trained: TrainedModel) -> TrainedModel:
    """Copy of a model on the CPU, whatever device, type and layout it is in."""
    # The seed keeps torch's global generator as it is.
    network = build(trained.spec, seed=0, pretrained=False)
    network.load_state_dict(trained.network.state_dict())
    return replace(trained, network=network.eval())


@contextlib.contextmanager
def _export_errors(path: Path, name: str) -> Iterator[None]:
    """Context that turns any error of torch and ONNX into one line, and hides their messages.

    They print, log and deprecate, each release in its own way, for programmers; whether they did
    their work is found by computing.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except StorageError as error:  # of the draft, which no user knows: the caller names the file
        raise error.__cause__ or error from None
    except (ResnetBuilderError, OSError, MemoryError):
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"{path} is not written: the network cannot be exported to {name}: {first}"
        ) from error
    finally:
        logging.disable(disabled)


def _publish(folder: Path, path: Path) -> tuple[Path, ...]:
    """Move every file of a folder beside it, all or none; return first the one that was asked for.

    Raises:
        UsageError: A file of such a name exists.
    """
    # The file that was asked for comes last: it names the others.
    drafts = sorted(folder.iterdir(), key=lambda draft: draft.name == path.name)
    published: list[Path] = []
    try:
        for draft in drafts:
            sync_file(draft)
            file = path.with_name(draft.name)
            try:
                os.link(draft, file)  # unlike rename, it does not replace a file of that name
            except FileExistsError:
                refuse_existing(file)
                raise
            except OSError:  # there are file systems without links
                os.rename(draft, file)
            published.append(file)
        sync_directory(path.parent)
    except BaseException:
        for file in published:
            file.unlink()
        raise
    return tuple(reversed(published))


# Metadata of a file.


def _metadata(trained: TrainedModel) -> dict[str, str]:
    """Text by name that says how a network is used; lists are JSON.

    An import may lack the classes and the statistics; these are left out.
    """
    header = trained.header
    values = {
        "classes": header.classes,
        "mean": header.mean,
        "std": header.std,
        "preprocess": [step.model_dump(mode="json") for step in header.preprocess],
        "image_size": trained.spec.model.image_size,
    }
    return {
        **{name: json.dumps(value) for name, value in values.items() if value is not None},
        "input": _input_text(trained),
        "spec": header.spec,
        "exported_by": f"resnet-builder {package_version()}",
    }


def _input_text(trained: TrainedModel) -> str:
    shape = ", ".join(map(str, trained.spec.model.image_shape))
    if trained.header.mean is None:
        return f"float32 (batch, {shape}), normalised as for training; its weights do not say how"
    return f"float32 (batch, {shape}): pixels from 0 to 1, minus mean, divided by std"


# Comparison with the network.


@torch.no_grad()
def _expected_logits(trained: TrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images, each with the network's logits."""
    generator = torch.Generator().manual_seed(0)
    shape = trained.spec.model.image_shape
    batches = [torch.randn(number, *shape, generator=generator) for number in _BATCH_SIZES]
    expected = [(images, trained.network(images)) for images in batches]
    if not all(logits.isfinite().all() for _, logits in expected):
        raise NonFiniteError(f"{trained.path}: its logits of random images are not finite")
    return expected


@torch.no_grad()
def _largest_difference(expected: list[tuple[Tensor, Tensor]], compute: Logits) -> float:
    """Largest difference of logits, as a fraction of the largest of their batch."""
    largest = 0.0
    for images, logits in expected:
        found = compute(images)
        if found.shape != logits.shape or not found.isfinite().all():
            return math.inf
        smallest = torch.finfo(logits.dtype).tiny  # a divisor where all logits are zero
        difference = (found - logits).abs().max() / logits.abs().max().clamp(min=smallest)
        largest = max(largest, float(difference))
    return largest


# Formats.


@dataclass(frozen=True, slots=True)
class Format:
    """File format of an export.

    Attributes:
        write: Function that writes a model on the CPU, with metadata, to a new file.
        load: Function that loads a file, given its spec, and returns what computes its logits.
        tolerance: Largest difference of the logits from the network's that is allowed, as a
            fraction of the largest.
    """

    write: Callable[[Path, TrainedModel, Mapping[str, str]], None]
    load: Callable[[Path, Spec], Logits]
    tolerance: float


def _write_safetensors(path: Path, trained: TrainedModel, text: Mapping[str, str]) -> None:
    # Some programs look for "format" before they read a file.
    weights = trained.network.state_dict()
    save_weights(path, weights, trained.header, text={**text, "format": "pt"})


def _load_safetensors(path: Path, spec: Spec) -> Logits:
    network = build(spec, seed=0, pretrained=False)
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval()


def _write_pt2(path: Path, trained: TrainedModel, text: Mapping[str, str]) -> None:
    archive = io.BytesIO()  # where a disk is full, torch ends the process
    torch.export.save(_trace(trained), archive, extra_files=dict(text))
    write_atomically(path, [archive.getbuffer()])


def _load_pt2(path: Path, spec: Spec) -> Logits:
    with path.open("rb") as file:  # a stream, so that the file may have any name
        return torch.export.load(file).module()


def _write_onnx(path: Path, trained: TrainedModel, text: Mapping[str, str]) -> None:
    """Write an ONNX model; one of more than 1.5 GB has its weights in a second file beside it."""
    try:
        for package in _ONNX_PACKAGES:
            importlib.import_module(package)  # better missed before the work than after it
        program = torch.onnx.export(
            _trace(trained),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: BATCH},),
        )
    except ImportError as error:
        raise UsageError(
            f"ONNX needs further packages, or newer ones ({error}): "
            "pip install --upgrade 'resnet-builder[export]'"
        ) from error
    assert program is not None, "dynamo=True returns a program"
    program.model.metadata_props.update(text)
    program.save(path)


def _load_onnx(path: Path, spec: Spec) -> Logits:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONNX_FATAL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _trace(trained: TrainedModel) -> ExportedProgram:
    """Program of the network, for any number of images."""
    # Two images: a batch of one would be taken for a constant (pytorch/pytorch#157621).
    images = torch.zeros(2, *trained.spec.model.image_shape)
    program = torch.export.export(trained.network, (images,), dynamic_shapes=({0: Dim(BATCH)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this machine's folders
    return program


FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_safetensors, _load_safetensors, tolerance=0.0),
    "pt2": Format(_write_pt2, _load_pt2, tolerance=1e-4),
    "onnx": Format(_write_onnx, _load_onnx, tolerance=1e-4),
}
