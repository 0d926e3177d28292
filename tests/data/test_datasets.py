"""Readers of published data sets, on archives made here in the published layouts."""

import gzip
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as F

from resnet_builder.data import DATASETS, download, fashion_mnist
from resnet_builder.data.cifar import CIFAR10, CIFAR100, Cifar10, Cifar100, Layout
from resnet_builder.data.download import Archive, fetch
from resnet_builder.data.interfaces import DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.preprocess import Preprocessing, preprocess_shape
from resnet_builder.data.synthetic import Synthetic
from resnet_builder.errors import DataError, Stopped, StorageError
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb
from resnet_builder.testing import check_dataset
from tests.data.publishing import (
    Payload,
    QuietHandler,
    cifar_archive,
    published,
    serving,
)


def load(name: str, folder: Path, **options: Any) -> LoadedDataset:
    dataset = DATASETS.get(name)(**options)
    return dataset.load(LoadContext(folder, Preprocessing()))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(partial(QuietHandler, directory=folder)) as url:
        yield folder, url


@pytest.mark.parametrize(
    ("name", "kind", "layout"),
    [
        ("cifar10", Cifar10, CIFAR10),
        ("cifar100", Cifar100, CIFAR100),
    ],
)
def test_cifar_archive_is_read(
    name: str, kind: Any, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, made = cifar_archive(layout)
    archive = published(layout.archive.url, content)
    monkeypatch.setattr(kind, "layout", replace(layout, archive=archive))
    (tmp_path / archive.name).write_bytes(content)
    loaded = load(name, tmp_path)
    assert loaded.classes == tuple(f"name_{number}" for number in range(layout.num_classes))
    for source, names in ((loaded.train, layout.train), (loaded.test, layout.test)):
        images = np.concatenate([made[file][0] for file in names])
        labels = np.concatenate([made[file][1] for file in names])
        assert source is not None
        assert np.array_equal(next(source.read([torch.arange(len(source))])).numpy(), images)
        assert source.labels.tolist() == labels.tolist()


def _evil(archive: tarfile.TarFile) -> None:
    """Add what would harm whoever extracted everything."""
    for name, kind, target in (
        ("../evil", tarfile.REGTYPE, ""),
        ("/tmp/evil", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc"),
        ("hard", tarfile.LNKTYPE, "/etc/passwd"),
        ("device", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)


def test_row39_nothing_of_an_archive_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = cifar_archive(CIFAR10, _evil)
    archive = published(CIFAR10.archive.url, content)
    monkeypatch.setattr(Cifar10, "layout", replace(CIFAR10, archive=archive))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / archive.name).write_bytes(content)
    assert len(load("cifar10", folder).train) == 20
    assert sorted(tmp_path.rglob("*")) == [folder, folder / archive.name]


def test_row39_a_link_in_the_place_of_a_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    made = published(CIFAR10.archive.url, buffer.getvalue())
    monkeypatch.setattr(Cifar10, "layout", replace(CIFAR10, archive=made))
    (tmp_path / made.name).write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"does not hold .*test_batch\.bin"):
        load("cifar10", tmp_path)


def test_row40_a_pickle_is_never_run(tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / CIFAR10.folder
    folder.mkdir()
    for name in (*CIFAR10.train, *CIFAR10.test, CIFAR10.names):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises(DataError):
        load("cifar10", tmp_path)
    assert not canary.exists()


def extract_cifar10(folder: Path) -> None:
    content, _ = cifar_archive(CIFAR10)
    (folder / CIFAR10.folder).mkdir()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                (folder / member.name).write_bytes(file.read())


def test_cifar_folder_that_was_extracted_is_read(tmp_path: Path) -> None:
    extract_cifar10(tmp_path)
    assert len(load("cifar10", tmp_path).train) == 20


def test_a_record_that_is_cut_short_is_named(tmp_path: Path) -> None:
    extract_cifar10(tmp_path)
    path = tmp_path / CIFAR10.folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch.bin: 12,291 bytes are not records of 3,073"):
        load("cifar10", tmp_path)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def test_fashion_mnist_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    arrays = {
        "train-images": draw.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train-labels": draw.integers(0, 10, 6, dtype=np.uint8),
        "t10k-images": draw.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "t10k-labels": draw.integers(0, 10, 3, dtype=np.uint8),
    }
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    for name, array in arrays.items():
        archive = fashion_mnist.ARCHIVES[name]
        content = idx(array)
        (folder / archive.name).write_bytes(content)
        monkeypatch.setitem(fashion_mnist.ARCHIVES, name, published(archive.url, content))
    loaded = load("fashion_mnist", tmp_path)
    assert loaded.test is not None
    images = next(iter(loaded.test.read([torch.arange(3)])))
    assert np.array_equal(images[:, 0].numpy(), arrays["t10k-images"])
    assert loaded.train.labels.tolist() == arrays["train-labels"].tolist()
    assert loaded.classes[9] == "Ankle boot"


@pytest.mark.parametrize("place", ["fashion_mnist", "FashionMNIST/raw"])
def test_fashion_mnist_files_that_were_unpacked_are_read(place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    for name, archive in fashion_mnist.ARCHIVES.items():
        array = np.zeros((2, 28, 28) if "images" in name else 2, dtype=np.uint8)
        (folder / archive.name[:-3]).write_bytes(gzip.decompress(idx(array)))
    assert len(load("fashion_mnist", tmp_path).train) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "has 1,567 elements, its header says"),
        (lambda content: content[:10], "ends in its header"),
        (lambda content: b"<html>", "is not an IDX file"),
    ],
    ids=["short", "header", "page"],
)
def test_an_idx_file_that_is_damaged_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    content = gzip.decompress(idx(np.zeros((2, 28, 28), dtype=np.uint8)))
    (folder / "train-images-idx3-ubyte").write_bytes(damage(content))
    with pytest.raises(DataError, match=message):
        load("fashion_mnist", tmp_path)


def test_digits_are_scikit_learn_s(tmp_path: Path) -> None:
    loaded = load("digits", tmp_path)
    bunch = load_digits()
    assert loaded.test is not None
    assert (len(loaded.train), len(loaded.test)) == (1437, 360)
    images = torch.cat([source.images for source in (loaded.train, loaded.test)])  # type: ignore[attr-defined]
    theirs = torch.from_numpy(np.round(bunch.images * 255 / 16)).byte()[:, None]
    assert torch.equal(images.flatten(1).sum(1).sort()[0], theirs.flatten(1).sum(1).sort()[0])
    shares = loaded.test.labels.bincount() / torch.from_numpy(bunch.target).bincount()
    assert ((shares - 360 / 1797).abs() < 0.01).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "options"), [("digits", {}), ("synthetic", {"channels": 1})])
def test_registered_dataset_keeps_the_contract(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    check_dataset(DATASETS.get(name), tmp_path, **options)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (DatasetInfo(num_classes=3), "facts.num_classes is not the truth"),
        (DatasetInfo(channels=1), "facts.channels is not the truth"),
        (DatasetInfo(training_images=1), "facts.training_images is not the truth"),
    ],
    ids=["classes", "channels", "training images"],
)
def test_a_dataset_that_is_not_what_it_says_breaks_the_contract(
    facts: DatasetInfo, message: str, tmp_path: Path
) -> None:
    class Lying(Synthetic):
        def __init__(self) -> None:
            super().__init__()
            self.facts = facts

    with pytest.raises(AssertionError, match=message):
        check_dataset(Lying, tmp_path)


def test_registering_imports_neither_torchvision_nor_scikit_learn() -> None:
    """They take longer than everything else; no spec needs them to be checked."""
    code = "import sys, resnet_builder.data; print({'sklearn', 'torchvision'} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_synthetic_images_can_be_learned() -> None:
    """The nearest class mean of the training images tells the test images."""
    loaded = load("synthetic", Path(), train=200, test=100)
    assert loaded.test is not None
    train, test = (
        next(iter(source.read([torch.arange(len(source))]))).float().flatten(1)
        for source in (loaded.train, loaded.test)
    )
    means = torch.stack([train[loaded.train.labels == label].mean(0) for label in range(10)])
    answers = torch.cdist(test, means).argmin(1)
    assert torch.equal(answers, loaded.test.labels)


def test_synthetic_images_follow_their_options() -> None:
    loaded = load("synthetic", Path(), num_classes=3, channels=2, image_size=5, train=7, test=4)
    images = next(iter(loaded.train.read([torch.arange(7)])))
    assert images.shape == (7, 2, 5, 5)
    assert len(loaded.classes) == 3
    assert load("synthetic", Path(), seed=1).fingerprint != load("synthetic", Path()).fingerprint


# Downloads


def fetched(folder: Path, archive: Archive, **how: Any) -> Path:
    given = {"stop": lambda: False, "report": lambda *_: None, **how}
    return fetch(archive, folder, **given)


def test_row37_a_download_is_verified_named_and_reported(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4096
    (served[0] / "x.gz").write_bytes(content)
    told: list[tuple[str, int, int]] = []
    archive = published(f"{served[1]}/x.gz", content)
    path = fetched(tmp_path / "data", archive, report=lambda *what: told.append(what))
    assert path.read_bytes() == content
    assert told[-1] == ("downloading x.gz", len(content), len(content))
    (served[0] / "x.gz").unlink()
    assert fetched(tmp_path / "data", archive) == path
    assert list((tmp_path / "data").iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"\0" + content[1:],
        lambda content: content[::-1],
        lambda content: b"",
        lambda content: b"<html>Service unavailable</html>",
    ],
    ids=["row37-truncated", "row37-flipped", "row37-other", "row37-empty", "row37-page"],
)
@pytest.mark.parametrize("downloaded", [True, False], ids=["downloaded", "found"])
def test_what_is_not_the_published_file_is_kept_aside_and_fetched_again(
    damage: Any, downloaded: bool, served: tuple[Path, str], tmp_path: Path
) -> None:
    content = bytes(range(1, 256)) * 100
    archive = published(f"{served[1]}/x.gz", content)
    folder = tmp_path / "data"
    folder.mkdir()
    damaged = damage(content)
    (served[0] / "x.gz" if downloaded else folder / "x.gz").write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        fetched(folder, archive)
    for part in (f"{len(damaged):,} bytes", "25,500 bytes", archive.sha256):
        assert part in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["x.gz.bad"]
    assert (folder / "x.gz.bad").read_bytes() == damaged
    (served[0] / "x.gz").write_bytes(content)
    assert fetched(folder, archive).read_bytes() == content


def test_row37_an_endless_answer_is_cut_off(served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "x.gz").write_bytes(b"x" * 10_000_000)
    with pytest.raises(DataError, match="not the published file"):
        fetched(tmp_path, published(f"{served[1]}/x.gz", b"x" * 1000))
    assert (tmp_path / "x.gz.bad").stat().st_size < 1_000_000


def test_row37_a_file_that_is_not_there_is_named(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download http://127.*404.*yourself"):
        fetched(tmp_path, published(f"{served[1]}/none.gz", b""))


def test_row37_a_connection_that_breaks_is_no_failing_disk(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            at_once = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            connection.close()

        Thread(target=hang_up, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.gz"
        with pytest.raises(DataError, match="cannot download"):
            fetched(tmp_path, published(url, b"x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_a_failing_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"x\.gz"):
        fetched(tmp_path / "file", published("http://127.0.0.1:1/x.gz", b"x"))


def test_row38_a_stopped_download_leaves_nothing(served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "x.gz").write_bytes(b"x" * 1_000_000)
    folder = tmp_path / "data"
    with pytest.raises(Stopped):
        fetched(folder, published(f"{served[1]}/x.gz", b"x" * 1_000_000), stop=lambda: True)
    assert list(folder.iterdir()) == []


def test_row38_what_a_killed_download_left_is_removed_once_nobody_writes_to_it(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    left, busy, other = (folder / f"{name}.part" for name in ("x.gz.1", "x.gz.2", "y.gz.3"))
    for path in (left, busy, other):
        path.write_bytes(b"half")
    for path in (left, other):
        os.utime(path, (0, 0))
    (served[0] / "x.gz").write_bytes(b"whole")
    assert fetched(folder, published(f"{served[1]}/x.gz", b"whole")).read_bytes() == b"whole"
    assert sorted(folder.iterdir()) == [folder / "x.gz", busy, other]


def test_row38_a_link_in_the_place_of_a_download_is_not_written_to(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, canary = tmp_path / "data", tmp_path / "canary"
    folder.mkdir()
    canary.write_bytes(b"unharmed")
    (folder / f"x.gz.{os.getpid()}.part").symlink_to(canary)
    (served[0] / "x.gz").write_bytes(b"whole")
    assert fetched(folder, published(f"{served[1]}/x.gz", b"whole")).read_bytes() == b"whole"
    assert canary.read_bytes() == b"unharmed"


def test_row41_a_redirection_to_another_scheme_is_refused() -> None:
    handler = download._SameSchemeOnly()
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(urllib.error.URLError, match="redirected from https"):
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/x")  # type: ignore[arg-type]


def test_every_published_archive_is_fetched_over_https() -> None:
    archives = [CIFAR10.archive, CIFAR100.archive, *fashion_mnist.ARCHIVES.values()]
    assert all(archive.url.startswith("https://") for archive in archives)


# Preprocessing


def test_preprocessing_makes_the_shape_it_promises() -> None:
    steps = (
        Resize(type="resize", size=12),
        CenterCrop(type="center_crop", size=10),
        ToRgb(type="to_rgb"),
    )
    images = torch.randint(0, 256, (2, 1, 24, 24)).byte()
    assert Preprocessing(steps)(images).shape == (2, 3, 10, 10)
    assert preprocess_shape(steps, 1, 24) == (3, 10)
    assert preprocess_shape(steps, None, None) == (3, 10)
    assert preprocess_shape(steps[:1], 3, None) == (3, None)


def test_preprocessing_is_torchvision_s() -> None:
    image = torch.randint(0, 256, (1, 3, 20, 30)).byte()
    steps = (Resize(type="resize", size=12), CenterCrop(type="center_crop", size=10))
    wanted = F.center_crop(F.resize(image, [12], antialias=True), [10])
    assert torch.equal(Preprocessing(steps)(image), wanted)


def test_to_rgb_repeats_grey_and_leaves_colours() -> None:
    grey = torch.randint(0, 256, (2, 1, 4, 4)).byte()
    rgb = Preprocessing((ToRgb(type="to_rgb"),))(grey)
    assert all(torch.equal(rgb[:, channel], grey[:, 0]) for channel in range(3))
    assert torch.equal(Preprocessing((ToRgb(type="to_rgb"),))(rgb), rgb)
