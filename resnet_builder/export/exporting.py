"""The way from trained weights to an exported file: write, load again, compare, publish."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_builder.builder import build
from resnet_builder.errors import ExportError, ResnetBuilderError, UsageError
from resnet_builder.export.checking import expected_logits, largest_difference
from resnet_builder.export.description import describe, input_text
from resnet_builder.export.formats import FORMATS, FormatName, silenced
from resnet_builder.runs.files import TEMPORARY, storage_errors, sync_directory, sync_file
from resnet_builder.trained import TrainedModel

_ENDINGS: dict[str, FormatName] = {f".{name}": name for name in FORMATS}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        files: What was written; the first is the one that was asked for.
        format: Of the file.
        size: Bytes of all files.
        image: Shape of one image, ``(C, H, W)``.
        input: What the network is fed, in words.
        difference: By how much the logits of a random image differ from the network's at most,
            as a fraction of the largest logit.
    """

    files: tuple[Path, ...]
    format: FormatName
    size: int
    image: tuple[int, int, int]
    input: str
    difference: float


def export(
    trained: TrainedModel, path: str | Path, *, format: FormatName | None = None
) -> ExportReport:
    """Write trained weights as a file that other programs run.

    The file takes what the network takes: normalised images, in batches of any size. How they are
    normalised stands in its metadata. It is loaded again before it gets its name, and has to give
    the network's logits, computed on the CPU in fp32.

    Args:
        trained: The network, on any device; it is left as it is.
        path: The file to make.
        format: By default what ``path`` ends with: ``.safetensors``, ``.pt2`` or ``.onnx``.

    Raises:
        ExportError: The network cannot be exported, or the file computes something else.
        NonFiniteError: The network's own logits are not finite.
        StorageError: The disk is full, read-only or failing.
        UsageError: The file exists, its format is not known, or packages are missing.
    """
    path = Path(path)
    name = _chosen_format(path, format)
    chosen = FORMATS[name]
    if os.path.lexists(path):
        raise _existing(path)
    trained = _in_fp32(trained)
    expected = expected_logits(trained)
    with storage_errors("write", path), _draft_folder(path) as folder:
        draft = folder / path.name
        with _export_errors(path, name):
            chosen.write(draft, trained, describe(trained))
            difference = largest_difference(expected, chosen.load(draft, trained.spec))
        _refuse_difference(path, difference, chosen.tolerance)
        files = _publish(folder, path)
    return ExportReport(
        files=files,
        format=name,
        size=sum(file.stat().st_size for file in files),
        image=trained.spec.model.image_shape,
        input=input_text(trained),
        difference=difference,
    )


def _chosen_format(path: Path, format: FormatName | None) -> FormatName:
    if format is None and path.suffix not in _ENDINGS:
        raise UsageError(
            f"{path} ends in none of {', '.join(_ENDINGS)}; let it, or give --format (format=)"
        )
    name = format or _ENDINGS[path.suffix]
    if name not in FORMATS:
        raise UsageError(f"there is no format '{name}'; there are {', '.join(FORMATS)}")
    return name


def _existing(path: Path) -> UsageError:
    return UsageError(f"{path} exists, and is not overwritten; choose another name")


def _in_fp32(trained: TrainedModel) -> TrainedModel:
    """Copy a network to the CPU, whatever device, type and layout it is in."""
    # Seeded only so that torch's global generator stays as it is.
    network = build(trained.spec, seed=0, pretrained=False)
    network.load_state_dict(trained.network.state_dict())
    return replace(trained, network=network.eval())


@contextlib.contextmanager
def _draft_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside a file for what is not checked yet; it is removed in the end."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _export_errors(path: Path, name: FormatName) -> Iterator[None]:
    """Turn what torch and ONNX raise, which can be anything, into one error in one line."""
    try:
        with silenced():
            yield
    except (ResnetBuilderError, OSError, MemoryError):
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"{path} is not written: the network cannot be exported to {name}: {first}"
        ) from error


def _refuse_difference(path: Path, difference: float, tolerance: float) -> None:
    # This happens: with onnxscript 0.5.6, where a block's shortcut is a projection, two
    # convolutions get one bias (pytorch/pytorch#166797).
    if not difference <= tolerance:
        raise ExportError(
            f"{path} is not written: loaded again, its logits differ from the network's by "
            f"{difference:.2g} of the largest, and {tolerance:g} is allowed; other releases of "
            "torch, onnxscript and onnxruntime may do better"
        )


def _publish(folder: Path, path: Path) -> tuple[Path, ...]:
    """Give every file of a folder its place beside it; last the one that refers to the others.

    Returns:
        The files; first the one that was asked for.

    Raises:
        UsageError: A file of such a name exists.
    """
    drafts = sorted(folder.iterdir(), key=lambda draft: draft.name == path.name)
    published: list[Path] = []
    try:
        for draft in drafts:
            sync_file(draft)
            published.append(_name(draft, path.with_name(draft.name)))
        sync_directory(path.parent)
    except BaseException:
        for file in published:
            file.unlink()
        raise
    return tuple(reversed(published))


def _name(draft: Path, path: Path) -> Path:
    """Give a file its name; a link does so without replacing a file that took it meanwhile."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise _existing(path) from None
    except OSError:  # there are file systems without links
        os.rename(draft, path)
    return path
