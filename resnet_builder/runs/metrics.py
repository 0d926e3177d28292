"""``metrics.jsonl``: a line per report and evaluation, each line whole, none twice."""

from dataclasses import dataclass
from pathlib import Path

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, append_line, cut, storage_errors, sync_file, unheard
from resnet_builder.runs.records import MetricsRow


@dataclass(frozen=True, slots=True)
class MetricsLog:
    """The rows of one run.

    Attributes:
        run: The directory that they lie in.
    """

    run: RunDirectory

    @property
    def path(self) -> Path:
        """The file; it is there from the first row on."""
        return self.run.metrics

    def append(self, row: MetricsRow) -> None:
        """Add a row.

        Raises:
            StorageError: The disk is full, read-only or failing; the rows before are whole.
        """
        append_line(self.path, row.to_json())

    def sync(self) -> int:
        """Bring the rows to the disk; to be done before a checkpoint that counts on them.

        Returns:
            The size in bytes, which the checkpoint keeps for :meth:`rewind`.

        Raises:
            StorageError: The disk is full or failing.
        """
        if not self.path.exists():
            return 0
        sync_file(self.path)
        return self.path.stat().st_size

    def rewind(self, size: int, *, warn: Warn = unheard) -> None:
        """Go back to what :meth:`sync` returned once: later rows, and half ones, are dropped.

        Raises:
            StorageError: The disk is read-only or failing.
        """
        found = self._read_bytes()
        kept = found[:size]
        whole = kept[: kept.rfind(b"\n") + 1]
        if len(whole) < size:
            warn(f"{self.path} lost {size - len(whole)} of {size} bytes: rows are missing")
        if len(whole) < len(found):
            cut(self.path, len(whole))

    def read(self) -> list[MetricsRow]:
        """Return the rows, but not one that is being written.

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
            return self.path.read_bytes() if self.path.exists() else b""
