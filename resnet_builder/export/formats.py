"""The formats that weights are exported to: how a file of each is written, and used again."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch.export import Dim, ExportedProgram

from resnet_builder.builder import build
from resnet_builder.errors import UsageError
from resnet_builder.export.checking import Logits
from resnet_builder.runs.files import write_atomically
from resnet_builder.spec.schema import Spec
from resnet_builder.trained import TrainedModel
from resnet_builder.weights.file import save_weights

FormatName = Literal["safetensors", "pt2", "onnx"]

BATCH, INPUT, OUTPUT = "batch", "images", "logits"
"""What ONNX calls the first dimension, what it takes and what it gives."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_FATAL = 4  # of ONNX Runtime's severities; errors are raised as well


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file.

    Attributes:
        write: Writes a network on the CPU, with text by name, to a new file.
        load: Makes of a file, and of the spec that it is from, what computes logits.
        tolerance: By how much logits may differ from the network's, as a fraction of the largest.
    """

    write: Callable[[Path, TrainedModel, Mapping[str, str]], None]
    load: Callable[[Path, Spec], Logits]
    tolerance: float


def write_safetensors(path: Path, trained: TrainedModel, text: Mapping[str, str]) -> None:
    """Write the state dict; ``format`` is what some programs look for before they read it."""
    weights = trained.network.state_dict()
    save_weights(path, weights, trained.header, text={**text, "format": "pt"})


def load_safetensors(path: Path, spec: Spec) -> Logits:
    """Put the tensors into a new network."""
    network = build(spec, seed=0, pretrained=False)
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval()


def write_pt2(path: Path, trained: TrainedModel, text: Mapping[str, str]) -> None:
    """Write the program that the network is, with the text as extra files."""
    archive = io.BytesIO()  # where a disk is full, torch ends the process
    torch.export.save(_trace(trained), archive, extra_files=dict(text))
    write_atomically(path, [archive.getbuffer()])


def load_pt2(path: Path, spec: Spec) -> Logits:
    """Load the program; as a stream, so that the file may have any name."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


def write_onnx(path: Path, trained: TrainedModel, text: Mapping[str, str]) -> None:
    """Write an ONNX model; one of more than 1.5 GB has its weights in a second file beside it.

    Raises:
        UsageError: A package is missing or too old.
    """
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
    assert program is not None, "asked for by dynamo=True"
    program.model.metadata_props.update(text)
    program.save(path)


def load_onnx(path: Path, spec: Spec) -> Logits:
    """Start a session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


FORMATS: dict[FormatName, Format] = {
    "safetensors": Format(write_safetensors, load_safetensors, tolerance=0.0),
    "pt2": Format(write_pt2, load_pt2, tolerance=1e-4),
    "onnx": Format(write_onnx, load_onnx, tolerance=1e-4),
}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep from the user what torch and onnxscript have to say to programmers.

    They print, log and deprecate, each release in its own way; whether they did their work is
    found by computing.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(disabled)


def _trace(trained: TrainedModel) -> ExportedProgram:
    """Record what the network computes, for any number of images."""
    # Two images: a batch of one would be taken for a constant (pytorch/pytorch#157621).
    images = torch.zeros(2, *trained.spec.model.image_shape)
    program = torch.export.export(trained.network, (images,), dynamic_shapes=({0: Dim(BATCH)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this machine's folders
    return program
