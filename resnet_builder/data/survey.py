"""Looking at every picture of a folder before any training: what is broken is told at once."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnet_builder.data.interfaces import LoadContext
from resnet_builder.data.kept import Findings, read_findings, write_findings
from resnet_builder.data.listing import Files, Listing
from resnet_builder.data.pictures import Reader, decode, inspect
from resnet_builder.data.streamed import read_ahead
from resnet_builder.errors import DataError, Stopped

DIGEST_BYTES = 32
"""Of a SHA-256."""

_BATCH = 64
_BROKEN = b"\0" * DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Survey:
    """Looks at every picture of a listing, unless an earlier run has, and no file changed since.

    A file has changed if its size or the time of its last change has.

    Attributes:
        root: The folder that the pictures' names are relative to.
        listing: The pictures.
        reader: Makes images of them.
        context: Where findings are kept, and who is told.
    """

    root: Path
    listing: Listing
    reader: Reader
    context: LoadContext

    def decoded(self) -> tuple[Findings, str | None]:
        """Decode every picture.

        Returns:
            Images ``(N, C, H, W)`` by split, and why they could not be kept, if so.

        Raises:
            DataError: Pictures have several sizes, or one cannot be found.
            Stopped: ``context.stop`` became true.
        """
        return self._findings("decoded", repr(self.reader.preprocess), self._decode)

    def inspected(self) -> tuple[Findings, str | None]:
        """Make sure that every picture can be decoded.

        Returns:
            The files' digests, ``(N, 32)`` by split, and why they could not be kept, if so.

        Raises:
            DataError: A picture cannot be found.
            Stopped: ``context.stop`` became true.
        """
        return self._findings("inspected", "", self._inspect)

    def _findings(
        self, place: str, how: str, look: Callable[[dict[str, str]], dict[str, Tensor]]
    ) -> tuple[Findings, str | None]:
        splits = self.listing.splits
        what = (str(self.root.resolve()), self.reader.channels, how, splits, self._stamps())
        key = hashlib.sha256(repr(what).encode()).hexdigest()[:32]
        path = self.context.data_dir / place / f"{key}.safetensors"
        counts = {split: len(files.names) for split, files in splits.items()}
        if (kept := read_findings(path, counts)) is not None:
            return kept, None
        broken: dict[str, str] = {}
        findings = Findings(look(broken), broken)
        return findings, write_findings(path, findings)

    def _decode(self, broken: dict[str, str]) -> dict[str, Tensor]:
        """Decode every picture; what cannot be is added to ``broken``."""
        splits = self.listing.splits
        return {split: self._decode_split(split, files, broken) for split, files in splits.items()}

    def _decode_split(self, split: str, files: Files, broken: dict[str, str]) -> Tensor:
        count = len(files.names)
        images = torch.zeros((count, *self.reader.shape), dtype=torch.uint8)
        for number, name in enumerate(files.names):
            self._poll("decoding")
            try:
                picture = decode(self.root / name, self.reader.channels)
            except DataError as error:
                broken[name] = self._reason(name, str(error))
            else:
                images[number] = self.reader.fit(picture, name)
            self.context.report(f"decoding {split}", number + 1, count)
        return images

    def _inspect(self, broken: dict[str, str]) -> dict[str, Tensor]:
        """Inspect every picture; what cannot be decoded is added to ``broken``."""
        splits = self.listing.splits
        names = [name for files in splits.values() for name in files.names]
        digests: list[bytes] = []
        for found in self._inspections(names):
            self._poll("inspecting")
            for one in found:
                if isinstance(one, str):
                    name = names[len(digests)]
                    broken[name] = self._reason(name, one)
                digests.append(_BROKEN if isinstance(one, str) else one)
            self.context.report("inspecting pictures", len(digests), len(names))
        rows = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8)
        counts = [len(files.names) for files in splits.values()]
        return dict(zip(splits, rows.view(-1, DIGEST_BYTES).split(counts), strict=True))

    def _inspections(self, names: Sequence[str]) -> Iterator[list[bytes | str]]:
        paths = tuple(str(self.root / name) for name in names)
        batches = torch.arange(len(paths)).split(_BATCH)
        yield from read_ahead(paths, _Inspected(paths, self.reader.channels), batches, list)

    def _stamps(self) -> list[tuple[int, int]]:
        """Return size and time of every file.

        Raises:
            DataError: A link is_main_process nowhere.
        """
        stamps = []
        for files in self.listing.splits.values():
            for name in files.names:
                self._poll("listing")
                try:
                    stat = (self.root / name).stat()
                except OSError as error:
                    raise DataError(f"{self.root / name}: {error.strerror or error}") from error
                stamps.append((stat.st_size, stat.st_mtime_ns))
        return stamps

    def _reason(self, name: str, message: str) -> str:
        """Take the path off a message: the folder may be called something else next time."""
        return message.removeprefix(f"{self.root / name}: ")

    def _poll(self, doing: str) -> None:
        if self.context.stop():
            raise Stopped(f"stopped while {doing} {self.root}")


@dataclass(frozen=True)
class _Inspected:
    """Inspects pictures by their numbers."""

    paths: tuple[str, ...]
    channels: int

    def __call__(self, index: int) -> bytes | str:
        """Return a file's digest, or why it cannot be decoded."""
        try:
            return inspect(self.paths[index], self.channels)
        except DataError as error:
            return str(error)
