import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from resnet_builder.data import sources
from resnet_builder.data.sources import InMemoryImages, UnexpectedReadError, _Files, read_ahead
from resnet_builder.errors import DataError, ResourceError, Stopped
from resnet_builder.registry import import_plugin

PATHS = tuple(f"images/{number}.png" for number in range(6))


def images(labels: torch.Tensor) -> InMemoryImages:
    return InMemoryImages(torch.arange(len(labels) * 4).byte().view(-1, 1, 2, 2), labels)


@pytest.mark.parametrize("label", [2.5, float("nan")], ids=str)
def test_labels_that_are_not_whole_numbers_are_named(label: float) -> None:
    labels = torch.zeros(40)
    labels[17] = label
    with pytest.raises(DataError, match=f"image 17 has label {label}, which is no whole number"):
        images(labels)


def test_images_of_another_type_or_number_are_refused() -> None:
    with pytest.raises(DataError, match=r"not \(2, 3, 4, 4\) torch.float32 with 3"):
        InMemoryImages(torch.zeros(2, 3, 4, 4), torch.zeros(3))


def test_labels_never_pass_through_floats() -> None:
    labels = torch.tensor([0, 2**24 + 1, 2**31 - 1])
    assert torch.equal(images(labels).labels, labels)


def test_images_in_memory_are_read_in_order_and_by_subset() -> None:
    source = images(torch.arange(6))
    (read,) = source.read([torch.tensor([3, 0, 3])])
    assert torch.equal(read, source.images[[3, 0, 3]])
    (moved,) = source.to(torch.device("cpu")).read([torch.tensor([3, 0, 3])])
    assert torch.equal(read, moved)
    part = source.subset(torch.tensor([4, 1]))
    assert part.labels.tolist() == [4, 1]
    assert torch.equal(part.images, source.images[[4, 1]])
    assert part.hashes() == [source.hashes()[4], source.hashes()[1]]


@dataclass(frozen=True)
class Read:
    """Reads a file's number, with one exception; worker processes receive it."""

    exception: int
    error: BaseException

    def __call__(self, index: int) -> int:
        if index == self.exception:
            raise self.error
        return index


def batches() -> list[torch.Tensor]:
    return list(torch.arange(len(PATHS)).split(2))


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["here", "worker"]
)
def test_unexpected_error_names_the_file_and_keeps_the_traceback(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_num_workers", lambda files: workers)
    reading = read_ahead(PATHS, Read(3, KeyError("exif")), batches(), list)
    assert next(reading) == [0, 1]
    with pytest.raises(UnexpectedReadError) as caught:
        next(reading)
    assert str(caught.value) == "images/3.png: KeyError: 'exif'"
    assert "KeyError: 'exif'\n" in caught.value.__notes__[0]


@dataclass(frozen=True)
class Dying:
    """Reads a file's number, but comes to its end at the last one."""

    how: str

    def __call__(self, index: int) -> int:
        if index == len(PATHS) - 1:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "lost":
                os._exit(3)
            time.sleep(1_000)
        return index


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        pytest.param(
            *("killed", ResourceError, "or one after it, was killed, as happens when memory"),
            marks=pytest.mark.ci,
        ),
        pytest.param(
            *("lost", DataError, "or one after it, was lost: DataLoader worker"),
            marks=pytest.mark.slow,
        ),
        pytest.param("hung", Stopped, "stopped while images were read", marks=pytest.mark.slow),
    ],
)
def test_worker_that_dies_or_hangs_ends_the_reading(
    how: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_num_workers", lambda files: 1)
    reading = read_ahead(PATHS, Dying(how), batches(), list, stop=lambda: how == "hung")
    with pytest.raises(error, match=message):
        list(reading)


def test_plugin_is_imported_where_its_classes_arrive(tmp_path: Path) -> None:
    plugin = tmp_path / "sent.py"
    plugin.write_text("class Mine:\n    def __call__(self, index):\n        return index + 10\n")
    import_plugin(str(plugin))
    (name,) = (name for name in sys.modules if name.startswith("resnet_builder_plugin_sent_"))
    files = _Files(PATHS, sys.modules[name].Mine(), list)
    sent = ForkingPickler.dumps(files)
    del sys.modules[name]  # a worker process begins without it
    assert ForkingPickler.loads(sent).__getitems__([3]) == [13]
