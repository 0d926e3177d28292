"""Readers of published data sets, on archives made here in the published layouts."""

import gzip
import io
import struct
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from resnet_builder.data import DATASETS, cifar, download, fashion_mnist
from resnet_builder.data.cifar import CIFAR10, CIFAR100, Cifar10, Cifar100, Layout
from resnet_builder.data.contract import Loaded, Surroundings
from resnet_builder.data.download import Archive, fetch
from resnet_builder.data.preprocess import Preprocessing, preprocess_shape
from resnet_builder.errors import DataError, Stopped
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb
from resnet_builder.testing import check_dataset


def md5(content: bytes) -> str:
    import hashlib

    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def load(name: str, folder: Path, **options: Any) -> Loaded:
    dataset = DATASETS.get(name)(**options)
    return dataset.load(Surroundings(folder, Preprocessing()))


def records(layout: Layout, count: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Make records as the publisher lays them out: labels, then planes of red, green and blue."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = draw.integers(0, layout.num_classes, count, dtype=np.uint8)
    coarse = np.zeros((count, layout.label_bytes - 1), np.uint8)
    rows = np.concatenate([coarse, labels[:, None], images.reshape(count, -1)], axis=1)
    return rows.tobytes(), images, labels


def cifar_archive(layout: Layout) -> tuple[bytes, dict[str, Any]]:
    names = "".join(f"name_{number}\n" for number in range(layout.num_classes)) + "\n"
    files, made = {layout.names: names.encode()}, {}
    for seed, name in enumerate((*layout.train, *layout.test)):
        files[name], *made[name] = records(layout, 4, seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


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
    archive = Archive(layout.archive.url, md5(content))
    monkeypatch.setattr(kind, "layout", _with_archive(layout, archive))
    (tmp_path / archive.name).write_bytes(content)
    loaded = load(name, tmp_path)
    assert loaded.classes == tuple(f"name_{number}" for number in range(layout.num_classes))
    for source, names in ((loaded.train, layout.train), (loaded.test, layout.test)):
        images = np.concatenate([made[file][0] for file in names])
        labels = np.concatenate([made[file][1] for file in names])
        assert source is not None
        assert np.array_equal(next(source.read([torch.arange(len(source))])).numpy(), images)
        assert source.labels.tolist() == labels.tolist()


def _with_archive(layout: Layout, archive: Archive) -> Layout:
    from dataclasses import replace

    return replace(layout, archive=archive)


def test_cifar_folder_that_was_extracted_is_read(tmp_path: Path) -> None:
    content, _ = cifar_archive(CIFAR10)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert len(load("cifar10", tmp_path).train) == 20


def test_a_record_that_is_cut_short_is_named(tmp_path: Path) -> None:
    content, _ = cifar_archive(CIFAR10)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path, filter="data")
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
        monkeypatch.setitem(fashion_mnist.ARCHIVES, name, Archive(archive.url, md5(content)))
    loaded = load("fashion_mnist", tmp_path)
    assert loaded.test is not None
    images = next(iter(loaded.test.read([torch.arange(3)])))
    assert np.array_equal(images[:, 0].numpy(), arrays["t10k-images"])
    assert loaded.train.labels.tolist() == arrays["train-labels"].tolist()
    assert loaded.classes[9] == "Ankle boot"


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
    archive = Archive(f"{served[1]}/x.gz", md5(content))
    path = fetched(tmp_path, archive, report=lambda *what: told.append(what))
    assert path.read_bytes() == content
    assert told[-1] == ("downloading x.gz", len(content), len(content))
    (served[0] / "x.gz").unlink()
    assert fetched(tmp_path, archive) == path


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], lambda c: b"\0" + c[1:], lambda c: b"", lambda c: b"<html>no"],
    ids=["truncated", "flipped", "empty", "page"],
)
def test_row37_what_is_not_the_published_file_is_kept_aside_and_fetched_again(
    damage: Any, served: tuple[Path, str], tmp_path: Path
) -> None:
    content = bytes(range(1, 256)) * 100
    archive = Archive(f"{served[1]}/x.gz", md5(content))
    (served[0] / "x.gz").write_bytes(damage(content))
    with pytest.raises(DataError, match=r"x\.gz is not the published file"):
        fetched(tmp_path, archive)
    assert (tmp_path / "x.gz.part.bad").exists() or (tmp_path / "x.gz.bad").exists()
    assert not (tmp_path / "x.gz").exists()
    (served[0] / "x.gz").write_bytes(content)
    assert fetched(tmp_path, archive).read_bytes() == content


def test_row37_a_file_that_is_not_there_is_named(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot download http://127"):
        fetched(tmp_path, Archive(f"{served[1]}/none.gz", "0" * 32))


def test_row38_a_stopped_download_leaves_nothing(served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "x.gz").write_bytes(b"x" * 1_000_000)
    folder = tmp_path / "data"
    with pytest.raises(Stopped):
        fetched(folder, Archive(f"{served[1]}/x.gz", "0" * 32), stop=lambda: True)
    assert list(folder.iterdir()) == []


def test_row41_a_redirection_to_another_scheme_is_refused() -> None:
    import urllib.error
    import urllib.request

    handler = download._SameSchemeOnly()
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(urllib.error.URLError, match="redirected from https"):
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/x")  # type: ignore[arg-type]


def test_every_published_archive_is_fetched_over_https() -> None:
    archives = [CIFAR10.archive, CIFAR100.archive, *fashion_mnist.ARCHIVES.values()]
    assert all(archive.url.startswith("https://") for archive in archives)
    assert cifar.PIXELS == 3072


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
    from torchvision.transforms.v2 import functional as F

    image = torch.randint(0, 256, (1, 3, 20, 30)).byte()
    steps = (Resize(type="resize", size=12), CenterCrop(type="center_crop", size=10))
    wanted = F.center_crop(F.resize(image, [12], antialias=True), [10])
    assert torch.equal(Preprocessing(steps)(image), wanted)


def test_to_rgb_repeats_grey_and_leaves_colours() -> None:
    grey = torch.randint(0, 256, (2, 1, 4, 4)).byte()
    rgb = Preprocessing((ToRgb(type="to_rgb"),))(grey)
    assert all(torch.equal(rgb[:, channel], grey[:, 0]) for channel in range(3))
    assert torch.equal(Preprocessing((ToRgb(type="to_rgb"),))(rgb), rgb)
