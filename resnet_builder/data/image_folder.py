"""Your own pictures, in folders: ``train/CLASS/...``, ``test/CLASS/...``, maybe ``val/CLASS/...``.

They are decoded once and held in memory if they fit, else streamed from their files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.interfaces import (
    DATASETS,
    DatasetInfo,
    ImageSource,
    LoadContext,
    LoadedDataset,
    Stop,
)
from resnet_builder.data.kept import Findings
from resnet_builder.data.listing import Listing, list_pictures
from resnet_builder.data.memory import InMemoryImages, combined, fingerprint
from resnet_builder.data.pictures import Reader, decode
from resnet_builder.data.streamed import ImageFiles
from resnet_builder.data.survey import Survey
from resnet_builder.errors import DataError, Stopped

MEMORY_BYTES = 4 * 1024**3
"""Data sets that take more than this after preprocessing are streamed."""

_SHOWN = 20
_PART = 16  # digits of a part's digest: enough to tell that it has changed


@DATASETS.register("image_folder")
class ImageFolder:
    """Your own pictures, one folder for each class.

    Pictures are decoded and preprocessed once, kept in the data folder and held in memory, unless
    that takes more than 4 GiB, or training cuts its images from whole pictures that are larger
    than the preprocessed ones: then worker processes decode them each time. The fingerprint is of
    what was decoded; of pictures that are streamed, it is of their files.

    Args:
        path: The folder that holds ``train``, ``test`` and maybe ``val``; relative to the data
            folder.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self, *, path: Annotated[str, Field(min_length=1)], channels: Literal[1, 3] = 3
    ) -> None:
        self._path = path
        self._channels = channels
        self.facts = DatasetInfo(channels=channels)

    def load(self, context: LoadContext) -> LoadedDataset:
        """List the folder, look at every picture, and hold those in memory that are to be.

        Raises:
            DataError: A folder is missing or empty, classes differ between splits, or pictures
                are broken or of several sizes.
            Stopped: ``context.stop`` became true.
        """
        root = context.data_dir / self._path
        listing = list_pictures(root, context.stop)
        first = _first(root, listing, self._channels, context.stop)
        fed = context.preprocess(first[None])[0]
        reader = Reader(self._channels, context.preprocess, tuple(fed.shape))
        survey = Survey(root, listing, reader, context)
        count = sum(len(files.names) for files in listing.splits.values())
        crops_more = context.whole_pictures and first.numel() > fed.numel()
        is_streamed = crops_more or count * fed.numel() > MEMORY_BYTES
        findings, problem = survey.inspected() if is_streamed else survey.decoded()
        if findings.broken and not context.skip_bad:
            raise _broken(root, findings.broken)
        found = _usable(survey, findings)
        parts = found.parts()
        sources = found.streamed() if is_streamed else found.held()
        return LoadedDataset(
            train=sources["train"],
            validation=sources.get("val"),
            test=sources.get("test"),
            classes=listing.classes,
            fingerprint=combined(parts),
            notices=tuple(_notices(survey, findings, problem)),
            parts={name: whole[:_PART] for name, whole in parts.items()},
            skipped=tuple(sorted(findings.broken)),
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """The pictures that can be used.

    Attributes:
        root: The folder that their names are relative to.
        listing: Their names and labels.
        reader: Makes images of them.
        tensors: By split, a row for each: its pixels, or the digest of its file.
    """

    root: Path
    listing: Listing
    reader: Reader
    tensors: Mapping[str, Tensor]

    def held(self) -> dict[str, ImageSource]:
        """Return sources in memory."""
        return {
            split: InMemoryImages(self.tensors[split], torch.tensor(files.labels))
            for split, files in self.listing.splits.items()
        }

    def streamed(self) -> dict[str, ImageSource]:
        """Return sources that decode pictures when they are read."""
        sources: dict[str, ImageSource] = {}
        for split, files in self.listing.splits.items():
            paths = [str(self.root / name) for name in files.names]
            labels = torch.tensor(files.labels)
            sources[split] = ImageFiles(paths, labels, self.tensors[split], self.reader)
        return sources

    def parts(self) -> dict[str, str]:
        """Return a digest of each class in each split."""
        return {
            f"{split}/{name}": fingerprint(rows)
            for split, files in self.listing.splits.items()
            for name, rows in zip(
                self.listing.classes,
                self.tensors[split].split(torch.tensor(files.labels).bincount().tolist()),
                strict=True,
            )
        }


def _first(root: Path, listing: Listing, channels: int, stop: Stop) -> Tensor:
    """Decode the first training picture that is not broken.

    Raises:
        DataError: All are.
        Stopped: ``stop`` became true.
    """
    broken: dict[str, str] = {}
    for name in listing.splits["train"].names:
        if stop():
            raise Stopped(f"stopped while decoding {root}")
        try:
            return decode(root / name, channels)
        except DataError as error:
            broken[name] = str(error).removeprefix(f"{root / name}: ")
    raise _broken(root, broken)


def _usable(survey: Survey, findings: Findings) -> _Found:
    """Leave out what is broken.

    Raises:
        DataError: All pictures of a class are.
    """
    listing, tensors = survey.listing, findings.tensors
    if findings.broken:
        tensors = {
            split: tensors[split][[name not in findings.broken for name in files.names]]
            for split, files in listing.splits.items()
        }
        listing = listing.without(findings.broken)
    return _Found(survey.root, listing, survey.reader, tensors)


def _notices(survey: Survey, findings: Findings, problem: str | None) -> Iterator[str]:
    """Yield what a user should know."""
    if ignored := survey.listing.ignored:
        yield f"ignored {ignored:,} hidden or foreign entries in {survey.root}"
    if problem is not None:
        yield problem
    for name, reason in sorted(findings.broken.items()):
        yield f"left out {survey.root / name}: {reason}"


def _broken(root: Path, broken: Mapping[str, str]) -> DataError:
    """Name the pictures that cannot be decoded, as far as there is room."""
    lines = [f"{root / name}: {reason}" for name, reason in sorted(broken.items())]
    what = "1 picture" if len(lines) == 1 else f"{len(lines):,} pictures"
    head = (
        f"{what} cannot be decoded; mend or remove what is broken, or leave it out by --skip-bad "
        "(skip_bad=True)"
    )
    more = len(lines) - _SHOWN
    tail = [f"and {more:,} more, which --skip-bad names"] if more > 0 else []
    return DataError("\n  ".join([head, *lines[:_SHOWN], *tail]))
