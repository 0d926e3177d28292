"""Published datasets, on stand-ins made here in the published layouts."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import socketserver
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torchvision import datasets

from resnet_builder.data import DATASETS
from resnet_builder.data import datasets as datasets_module
from resnet_builder.data.datasets import Synthetic
from resnet_builder.data.interfaces import DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.errors import DataError, Stopped, StorageError
from resnet_builder.testing import check_dataset
from tests.cli.experiments import call, write_tiny


def load(name: str, folder: Path, **how: Any) -> LoadedDataset:
    return DATASETS.get(name)().load(LoadContext(folder, Preprocessing(), **how))


def everything(source: Any) -> torch.Tensor:
    return next(source.read([torch.arange(len(source))]))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


class Published:
    """A stand-in for CIFAR-10 or CIFAR-100: ``files``, and ``archive`` with all of them."""

    def __init__(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = np.random.default_rng(0)
        is_fine = kind is datasets.CIFAR100
        self.kind, self.arrays = kind, dict[str, tuple[np.ndarray, list[int]]]()
        contents: dict[str, Any] = {}
        for name, _ in (*kind.train_list, *kind.test_list):
            images = draw.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
            labels = draw.integers(0, 10, 4).tolist()
            self.arrays[name] = images, labels
            key = "fine_labels" if is_fine else "labels"
            contents[name] = {"data": images.reshape(4, -1), key: labels}
        self.classes = [f"name_{number}" for number in range(100 if is_fine else 10)]
        contents[kind.meta["filename"]] = {kind.meta["key"]: self.classes}
        self.files = {name: pickle.dumps(content) for name, content in contents.items()}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in self.files.items():
                member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self.archive = buffer.getvalue()
        for listed in ("train_list", "test_list"):
            sums = [[name, md5(self.files[name])] for name, _ in getattr(kind, listed)]
            monkeypatch.setattr(kind, listed, sums)
        meta = {**kind.meta, "md5": md5(self.files[kind.meta["filename"]])}
        monkeypatch.setattr(kind, "meta", meta)
        monkeypatch.setattr(kind, "tgz_md5", md5(self.archive))
        monkeypatch.setattr(kind, "url", "http://127.0.0.1:1/unreachable.tar.gz")

    def extract(self, folder: Path) -> Path:
        target = folder / self.kind.base_folder
        target.mkdir()
        for name, content in self.files.items():
            (target / name).write_bytes(content)
        return target


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> Published:
    return Published(datasets.CIFAR10, monkeypatch)


@pytest.fixture
def served(cifar10: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve CIFAR-10's archive on this machine; return the file."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "x.tar.gz").write_bytes(cifar10.archive)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(socketserver.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of clients that hang up."""

    with Server(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/x.tar.gz"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        yield folder / "x.tar.gz"
        server.shutdown()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("way", ["extracted", "archive"])
def test_cifar_is_read_where_it_lies(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Published(getattr(datasets, name.upper()), monkeypatch)
    if way == "extracted":
        made.extract(tmp_path)
    else:
        (tmp_path / made.kind.filename).write_bytes(made.archive)
    loaded = load(name, tmp_path)
    assert loaded.classes == tuple(made.classes)
    for source, listed in ((loaded.train, "train_list"), (loaded.test, "test_list")):
        arrays = [made.arrays[file] for file, _ in getattr(made.kind, listed)]
        images, labels = zip(*arrays, strict=True)
        assert source is not None
        assert np.array_equal(everything(source).numpy(), np.concatenate(images))
        assert source.labels.tolist() == np.concatenate(labels).tolist()
    assert load(name, tmp_path).fingerprint == loaded.fingerprint


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    "where",
    [
        *("folder itself", "folder renamed", "one deeper"),
        *("archive deeper", "archive renamed", "beside a broken one"),
    ],
)
def test_cifar_is_found_near_the_place_where_it_is_looked_for(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Published(getattr(datasets, name.upper()), monkeypatch)
    data_dir = tmp_path / "data"
    inner = data_dir / "sets"
    inner.mkdir(parents=True)
    if "archive" in where:
        file = made.kind.filename if "deeper" in where else "cifar (1).tgz"
        (inner / file).write_bytes(made.archive)
    else:
        folder = made.extract(inner)
        if where == "folder itself":
            data_dir = folder
        elif where == "folder renamed":
            folder.rename(data_dir / "cifar data")
        elif where == "beside a broken one":
            (made.extract(data_dir) / "test_batch").write_bytes(b"")
            (data_dir / made.kind.base_folder / "test").write_bytes(b"")
    loaded = load(name, data_dir)
    assert loaded.classes == tuple(made.classes)
    assert loaded.fingerprint == load(name, data_dir).fingerprint
    images = np.concatenate([made.arrays[file][0] for file, _ in made.kind.train_list])
    assert np.array_equal(everything(loaded.train).numpy(), images)


def test_what_lies_there_instead_of_cifar_is_named(cifar10: Published, tmp_path: Path) -> None:
    folder = cifar10.extract(tmp_path)
    (folder / "test_batch").unlink()
    (folder / "data_batch_3").write_bytes(b"altered")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cut")
    (tmp_path / "cifar-10-python.tar").write_bytes(b"")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")
    (tmp_path / "more" / "cifar-10-batches-mat").mkdir(parents=True)
    (tmp_path / "more" / "cifar-100-binary.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="cannot load CIFAR10") as caught:
        load("cifar10", tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        f"  {tmp_path}/cifar-10-binary.tar.gz is the binary version, not the Python version",
        f"  {tmp_path}/cifar-10-python.tar is no cifar-10-python.tar.gz",
        f"  {tmp_path}/cifar-10-python.tar.gz is not the published file: its MD5 is {md5(b'cut')}",
        f"  {folder} lacks test_batch",
        f"  {folder} has other files than the published data_batch_3",
        f"  {tmp_path}/more/cifar-10-batches-mat is the Matlab version, not the Python version",
    ]


def test_cifar_is_downloaded_reported_and_then_found(
    served: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped):
        load("cifar10", tmp_path / "data", stop=lambda: True)
    told: list[str] = []
    loaded = load("cifar10", tmp_path / "data", report=lambda what, *_: told.append(what))
    assert (len(loaded.train), set(told)) == (20, {"downloading CIFAR10"})
    assert capfd.readouterr() == ("", "")
    served.unlink()
    assert load("cifar10", tmp_path / "data").fingerprint == loaded.fingerprint


def test_download_that_is_not_the_published_file_is_refused_and_fetched_again(
    served: Path, tmp_path: Path
) -> None:
    """So is what a killed download left: half of the file."""
    published = served.read_bytes()
    for damaged in (published[:-1], b"<html>Service unavailable</html>", b""):
        served.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot load CIFAR10: File not found or corrupted"):
            load("cifar10", tmp_path)
    served.write_bytes(published)
    assert len(load("cifar10", tmp_path).train) == 20


def test_machine_without_network_is_told_where_to_put_the_file(
    cifar10: Published, tmp_path: Path
) -> None:
    spec = write_tiny(tmp_path)
    changes = ("data.dataset=cifar10", "data.validation=0", "model.num_classes=10")
    line = [part for change in changes for part in ("--set", change)]
    result = call("train", spec, *line, "--data-dir", tmp_path / "data", "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert "error: cannot load CIFAR10: " in result.stderr
    assert (
        f"without a network, put {datasets.CIFAR10.url} (MD5 {datasets.CIFAR10.tgz_md5}) into "
        f"{tmp_path / 'data'}\n"
    ) in result.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_failed_download_leaves_nothing_behind(
    name: str, cifar10: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:1/"])
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "old", tmp_path / "new" / "data"):
        with pytest.raises(DataError, match="cannot load"):
            load(name, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_server_that_says_nothing_is_not_waited_for(
    cifar10: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets_module, "_STALL_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(
            datasets.CIFAR10, "url", f"http://127.0.0.1:{server.getsockname()[1]}/x"
        )
        with pytest.raises(DataError, match=r"cannot load CIFAR10: .*timed out"):
            load("cifar10", tmp_path)


def test_waiting_for_the_download_of_another_process_can_be_stopped(
    cifar10: Published, tmp_path: Path
) -> None:
    polled = iter([False, False, True])
    with FileLock(tmp_path / ".download.lock"), pytest.raises(Stopped, match="another process"):
        load("cifar10", tmp_path, stop=lambda: next(polled))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("where", ["cifar-10-python.tar.gz", "cifar-10-batches-py/test_batch"])
def test_pipe_in_the_place_of_a_file_is_not_waited_for(
    where: str, cifar10: Published, tmp_path: Path
) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / where)
    with pytest.raises(StorageError, match=f"{where}: it is a FIFO, not a regular file"):
        load("cifar10", tmp_path)


def test_folder_that_cannot_be_written_to_is_a_storage_error(
    cifar10: Published, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        load("cifar10", tmp_path / "file" / "data")


def test_pickle_that_is_not_the_published_one_is_not_read(
    cifar10: Published, tmp_path: Path
) -> None:
    """Neither extracted nor packed."""
    payload = pickle.dumps(Payload(tmp_path / "canary"))
    (cifar10.extract(tmp_path) / "test_batch").write_bytes(payload)
    (tmp_path / cifar10.kind.filename).write_bytes(payload)
    with pytest.raises(DataError, match="cannot load CIFAR10"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "canary").exists()


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def write_fashion_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch, *, packed: bool) -> Any:
    draw = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": draw.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": draw.integers(0, 10, 6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": draw.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": draw.integers(0, 10, 3, dtype=np.uint8),
    }
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    sums = []
    for name, array in arrays.items():
        content = gzip.compress(idx(array)) if packed else idx(array)
        sums.append((f"{name}.gz", md5(content)))
        (raw / (f"{name}.gz" if packed else name)).write_bytes(content)
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:1/"])
    return arrays


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_fashion_mnist_is_read_where_it_lies(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_fashion_mnist(tmp_path, monkeypatch, packed=packed)
    loaded = load("fashion_mnist", tmp_path)
    assert loaded.test is not None
    assert np.array_equal(everything(loaded.test)[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert loaded.train.labels.tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert loaded.classes[9] == "Ankle boot"


@pytest.mark.parametrize("keep", [0, 100])
def test_fashion_mnist_that_is_cut_short_is_named(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion_mnist(tmp_path, monkeypatch, packed=False)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    message = (
        r"^cannot load FashionMNIST: .*; if \S+/FashionMNIST/raw is damaged, remove it; without a "
        r"network, put the four \.gz files of http\S+ into \S+/FashionMNIST"
    )
    with pytest.raises(DataError, match=message):
        load("fashion_mnist", tmp_path)


def test_digits_are_those_of_scikit_learn_and_never_change(tmp_path: Path) -> None:
    """The digest is of scikit-learn's images, labels and split, as the first edition read them."""
    loaded = load("digits", tmp_path)
    assert loaded.test is not None
    assert (len(loaded.train), len(loaded.test)) == (1437, 360)
    assert loaded.fingerprint.startswith("1a757a747949")
    assert everything(loaded.train).unique().tolist()[-2:] == [239, 255]
    counts = loaded.train.labels.bincount() + loaded.test.labels.bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert ((loaded.test.labels.bincount() / counts - 360 / 1797).abs() < 0.01).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options"), [("digits", {}), ("synthetic", {"channels": 2, "train": 7})]
)
def test_registered_dataset_keeps_the_contract(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    check_dataset(DATASETS.get(name), tmp_path, **options)


@pytest.mark.parametrize("wrong", ["num_classes", "channels", "training_images"])
def test_dataset_that_is_not_as_it_says_breaks_the_contract(wrong: str, tmp_path: Path) -> None:
    class Lying(Synthetic):
        def __init__(self) -> None:
            super().__init__()
            self.info = DatasetInfo(**{wrong: 1})  # type: ignore[arg-type]

    with pytest.raises(AssertionError, match=f"info.{wrong} is not the truth"):
        check_dataset(Lying, tmp_path)


@pytest.mark.slow
def test_registering_does_not_import_torchvision() -> None:
    """It takes longer than everything else; no spec needs it to be checked."""
    code = "import sys, resnet_builder.data; print('torchvision' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_synthetic_images_can_be_learned() -> None:
    """The nearest class mean of the training images tells the test images."""
    loaded = Synthetic(train=200, test=100).load(LoadContext(Path(), Preprocessing()))
    assert loaded.test is not None
    train, test = (everything(one).float().flatten(1) for one in (loaded.train, loaded.test))
    means = torch.stack([train[loaded.train.labels == label].mean(0) for label in range(10)])
    assert torch.equal(torch.cdist(test, means).argmin(1), loaded.test.labels)
