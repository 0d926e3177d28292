"""Records of a run, and the environment and spec changes that they record.

``metrics.jsonl``, ``changes.jsonl``, ``result.json``, ``env.json`` and ``data.json`` hold records:
JSON with a ``schema`` number. A field may be added under the same number, and readers ignore
fields that they do not know; any other change raises the number, and a reader refuses a number
above its own.
"""

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resnet_builder.errors import CheckpointError, StorageError, UsageError, dotted
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import (
    Warn,
    append_line,
    ignore,
    storage_errors,
    sync_file,
    truncate,
    write_atomically,
)
from resnet_builder.spec.differences import spec_differences
from resnet_builder.spec.dump import dump_value, plain_data
from resnet_builder.spec.schema import Spec
from resnet_builder.system import open_regular

COSMETIC = (
    "name",
    "run",
    "published",
    "expect",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.activation_checkpointing",
)
"""Keys that change no bit of a result. What comes of ``run`` is compared with ``env.json``.

``train.evaluate_every`` is not one of them: evaluations choose the best weights.
"""

SPLIT = ("data.validation", "data.split_seed")
"""Keys that choose the validation images."""

Kind = Literal["cosmetic", "trajectory", "split", "architecture", "environment"]

_PACKAGES = ("resnet-builder", "torch", "torchvision", "numpy", "pillow")

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[float, Field(ge=0)]
SelectedOn = Literal["val", "none"]


class Record(BaseModel):
    """Base of the records; the default of ``schema`` is the number of the present form.

    Names with a dot are aliases: ``val_top1`` in Python is ``val.top1`` in JSON.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", validate_by_name=True, validate_by_alias=True
    )

    schema_number: int = Field(alias="schema")

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the record as JSON, without ``None``; NaN and infinity become null."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """Return the record that JSON holds.

        Args:
            text: JSON of the record.
            where: Name of the file, for messages.

        Raises:
            UsageError: A newer release wrote it.
            CheckpointError: It is damaged.
        """
        try:
            refuse_newer(_Numbered.model_validate_json(text).number, cls.present(), where)
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise CheckpointError(f"{where} is damaged: {first_problem(error)}") from error

    @classmethod
    def present(cls) -> int:
        """Return the number of the form that this release writes."""
        number: int = cls.model_fields["schema_number"].default
        return number

    def write(self, path: Path) -> None:
        """Write the record to a file of its own, atomically.

        Raises:
            StorageError: The disk is full, read-only or failing.
        """
        write_atomically(path, [self.to_json(indent=2).encode() + b"\n"])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record that a file holds.

        Raises:
            UsageError: A newer release wrote it.
            CheckpointError: It is damaged.
            StorageError: The file is missing or cannot be read.
        """
        with storage_errors("read", path), open_regular(path) as file:
            text = file.read()
        return cls.from_json(text, str(path))


class _Numbered(BaseModel):
    number: int = Field(alias="schema")


def refuse_newer(found: int, known: int, where: str) -> None:
    """Check that this release knows the number of a record's form.

    Raises:
        UsageError: A newer release wrote the record.
    """
    if found > known:
        raise UsageError(
            f"{where} was written by a newer resnet-builder (schema {found}; "
            f"this one reads up to {known}): upgrade resnet-builder"
        )


def first_problem(error: ValidationError) -> str:
    """Return one line about the first problem of a record, with its place."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


class RuntimeConfig(BaseModel):
    """Runtime configuration: how the network is computed, decided once and repeated on resume.

    Attributes:
        device: Type of the device.
        precision: Precision of training.
        memory_format: Memory format of images and weights.
        compile: Whether ``torch.compile`` compiles the network.
        fused: Whether one kernel updates all weights.
        cpu_kernels: Instruction set of the CPU kernels; ``None`` where torch's operations compute.
        threads: Threads of an operation.
        world_size: Processes that train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    precision: Literal["fp32", "bf16"]
    memory_format: Literal["channels_last", "contiguous"]
    compile: bool
    fused: bool
    cpu_kernels: str | None = None
    threads: Annotated[int, Field(ge=1, le=1_024)]
    world_size: Annotated[int, Field(ge=1)]


class EnvRecord(Record):
    """Environment of a run: what decides the bits of a training besides spec, plugins and data.

    Checkpoints hold it, and it is compared when a run is resumed; ``env.json`` is a copy to read.

    Attributes:
        runtime: Runtime configuration.
        device: Name of the hardware.
        versions: Versions of Python and of the packages that compute.
        flags: Global flags of torch.
        variables: Environment variables that change what libraries compute, as far as they are set.
        plugins: SHA-256 digests of the code of the plugins, by name.
        platform: Operating system and architecture; recorded, and not compared.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    runtime: RuntimeConfig
    device: str
    versions: dict[str, str]
    flags: dict[str, str] = {}
    variables: dict[str, str] = {}
    plugins: dict[str, str] = {}
    platform: str = Field(default_factory=platform.platform)


class DataRecord(Record):
    """``data.json``: the images that a run is trained on.

    Attributes:
        fingerprint: Digest of all images, labels and classes.
        classes: Names of the classes, by label.
        images: Numbers of images by split, after validation images were set aside.
        class_counts: Numbers of training images by class, of which balanced weights are made.
        validation: Indices of the validation images among the dataset's training images.
        parts: Digests of parts of the data by name, which tell where the data changed.
        skipped: Names of images that were left out because they cannot be decoded.
        mean: Mean of each channel, by which images are normalised.
        std: Standard deviation of each channel.
        multi_label: Whether an image may have several labels.
        pretrained_sha256: Digest of the file of pretrained weights, if there was one.
        pretrained_commit: Commit of their repository on the Hugging Face Hub, if they are there.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    fingerprint: str
    classes: tuple[str, ...]
    images: dict[str, Count]
    class_counts: dict[str, Count]
    validation: tuple[Count, ...]
    parts: dict[str, str] = {}
    skipped: tuple[str, ...] = ()
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multi_label: bool = False
    pretrained_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    pretrained_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None


def data_fingerprint(run: RunDirectory) -> str | None:
    """Digest of the images of a run; ``None`` if it cannot be read."""
    try:
        return DataRecord.read(run.data).fingerprint
    except (CheckpointError, StorageError):
        return None


class Change(Record):
    """A line of ``changes.jsonl``: something that is not as it was when a run is resumed.

    Attributes:
        time: Time of the change, in UTC.
        path: Place in the spec, as ``train.optimizer.lr``, or in ``env.json``.
        before: Value in the run, as plain data; left out if there is none, like ``after``.
        after: Value that the run is resumed with.
        kind: ``cosmetic`` changes are made. ``trajectory`` changes need ``--allow-spec-change``,
            ``environment`` changes ``--allow-inexact``. ``split`` changes are refused once there
            are checkpoints, and ``architecture`` changes always.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    path: str
    before: Any = None
    after: Any = None
    kind: Kind

    @property
    def needs_consent(self) -> bool:
        """Whether it needs ``--allow-spec-change``."""
        return self.kind in {"trajectory", "split"}

    def __str__(self) -> str:
        before, after = (
            "nothing" if value is None else dump_value(value) for value in (self.before, self.after)
        )
        return f"{self.path}: {before} in the run, {after} now"


def compare_specs(before: Spec, after: Spec) -> list[Change]:
    """Return the differences of a run's spec and another, both resolved."""
    return [
        Change(
            path=dotted(difference.path),
            before=plain_data(difference.before),
            after=plain_data(difference.after),
            kind=_kind(dotted(difference.path)),
        )
        for difference in spec_differences(before, after)
    ]


def is_cosmetic(path: str) -> bool:
    """Whether the value at a place of the spec changes no bit of a result."""
    return any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in COSMETIC)


def read_changes(run: RunDirectory) -> list[Change]:
    """Return the lines of ``changes.jsonl``; one that a killed process left half-written is not.

    Raises:
        StorageError: The file cannot be read.
        UsageError: A newer release wrote it.
    """
    changes = []
    with storage_errors("read", run.changes):
        try:
            with open_regular(run.changes) as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return []
    for line in lines:
        with suppress(CheckpointError):
            changes.append(Change.from_json(line, str(run.changes)))
    return changes


def _kind(path: str) -> Kind:
    if path.startswith(SPLIT):
        return "split"
    if is_cosmetic(path):
        return "cosmetic"
    return "trajectory" if path.startswith(("train", "data", "plugins")) else "architecture"


METRIC_WORDS = {
    "loss": "loss",
    "top1": "top-1",
    "map": "mAP",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
}
"""Words for the metrics that may select the best weights."""


class MetricsRow(Record):
    """A line of ``metrics.jsonl``: a report while training, or an evaluation.

    Attributes:
        event: Source of the numbers.
        step: Number of optimizer steps done.
        epoch: Number of passes over the training images done.
        lr: Learning rate of the last step.
        images_per_second: Throughput since the report before.
        data_share: Fraction of the time of these steps in which the process read, augmented or
            waited for batches.
        seconds: Training time so far, over all of the run's sessions.
        precision: Precision of an evaluation.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    event: Literal["train", "validation", "test"]
    step: Count
    epoch: Count
    lr: float | None = None
    images_per_second: Duration | None = None
    data_share: Fraction | None = None
    seconds: Duration | None = None
    precision: Literal["fp32", "bf16"] | None = None
    train_loss: float | None = Field(None, alias="train.loss")
    train_top1: Fraction | None = Field(None, alias="train.top1")
    val_loss: float | None = Field(None, alias="val.loss")
    val_top1: Fraction | None = Field(None, alias="val.top1")
    val_top5: Fraction | None = Field(None, alias="val.top5")
    val_map: Fraction | None = Field(None, alias="val.map")
    val_macro_recall: Fraction | None = Field(None, alias="val.macro_recall")
    val_macro_f1: Fraction | None = Field(None, alias="val.macro_f1")
    test_loss: float | None = Field(None, alias="test.loss")
    test_top1: Fraction | None = Field(None, alias="test.top1")
    test_top5: Fraction | None = Field(None, alias="test.top5")
    test_map: Fraction | None = Field(None, alias="test.map")
    test_macro_recall: Fraction | None = Field(None, alias="test.macro_recall")
    test_macro_f1: Fraction | None = Field(None, alias="test.macro_f1")


@dataclass(frozen=True, slots=True)
class MetricsLog:
    """``metrics.jsonl``: one line for each report and evaluation, all whole and none twice.

    Attributes:
        run: The run whose file it is.
    """

    run: RunDirectory

    @property
    def path(self) -> Path:
        """The file, which exists from the first row on."""
        return self.run.metrics

    def append(self, row: MetricsRow) -> None:
        """Append a row.

        Raises:
            StorageError: The disk is full, read-only or failing; the earlier rows are whole.
        """
        append_line(self.path, row.to_json())

    def sync(self) -> int:
        """Flush the rows to the disk, before a checkpoint that records the file's size.

        Returns:
            The size in bytes, for :meth:`rewind`.

        Raises:
            StorageError: The disk is full or failing.
        """
        if not self.path.exists():
            return 0
        sync_file(self.path)
        return self.path.stat().st_size

    def rewind(self, size: int, *, warn: Warn = ignore) -> None:
        """Truncate the file to a size that :meth:`sync` returned, and drop a half-written row.

        Raises:
            StorageError: The disk is read-only or failing.
        """
        found = self._read_bytes()
        kept = found[:size]
        whole = kept[: kept.rfind(b"\n") + 1]
        if len(whole) < size:
            warn(f"{self.path} lost {size - len(whole)} of {size} bytes: rows are missing")
        if len(whole) < len(found):
            truncate(self.path, len(whole))

    def read(self) -> list[MetricsRow]:
        """Return the whole rows; one that is being written is left out.

        Raises:
            UsageError: A newer release wrote them.
            CheckpointError: A line is damaged.
            StorageError: The file cannot be read.
        """
        *lines, _unfinished = self._read_bytes().split(b"\n")
        return [
            MetricsRow.from_json(line, f"{self.path}:{number}")
            for number, line in enumerate(lines, start=1)
        ]

    def _read_bytes(self) -> bytes:
        with storage_errors("read", self.path):
            try:
                with open_regular(self.path) as file:
                    return file.read()
            except FileNotFoundError:
                return b""


def curve_rows(rows: Iterable[MetricsRow]) -> Iterator[MetricsRow]:
    """Yield the rows that are points of curves, the first of each event and step.

    The selected weights are evaluated once more at the end: that is no point of a curve.
    """
    done: set[tuple[str, int]] = set()
    for row in rows:
        if (row.event, row.step) not in done:
            done.add((row.event, row.step))
            yield row


class Comparison(BaseModel):
    """A published result, and the difference of this run's from it.

    Attributes:
        source: Publication that reports it.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)

    source: str
    test_top1: Fraction | None = Field(None, alias="test.top1")
    test_top1_difference: float | None = Field(None, alias="test.top1.difference")
    test_top5: Fraction | None = Field(None, alias="test.top5")
    test_top5_difference: float | None = Field(None, alias="test.top5.difference")


class ClassScores(BaseModel):
    """Precision, recall and F1 of a class, or their means over all classes, as fractions.

    Attributes:
        images: Number of images that have the class.
        precision: Fraction of the images predicted as the class that have it. 0 if there are none;
            absent if no image has it either.
        recall: Fraction of the images that have the class that are predicted as it. Absent if there
            are none.
        f1: Harmonic mean of both.
    """

    model_config = ConfigDict(frozen=True)

    images: Count
    precision: Fraction | None = None
    recall: Fraction | None = None
    f1: Fraction | None = None


class ResultRecord(Record):
    """``result.json``: the result of a run; every accuracy is a fraction.

    Attributes:
        spec_sha256: Digest of the bytes of ``spec.yaml``.
        steps: Number of optimizer steps done.
        planned_steps: Number of steps of the recipe.
        early_stopped: Whether early stopping ended the training before the last planned step.
        selected_on: Split that selected the best weights; ``none`` if they are the last.
        selected_step: Step of the selected weights.
        monitored: Metric that selected them, as ``top1`` or ``macro_recall``.
        monitored_value: Its value.
        val_map: Mean average precision, where images have several labels, as ``test_map``. Top-1 is
            then the fraction of images whose labels are all predicted right.
        test_micro: Precision, recall and F1 of all decisions together, with several labels.
        test_by_class: Precision, recall and F1 of each class on the test images.
        test_macro: Their means over the classes.
        test_weighted: Their means over the classes, by their numbers of images.
        macs: Multiply-adds for one image.
        seconds: Training time, over all of the run's sessions.
        images_per_second: Training images over that time.
        peak_memory: Most bytes that the last process held: on CUDA tensors on the device, otherwise
            all of its memory. Absent where nobody counts it.
        device: Name of the hardware, and its number.
        published: Result that the spec's source reports, and the difference.
    """

    schema_number: Literal[1] = Field(1, alias="schema")
    spec_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    seed: Count
    steps: Count
    planned_steps: Count
    early_stopped: bool
    selected_on: SelectedOn
    selected_step: Count
    monitored: str | None = None
    monitored_value: float | None = None
    val_top1: Fraction | None = Field(None, alias="val.top1")
    val_map: Fraction | None = Field(None, alias="val.map")
    test_top1: Fraction | None = Field(None, alias="test.top1")
    test_top5: Fraction | None = Field(None, alias="test.top5")
    test_map: Fraction | None = Field(None, alias="test.map")
    test_micro: ClassScores | None = Field(None, alias="test.micro")
    test_macro: ClassScores | None = Field(None, alias="test.macro")
    test_weighted: ClassScores | None = Field(None, alias="test.weighted")
    test_by_class: dict[str, ClassScores] | None = Field(None, alias="test.by_class")
    parameters: Count
    macs: Count
    seconds: Duration
    images_per_second: Duration
    peak_memory: Count | None = None
    device: str
    precision: Literal["fp32", "bf16"]
    versions: dict[str, str]
    published: Comparison | None = None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def package_version() -> str:
    """Return the version of this package."""
    return _version("resnet-builder")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that is not installed
