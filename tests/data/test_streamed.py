"""Reading files ahead, in this process or in others, and what becomes of what goes wrong there."""

import os
import signal
from dataclasses import dataclass

import pytest
import torch

from resnet_builder.data import streamed
from resnet_builder.data.streamed import UnforeseenError, read_ahead
from resnet_builder.errors import DataError

PATHS = tuple(f"pictures/{number}.png" for number in range(6))


@dataclass(frozen=True)
class Read:
    """Reads a file's number, with one exception; it can be sent to other processes."""

    exception: int
    error: BaseException | None = None

    def __call__(self, index: int) -> int:
        if index == self.exception:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.error
        return index


def batches() -> list[torch.Tensor]:
    return list(torch.arange(len(PATHS)).split(2))


def test_files_are_read_in_order() -> None:
    assert list(read_ahead(PATHS, Read(-1), batches(), tuple)) == [(0, 1), (2, 3), (4, 5)]


def test_row61_fault_names_the_file_and_keeps_the_traceback() -> None:
    reading = read_ahead(PATHS, Read(3, KeyError("exif")), batches(), list)
    assert next(reading) == [0, 1]
    with pytest.raises(UnforeseenError) as caught:
        next(reading)
    assert str(caught.value) == "pictures/3.png: KeyError('exif')"
    assert "KeyError: 'exif'\n" in caught.value.__notes__[0]


def test_error_of_the_data_is_left_as_it_is() -> None:
    with pytest.raises(DataError, match=r"^pictures/3\.png: broken$"):
        list(read_ahead(PATHS, Read(3, DataError("pictures/3.png: broken")), batches(), list))


@pytest.mark.ci
def test_row61_fault_in_another_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_workers", lambda pictures: 1)
    with pytest.raises(UnforeseenError) as caught:
        list(read_ahead(PATHS, Read(3, KeyError("exif")), batches(), list))
    assert "KeyError: 'exif'\n" in caught.value.__notes__[0]
