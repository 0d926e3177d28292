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
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
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
from resnet_builder.model import Normalize
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

INPUT = "images"
"""Name of the input in ONNX files; that of the output is ``logits`` or ``probabilities``."""

DIMENSIONS = {"batch": 0, "height": 2, "width": 3}
"""Dimensions of the input that may be free, by their names in ONNX files."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_FATAL = 4  # highest of ONNX Runtime's severities; errors are raised as well

_BATCH_SIZES = (1, 7)
"""Batch sizes of the comparison: one and several, neither as in tracing."""

_SIDES = (0, 13, -10_000)
"""Differences of free heights and widths from the network's own in the comparison."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Outcome of an export.

    Attributes:
        weights: Path of the weights.
        files: Files that were written; the first is the one that was asked for.
        format: Format of the file.
        bytes: Size of all files.
        image: Shape of one image, ``(C, H, W)``.
        input: Description of the file's input.
        output: Description of its output.
        preprocess: Preprocessing of an image before it is normalised, as in specs.
        mean: Mean of each channel, in units where white is 1; ``None`` where it is not known, or
            where the file normalises.
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
    output: str
    preprocess: tuple[PreprocessSpec, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    difference: float


def export(
    trained: TrainedModel,
    path: str | Path,
    *,
    format: str | None = None,
    normalize: bool = False,
    softmax: bool = False,
    dynamic: Collection[str] = ("batch",),
    opset: int | None = None,
) -> ExportReport:
    """Write trained weights as a file that other programs run.

    By default, the file takes what the network takes: normalised images, in batches of any size.
    How they are normalised stands in its metadata. It is loaded again before it gets its name, and
    has to give the network's logits, computed on the CPU in fp32.

    Args:
        trained: Model on any device; it is left as it is.
        path: Path of the file to make.
        format: Format of the file; by default what ``path`` ends with: ``.safetensors``, ``.pt2``
            or ``.onnx``.
        normalize: Whether the file normalises: it then takes uint8 pixels from 0 to 255.
        softmax: Whether the file gives probabilities instead of logits: by a softmax, or, where an
            image may have several labels, by a sigmoid.
        dynamic: Dimensions of the input that are free, of :data:`DIMENSIONS`; without ``batch``,
            the file takes one image at a time.
        opset: Version of ONNX's operators; by default torch's.

    Raises:
        ExportError: The network cannot be exported, or the file computes something else.
        NonFiniteError: The network's own logits are not finite.
        StorageError: The disk is full, read-only or failing.
        UsageError: The file exists, its format is not known, an option has no effect on it, the
            weights do not say how images are normalised, or packages are missing.
    """
    path = Path(path)
    name = format or path.suffix.removeprefix(".")
    if name not in FORMATS:
        raise UsageError(
            f"{path}: unknown format '{name}'; name the file *.safetensors, *.pt2 or "
            "*.onnx, or add --format"
        )
    chosen = FORMATS[name]
    _refuse_without_effect(
        name, normalize=normalize, softmax=softmax, dynamic=set(dynamic), opset=opset
    )
    refuse_existing(path)
    program = _Program(
        _in_fp32(trained),
        normalizes=normalize,
        softmax=softmax,
        dynamic=tuple(one for one in DIMENSIONS if one in dynamic),
        opset=opset,
    )
    expected = _expected_outputs(program)
    with (
        storage_errors("write", path),
        tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder,
    ):
        draft = Path(folder, path.name)
        with _export_errors(path, name):
            chosen.write(draft, program, _metadata(program))
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
        input=program.input_text,
        output=program.output,
        preprocess=trained.header.preprocess,
        mean=None if normalize else trained.header.mean,
        std=None if normalize else trained.header.std,
        difference=difference,
    )


def _refuse_without_effect(
    name: str, *, normalize: bool, softmax: bool, dynamic: set[str], opset: int | None
) -> None:
    """Refuse what a format has no place for.

    Raises:
        UsageError: An option has no effect.
    """
    if unknown := sorted(dynamic - DIMENSIONS.keys()):
        raise UsageError(
            f"--dynamic: no dimension is named {', '.join(unknown)}; there are "
            f"{', '.join(DIMENSIONS)}"
        )
    given = {
        "--normalize": normalize,
        "--softmax": softmax,
        "--dynamic": dynamic != {"batch"},
    }
    without = (
        [flag for flag, is_given in given.items() if is_given] if name == "safetensors" else []
    )
    if opset is not None and name != "onnx":
        without.append("--opset")
    if without:
        raise UsageError(f"{', '.join(without)}: no effect on a file of the format {name}")


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """What a file computes.

    Attributes:
        trained: Model, in fp32 on the CPU.
        normalizes: Whether it normalises.
        softmax: Whether it gives probabilities.
        dynamic: Free dimensions of the input.
        opset: Version of ONNX's operators, if one was asked for.
    """

    trained: TrainedModel
    normalizes: bool
    softmax: bool
    dynamic: tuple[str, ...]
    opset: int | None

    @property
    def network(self) -> nn.Module:
        """The network, with layers before and behind it."""
        header = self.trained.header
        layers: dict[str, nn.Module] = {"network": self.trained.network}
        if self.normalizes:
            if header.mean is None or header.std is None:
                raise UsageError(
                    f"{self.trained.path} does not say how images are normalised, so the file "
                    "cannot; import it again with --preprocess or --set data.normalize=..."
                )
            layers = {"normalize": Normalize(header.mean, header.std), **layers}
        if self.softmax:
            layers["softmax"] = nn.Sigmoid() if header.multi_label else nn.Softmax(dim=1)
        return nn.Sequential(OrderedDict(layers)).eval() if len(layers) > 1 else layers["network"]

    @property
    def output(self) -> str:
        """Name of the output."""
        return "probabilities" if self.softmax else "logits"

    @property
    def input_text(self) -> str:
        """Description of the input."""
        channels, height, width = self.trained.spec.model.image_shape
        sizes = {"batch": 1, "height": height, "width": width}
        batch, *sides = (name if name in self.dynamic else str(n) for name, n in sizes.items())
        shape = f"({batch}, {channels}, {', '.join(sides)})"
        if self.has_free_sides:
            shape += f" of {self.smallest_side} pixels or more"
        if self.normalizes:
            return f"uint8 {shape}: pixels from 0 to 255; the file normalises them"
        if self.trained.header.mean is None:
            return f"float32 {shape}, normalised as for training; its weights do not say how"
        return f"float32 {shape}: pixels from 0 to 1, minus mean, divided by std"

    @property
    def has_free_sides(self) -> bool:
        """Whether height or width is free."""
        return "height" in self.dynamic or "width" in self.dynamic

    @property
    def smallest_side(self) -> int:
        """Smallest free height or width; below it, the last stage would have a single pixel."""
        return [*self.trained.network.strides.values()][-1] + 1

    def images(self, batch: int, larger: int = 0) -> Tensor:
        """Random images of a batch; free sides are larger than the network's own, or smaller."""
        channels, height, width = self.trained.spec.model.image_shape
        if "height" in self.dynamic:
            height = max(height + larger, self.smallest_side)
        if "width" in self.dynamic:
            width = max(width + 2 * larger, self.smallest_side)
        shape = (batch if "batch" in self.dynamic else 1, channels, height, width)
        generator = torch.Generator().manual_seed(0)
        if self.normalizes:
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn(shape, generator=generator)

    def trace(self) -> ExportedProgram:
        """Program of the network, for any size of the free dimensions."""
        # Two images: a batch of one would be taken for a constant (pytorch/pytorch#157621).
        free = {DIMENSIONS[name]: Dim(name) for name in self.dynamic}
        program = torch.export.export(
            self.network,
            (self.images(2),),
            dynamic_shapes=(free,),
            # Otherwise sizes are refused for which torch cannot prove that a stage has two pixels.
            prefer_deferred_runtime_asserts_over_guards=self.has_free_sides,
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names this machine's folders
        return program


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


def _metadata(program: _Program) -> dict[str, str]:
    """Text by name that says how a network is used; lists are JSON.

    An import may lack the classes and the statistics; these are left out.
    """
    header, model = program.trained.header, program.trained.spec.model
    values = {
        "classes": header.classes,
        "mean": None if program.normalizes else header.mean,
        "std": None if program.normalizes else header.std,
        "preprocess": [step.model_dump(mode="json") for step in header.preprocess],
        "image_size": model.image_size,
    }
    return {
        **{name: json.dumps(value) for name, value in values.items() if value is not None},
        "input": program.input_text,
        "output": program.output,
        "spec": header.spec,
        "exported_by": f"resnet-builder {package_version()}",
    }


# Comparison with the network.


@torch.no_grad()
def _expected_outputs(program: _Program) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images, each with the network's output."""
    differences = _SIDES if program.has_free_sides else (0,)
    batches = [program.images(batch, larger) for larger in differences for batch in _BATCH_SIZES]
    network = program.network
    try:
        expected = [(images, network(images)) for images in batches]
    except RuntimeError as error:
        raise ExportError(
            f"the network cannot compute images of other sizes, so these cannot be free: {error}"
        ) from error
    if not all(output.isfinite().all() for _, output in expected):
        raise NonFiniteError(f"{program.trained.path}: its logits of random images are not finite")
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
        write: Function that writes a program, with metadata, to a new file.
        load: Function that loads a file, given its spec, and returns what computes its logits.
        tolerance: Largest difference of the logits from the network's that is allowed, as a
            fraction of the largest.
    """

    write: Callable[[Path, _Program, Mapping[str, str]], None]
    load: Callable[[Path, Spec], Logits]
    tolerance: float


def _write_safetensors(path: Path, program: _Program, text: Mapping[str, str]) -> None:
    # Some programs look for "format" before they read a file.
    trained = program.trained
    text = {**text, "format": "pt"}
    save_weights(path, trained.network.state_dict(), trained.header, text=text)


def _load_safetensors(path: Path, spec: Spec) -> Logits:
    network = build(spec, seed=0, pretrained=False)
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval()


def _write_pt2(path: Path, program: _Program, text: Mapping[str, str]) -> None:
    archive = io.BytesIO()  # where a disk is full, torch ends the process
    torch.export.save(program.trace(), archive, extra_files=dict(text))
    write_atomically(path, [archive.getbuffer()])


def _load_pt2(path: Path, spec: Spec) -> Logits:
    with path.open("rb") as file:  # a stream, so that the file may have any name
        return torch.export.load(file).module()


def _write_onnx(path: Path, program: _Program, text: Mapping[str, str]) -> None:
    """Write an ONNX model; one of more than 1.5 GB has its weights in a second file beside it."""
    try:
        for package in _ONNX_PACKAGES:
            importlib.import_module(package)  # better missed before the work than after it
        written = torch.onnx.export(
            program.trace(),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[program.output],
            dynamic_shapes=({DIMENSIONS[name]: name for name in program.dynamic},),
            opset_version=program.opset,
        )
    except ImportError as error:
        raise UsageError(
            f"ONNX needs further packages, or newer ones ({error}): "
            "pip install --upgrade 'resnet-builder[export]'"
        ) from error
    assert written is not None, "dynamo=True returns a program"
    opset = written.model.opset_imports.get("")
    if program.opset not in {None, opset}:  # torch keeps its own where it cannot convert
        raise ValueError(f"torch writes opset {opset}, and cannot convert it to {program.opset}")
    written.model.metadata_props.update(text)
    written.save(path)


def _load_onnx(path: Path, spec: Spec) -> Logits:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONNX_FATAL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_safetensors, _load_safetensors, tolerance=0.0),
    "pt2": Format(_write_pt2, _load_pt2, tolerance=1e-4),
    "onnx": Format(_write_onnx, _load_onnx, tolerance=1e-4),
}
