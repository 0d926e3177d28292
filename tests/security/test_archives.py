"""Archives that would do harm: nothing reaches the disk, no pickle runs, memory has a bound.

Each is passed off as the published one, its digest included, so that only the reading is left to
defend.
"""

import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from resnet_builder.data import cifar, fashion_mnist, unpacking
from resnet_builder.data.cifar import CIFAR10, Cifar10
from resnet_builder.data.download import read_bytes
from resnet_builder.data.fashion_mnist import FashionMnist
from resnet_builder.data.interfaces import LoadContext, LoadedDataset
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.errors import DataError
from tests.cli.experiments import call, write_tiny
from tests.data.publishing import Payload, QuietHandler, cifar_archive, published, serving

TEST = f"{CIFAR10.folder}/test_batch.bin"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder beside which nothing may appear."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def publish(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an archive into the data folder as if it were CIFAR-10's own."""
    archive = published(CIFAR10.archive.url, content)
    monkeypatch.setattr(Cifar10, "layout", replace(CIFAR10, archive=archive))
    (folder / archive.name).write_bytes(content)
    return folder / archive.name


def load(folder: Path) -> LoadedDataset:
    return Cifar10().load(LoadContext(folder, Preprocessing()))


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


HOSTILE = {
    "parent": member("../evil"),
    "absolute": member("/tmp/resnet-builder-evil"),
    "symlink": member("link", tarfile.SYMTYPE, "/etc"),
    "hardlink": member("hard", tarfile.LNKTYPE, "/etc/passwd"),
    "device": member("device", tarfile.CHRTYPE),
    "pipe": member("pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: f"row39-{name}")
def test_member_that_would_leave_the_folder_is_passed_over(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a link that the files would be written through."""
    through = member(CIFAR10.folder, tarfile.SYMTYPE, str(folder.parent))

    def add(archive: tarfile.TarFile) -> None:
        for each in (HOSTILE[name], through):
            archive.addfile(each)

    content, _ = cifar_archive(CIFAR10, add)
    path = publish(content, folder, monkeypatch)
    assert len(load(folder).train) == 20
    assert sorted(folder.parent.rglob("*")) == [folder, path]
    assert not Path("/tmp/resnet-builder-evil").exists()


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: f"row39-{name}")
def test_archive_of_nothing_else_is_3(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = HOSTILE[name]
    path = publish(tar((hostile, b"")), folder, monkeypatch)
    result = train_cifar(folder)
    assert result.exit_code == 3
    assert f"error: {path} does not hold batches.meta.txt, data_batch_1.bin" in result.stderr
    assert sorted(folder.parent.rglob("*")) == [folder, path, folder / "tiny.yaml"]


def train_cifar(folder: Path) -> Any:
    spec = write_tiny(folder)
    changes = ("data.dataset=cifar10", "data.validation=0", "model.num_classes=10")
    line = [part for change in changes for part in ("--set", change)]
    return call("train", spec, *line, "--set", "train.batch_size=4", "--data-dir", folder)


def test_row39_more_files_than_a_published_archive_has_are_not_looked_through(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(member(f"{number}"), b"") for number in range(unpacking.MOST_MEMBERS + 1)]
    path = publish(tar(*members), folder, monkeypatch)
    with pytest.raises(DataError, match=f"{path} holds more than 1,000 files"):
        load(folder)


def zeros(count: int, header: bytes) -> bytes:
    """Make a gzip file of a header and many zeros, of a two-hundredth of their size."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(count // 2**20):
            file.write(b"\0" * 2**20)
    return buffer.getvalue()


def sized(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = member(name, kind)
    made.size = size
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (TEST, tarfile.REGTYPE),
        ("other", tarfile.REGTYPE),
        ("name", tarfile.GNUTYPE_LONGNAME),
        ("header", tarfile.XHDTYPE),
        (TEST, tarfile.GNUTYPE_SPARSE),
    ],
    ids=["row39-wanted", "row39-other", "row39-long-name", "row39-pax", "row39-sparse"],
)
def test_bomb_is_cut_off(
    name: str, kind: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB out of some 300 KB, where 2 MiB may come; a header promises 4 GiB."""
    monkeypatch.setattr(cifar, "MOST_BYTES", 2**21)
    bomb = zeros(2**26, sized(name, 2**32, kind))
    assert len(bomb) < 2**26 / 200
    publish(bomb, folder, monkeypatch)
    tracemalloc.start()
    with pytest.raises(DataError):
        load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_row39_compressed_file_that_is_a_bomb_is_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "MOST_BYTES", 2**20)
    bomb = zeros(2**24, b"")
    archive = fashion_mnist.ARCHIVES["train-images"]
    made = published(archive.url, bomb)
    monkeypatch.setitem(fashion_mnist.ARCHIVES, "train-images", made)
    (folder / "fashion_mnist").mkdir()
    (folder / "fashion_mnist" / archive.name).write_bytes(bomb)
    with pytest.raises(DataError, match=r"unpacks to more than 1,048,576 bytes"):
        FashionMnist().load(LoadContext(folder, Preprocessing()))


def test_row39_bounds_leave_room_for_what_is_published() -> None:
    largest = 10_000 * 5 * 3_074 + 10_000 * 3_074
    assert largest * 1.2 < cifar.MOST_BYTES < largest * 2
    assert 60_000 * 28 * 28 * 1.2 < fashion_mnist.MOST_BYTES < 60_000 * 28 * 28 * 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_pipe_or_device_in_the_place_of_a_file_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(DataError, match=f"{name} is no plain file"):
            read_bytes(folder / name, 100)
    (folder / "large").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="large holds more than 100 bytes"):
        read_bytes(folder / "large", 100)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def test_row40_pickles_of_the_python_version_are_never_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extracted, packed, and served where the binary version should be."""
    canary = folder.parent / "canary"
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    extracted = folder / "cifar-10-batches-py"
    extracted.mkdir()
    for name in names:
        (extracted / name).write_bytes(pickled(canary))
    packed = tar(*((member(f"{extracted.name}/{name}"), pickled(canary)) for name in names))
    (folder / "cifar-10-python.tar.gz").write_bytes(packed)
    served = folder.parent / "served"
    served.mkdir()
    (served / CIFAR10.archive.name).write_bytes(packed)
    with serving(partial(QuietHandler, directory=served)) as url:
        archive = replace(CIFAR10.archive, url=f"{url}/{CIFAR10.archive.name}")
        monkeypatch.setattr(Cifar10, "layout", replace(CIFAR10, archive=archive))
        result = train_cifar(folder)
    assert result.exit_code == 3
    assert "is not the published file" in result.stderr
    assert not canary.exists()
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("packed", [True, False], ids=["row40-packed", "row40-extracted"])
def test_pickle_in_the_place_of_a_file_is_bytes_like_any_others(
    packed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = folder.parent / "canary"
    names = (*CIFAR10.train, *CIFAR10.test, CIFAR10.names)
    if packed:
        members = ((member(f"{CIFAR10.folder}/{name}"), pickled(canary)) for name in names)
        publish(tar(*members), folder, monkeypatch)
    else:
        (folder / CIFAR10.folder).mkdir()
        for name in names:
            (folder / CIFAR10.folder / name).write_bytes(pickled(canary))
    result = train_cifar(folder)
    assert result.exit_code == 3
    assert "batches.meta.txt names" in result.stderr
    assert not canary.exists()


def test_row37_archive_that_is_not_the_published_one_is_told_apart_and_set_aside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = cifar_archive(CIFAR10)
    path = publish(content, folder, monkeypatch)
    path.write_bytes(content[: len(content) // 2])
    result = train_cifar(folder)
    assert result.exit_code == 3
    bad = path.with_name(f"{path.name}.bad")
    archive = Cifar10.layout.archive
    for part in (f"{len(content) // 2:,} bytes", f"{len(content):,} bytes", archive.sha256, bad):
        assert str(part) in result.stderr
    assert bad.read_bytes() == content[: len(content) // 2]
    assert not path.exists()
    path.write_bytes(content)
    assert train_cifar(folder).exit_code == 0
    assert bad.exists()


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Change a few bytes of a tar, or cut it, and compress it anew."""
    made = bytearray(content)
    for _ in range(draw.randrange(1, 6)):
        at = 512 * draw.randrange(len(made) // 512) + draw.randrange(512)
        made[at] = draw.choice((0, 48, 55, 76, 120, 128, 255, draw.randrange(256)))
    if draw.random() < 0.2:
        del made[draw.randrange(len(made)) :]
    return gzip.compress(bytes(made), 1)


def test_row37_damaged_archives_are_refused_or_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of a small archive, with damage in all their fields, and gzip files with damage."""
    long = member("a/" * 120, tarfile.DIRTYPE)
    draw = random.Random(0)
    plain = gzip.decompress(tar((long, b""), (member(TEST), b"x" * 600), (member("x"), b"y")))
    packed = gzip.compress(plain)
    for number in range(150):
        content = flipped(plain, draw)
        if number % 4 == 0:
            made = bytearray(packed)
            made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
            content = bytes(made)
        publish(content, folder, monkeypatch)
        with pytest.raises(DataError):
            load(folder)


def test_row37_damaged_files_of_numbers_are_refused(folder: Path) -> None:
    draw = random.Random(0)
    whole = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 28, 28) + bytes(2 * 28 * 28)
    path = folder / "fashion_mnist" / "train-images-idx3-ubyte"
    path.parent.mkdir()
    for number in range(100):
        made = bytearray(whole)
        made[draw.randrange(16)] ^= 1 << draw.randrange(8)
        path.write_bytes(made[: (len(made), len(made) - 1, 16, 3)[number % 4]])
        with pytest.raises(DataError, match="train-images"):
            FashionMnist().load(LoadContext(folder, Preprocessing()))
