"""Image folders: their listing, their scan and its cache, images held and read from files."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_builder.data import image_files, sources
from resnet_builder.data.augment.geometry import RandomResizedCrop
from resnet_builder.data.decode import decode_image
from resnet_builder.data.image_folder import ImageFolder
from resnet_builder.data.interfaces import LoadContext, LoadedDataset
from resnet_builder.data.loader import Pipeline, TrainLoader
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.random import StatelessGenerator, permutation
from resnet_builder.data.sources import ImageFiles, InMemoryImages
from resnet_builder.errors import DataError, Stopped
from resnet_builder.spec.schema import CenterCrop, Resize
from resnet_builder.testing import check_dataset
from tests.data.folders import write_image

NEEDS_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")

ANTS = ("ant", "bee")

SMALLER = (Resize(type="resize", size=4), CenterCrop(type="center_crop", size=4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, with four training and two test images each."""
    root = tmp_path / "pets"
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for number in range(count):
                path = root / split / name / f"{number}.png"
                write_image(path, 100 * label + number + count, (6, 5))
    return root


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every image in its file."""
    monkeypatch.setattr(image_files, "MAX_BYTES_IN_MEMORY", 0)


@pytest.fixture(params=["held", "streamed"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "streamed":
        request.getfixturevalue("streamed")


def load(folder: Path, steps: Any = (), channels: Any = 3, **how: Any) -> LoadedDataset:
    dataset = ImageFolder(path=folder.name, channels=channels)
    return dataset.load(LoadContext(folder.parent, Preprocessing(tuple(steps)), **how))


def everything(source: Any) -> torch.Tensor:
    return torch.cat(list(source.read(torch.arange(len(source)).split(3))))


def test_images_and_labels_are_read_in_order(folder: Path) -> None:
    loaded = load(folder)
    assert loaded.classes == ("ant", "bee", "cat")
    assert loaded.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    pixels = np.array(Image.open(folder / "train" / "bee" / "2.png"))
    assert np.array_equal(everything(loaded.train)[6].permute(1, 2, 0).numpy(), pixels)
    assert loaded.validation is None
    assert loaded.notices == ()
    assert everything(load(folder, channels=1).train).shape == (12, 1, 6, 5)


@pytest.mark.usefixtures("either_way")
def test_image_folder_keeps_the_contract(folder: Path) -> None:
    check_dataset(ImageFolder, folder.parent, path=folder.name)


def test_images_in_memory_and_in_files_are_the_same_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load(folder)
    monkeypatch.setattr(image_files, "MAX_BYTES_IN_MEMORY", 0)
    streamed = load(folder)
    assert isinstance(streamed.train, ImageFiles)
    assert torch.equal(everything(held.train), everything(streamed.train))
    assert torch.equal(held.train.labels, streamed.train.labels)


@pytest.mark.parametrize(
    ("steps", "crops_while_reading", "kind"),
    [
        ((), False, InMemoryImages),
        ((), True, InMemoryImages),
        (SMALLER, False, InMemoryImages),
        (SMALLER, True, ImageFiles),
    ],
    ids=["plain", "plain-cropped", "smaller", "smaller-cropped"],
)
def test_images_are_streamed_where_crops_need_more_than_preprocessing_leaves(
    steps: Any, crops_while_reading: bool, kind: type, folder: Path
) -> None:
    assert isinstance(load(folder, steps, crops_while_reading=crops_while_reading).train, kind)


def test_damaged_file_of_decoded_images_is_made_anew(folder: Path) -> None:
    first = load(folder)
    kept = list((folder.parent / "decoded").glob("*.safetensors"))
    assert len(kept) == 2  # one for each split
    contents = [bytearray(path.read_bytes()) for path in kept]
    for path, content in zip(kept, contents, strict=True):
        content[-1] ^= 1
        path.write_bytes(content)
    again = load(folder)
    assert torch.equal(everything(again.test), everything(first.test))
    assert again.fingerprint == first.fingerprint
    assert [path.read_bytes() for path in kept] != contents
    if hasattr(os, "mkfifo"):
        kept[0].unlink()
        os.mkfifo(kept[0])
        assert load(folder).fingerprint == first.fingerprint


def test_one_split_is_loaded_alone_and_from_the_cache_of_all(folder: Path) -> None:
    whole = load(folder)
    dataset = ImageFolder(path=folder.name)
    told: list[str] = []
    context = LoadContext(
        folder.parent, Preprocessing(), report=lambda what, *_: told.append(what), skip_bad=False
    )
    (folder / "train" / "cat" / "2.png").write_bytes(b"broken")
    found = dataset.load_split(context, "test", undivided=False)
    assert (told, found.classes, found.notices) == ([], ("ant", "bee", "cat"), ())
    assert torch.equal(everything(found.images), everything(whole.test))


def test_folders_of_classes_alone_give_the_bits_of_train(folder: Path) -> None:
    whole = load(folder)
    alone = load(folder / "train")
    assert (alone.validation, alone.test, alone.classes) == (None, None, whole.classes)
    assert torch.equal(everything(alone.train), everything(whole.train))
    assert alone.parts == {name: whole.parts[name] for name in whole.parts if "train/" in name}


def test_split_without_a_class_keeps_the_numbers_of_the_labels(folder: Path) -> None:
    for image in (folder / "test" / "bee").iterdir():
        image.unlink()
    loaded = load(folder)
    assert loaded.test is not None
    assert loaded.test.labels.tolist() == [0, 0, 2, 2]
    assert loaded.notices == (f"{folder}: test has no images of bee",)
    assert list(loaded.parts)[-3:] == ["test/ant", "test/bee", "test/cat"]


def test_killed_scan_leaves_no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        load(folder, report=die)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            load(folder)
    decoded = folder.parent / "decoded"
    assert not list(decoded.glob("*.safetensors"))
    load(folder)
    assert len(list(decoded.glob("*.safetensors"))) == 2
    assert not (decoded / ".partial").exists()


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.usefixtures("streamed")
def test_worker_processes_give_the_same_bits_and_plain_messages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(folder).train
    batches, crop = torch.arange(12).split(3), RandomResizedCrop(size=5).for_epoch(0, 0, "op")
    before = torch.get_rng_state()
    alone = torch.cat([*source.read(batches, crop)])
    (folder / "train" / "cat" / "2.png").write_bytes(b"")  # number 10
    monkeypatch.setattr(sources, "_num_workers", lambda files: 2)
    read = source.read(batches, crop)
    assert torch.equal(torch.cat([next(read) for _ in range(3)]), alone[:9])
    with pytest.raises(DataError, match=r"^\S+2\.png: cannot be decoded: [^\n]+$"):
        next(read)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(DataError, match=r"^1 image cannot be decoded.*\n  \S+2\.png: [^\n]+$"):
        load(folder)
    assert load(folder, skip_bad=True).skipped == ("train/cat/2.png",)


@pytest.mark.usefixtures("either_way")
def test_what_is_broken_is_remembered(folder: Path) -> None:
    """Once scanned, images are not scanned again, whether they are skipped or not."""
    (folder / "train" / "bee" / "1.png").write_bytes(b"")
    first = load(folder, skip_bad=True)
    told: list[str] = []
    again = load(folder, skip_bad=True, report=lambda what, *_: told.append(what))
    assert told == []
    assert again.skipped == first.skipped == ("train/bee/1.png",)
    assert again.fingerprint == first.fingerprint
    assert again.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert torch.equal(everything(again.train), everything(first.train))
    with pytest.raises(DataError, match=r"bee/1\.png: cannot be decoded: it is none of BMP, "):
        load(folder)


@pytest.mark.usefixtures("streamed")
def test_first_augmentation_crops_full_images_by_draws_of_the_sample(folder: Path) -> None:
    crop = RandomResizedCrop(size=5)
    loader = TrainLoader(
        load(folder, SMALLER).train,
        batch_size=12,
        seed=0,
        pipeline=Pipeline([crop], (0.0,) * 3, (1.0,) * 3, 3, seed=0),
        device=torch.device("cpu"),
    )
    batch = next(loader.batches())
    paths = sorted((folder / "train").rglob("*.png"))
    transform = v2.RandomResizedCrop(5)
    for row, sample in enumerate(permutation(0, 0, 12).tolist()):
        draws = StatelessGenerator(0, 0, 0, torch.tensor([sample]), "0:RandomResizedCrop")
        [wanted] = draws.map_seeded(transform, decode_image(paths[sample], 3)[None])
        assert torch.equal((batch.images[row] * 255).round().byte(), wanted)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("size", [4, 9])
def test_images_that_are_read_again_without_a_scan_are_the_same(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops see full images where these are larger, in memory or not; a broken one is left out."""
    (folder / "train" / "bee" / "1.png").write_bytes(b"")
    steps = (Resize(type="resize", size=size), CenterCrop(type="center_crop", size=size))
    how: Any = {"steps": steps, "crops_while_reading": True}
    whole = load(folder, skip_bad=True, **how)
    monkeypatch.setattr(image_files, "scan_images", None)
    again = load(folder, verify=False, left_out=whole.skipped, **how)
    assert torch.equal(again.train.labels, whole.train.labels)
    assert torch.equal(everything(again.train), everything(whole.train))
    assert again.test is not None
    assert len(again.test) == 6
    assert list(getattr(again.train, "names", ())) == list(getattr(whole.train, "names", ()))

    def loader(data: LoadedDataset) -> TrainLoader:
        pipeline = Pipeline([RandomResizedCrop(size=5)], (0.0,) * 3, (1.0,) * 3, 3, seed=0)
        device = torch.device("cpu")
        return TrainLoader(data.train, batch_size=8, seed=0, pipeline=pipeline, device=device)

    _, _, found = loader(again).preview(5)
    assert torch.equal(found.images, next(loader(whole).batches()).images[:5])


@pytest.mark.usefixtures("either_way")
def test_images_of_several_sizes_need_preprocessing(folder: Path) -> None:
    write_image(folder / "train" / "cat" / "3.png", seed=1, size=(9, 7))
    message = r"cat/3\.png is 9x7 \(height x width\), others are 6x5; add `resize`"
    with pytest.raises(DataError, match=message):
        load(folder)
    with pytest.raises(DataError, match=message):  # also where the scan is cached
        load(folder)
    assert everything(load(folder, SMALLER).train).shape == (12, 3, 4, 4)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("split", ["val", "test"])
def test_sizes_after_preprocessing_are_compared_before_training(split: str, folder: Path) -> None:
    """An image on its side, by its orientation, is as high as it will be seen."""
    (folder / "test").rename(folder / split)
    path = folder / split / "bee" / "0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 5)).save(path, exif=exif)
    shorter = (Resize(type="resize", size=10),)
    assert everything(load(folder, shorter).train).shape == (12, 3, 12, 10)
    Image.new("RGB", (6, 5)).save(path)
    with pytest.raises(DataError, match=r"bee/0\.jpg is 10x12 .height x width., others are 12x10"):
        load(folder, shorter)


@pytest.mark.usefixtures("either_way")
def test_image_that_preprocessing_makes_too_large_is_named_or_left_out(folder: Path) -> None:
    Image.new("RGB", (2, 9_000)).save(folder / "test" / "bee" / "long.png")
    steps = (Resize(type="resize", size=200), CenterCrop(type="center_crop", size=4))
    for _ in range(2):
        with pytest.raises(DataError, match=r"bee/long\.png: it is 9,000 pixels long"):
            load(folder, steps)
        assert load(folder, steps, skip_bad=True).skipped == ("test/bee/long.png",)


@pytest.mark.usefixtures("either_way")
def test_images_that_were_swapped_with_their_times_are_read_anew(folder: Path) -> None:
    """As archives do, all files have one time, and two are equally large."""
    paths = [write_image(folder / "train" / name / "x.bmp", seed) for seed, name in enumerate(ANTS)]
    for path in paths:
        os.utime(path, ns=(0, 0))
    before = load(folder, SMALLER).fingerprint
    paths[0].rename(folder / "aside")
    paths[1].rename(paths[0])
    (folder / "aside").rename(paths[1])
    assert load(folder, SMALLER).fingerprint != before


def test_pixels_of_another_version_of_a_library_are_not_taken_from_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder)
    monkeypatch.setattr("PIL.__version__", "0.1")
    told: list[str] = []
    load(folder, report=lambda what, *_: told.append(what))
    assert "decoding images" in told


def test_listing_and_decoding_can_be_stopped(folder: Path) -> None:
    with pytest.raises(Stopped):
        load(folder, stop=lambda: True)


def test_data_folder_that_cannot_be_written_only_costs_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(image_files, "save_file", fail)
    loaded = load(folder)
    assert len(loaded.train) == 12
    assert "not kept for the next run" in loaded.notices[0]
