"""Listing of image folders: whatever lies in one is read, or named."""

import os
import shutil
import socket
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resnet_builder.data.class_folders import ClassFolders, find_classes, find_images
from resnet_builder.data.interfaces import never
from resnet_builder.errors import DataError
from tests.data.folders import write_image

NEEDS_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of two images in each split."""
    for split in ("train", "val", "test"):
        for name in ("ant", "bee"):
            for number in range(2):
                write_image(tmp_path / "pets" / split / name / f"{number}.png", number)
    return tmp_path / "pets"


def listed(root: Path) -> ClassFolders:
    return find_classes(root, never)


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        listed(root)
    return str(caught.value)


def move(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


# Splits


@pytest.mark.parametrize(
    ("split", "name"),
    [
        *(("val", name) for name in ("valid", "validation", "Val", "VALIDATION")),
        *(("test", name) for name in ("testing", "Test")),
        *(("train", name) for name in ("training", "Train")),
    ],
)
def test_split_is_found_under_its_other_names(split: str, name: str, pets: Path) -> None:
    move(pets / split, name)
    found = listed(pets)
    assert list(found.splits) == ["train", "val", "test"]
    assert found.splits[split]["bee"] == [f"{name}/bee/0.png", f"{name}/bee/1.png"]
    assert found.notices == ()


def test_one_of_two_folders_for_a_split_is_chosen_only_by_its_own_name(pets: Path) -> None:
    shutil.copytree(pets / "val", pets / "valid")
    found = listed(pets)
    assert found.splits["val"]["ant"][0] == "val/ant/0.png"
    assert found.notices == (f"{pets}: passed over valid (a folder)",)
    move(pets / "val", "validation")
    found = listed(pets)
    assert "val" not in found.splits
    assert found.notices == (f"{pets}: passed over valid (a folder), validation (a folder)",)


@NEEDS_LINKS
def test_all_that_is_not_read_beside_the_splits_is_named(pets: Path) -> None:
    move(pets / "test", "tests")
    (pets / "test").symlink_to("nowhere")
    (pets / "testing").symlink_to("testing")
    move(pets / "val", "held out")
    (pets / "val").write_text("a file")
    (pets / "README.md").write_text("about")
    (pets / ".cache").mkdir()
    write_image(pets / "train" / "lost.png", 1)
    (pets / "train" / "__MACOSX").mkdir()
    found = listed(pets)
    assert list(found.splits) == ["train"]
    assert found.notices == (
        f"{pets}: passed over files outside of the classes' folders: 1 .png (train/lost.png)",
        f"{pets}: passed over .cache (a folder), README.md (a file), held out (a folder), "
        "test (a link that leads nowhere), testing (a link that leads nowhere), tests (a folder), "
        "train/__MACOSX (a folder), val (a file)",
    )


@NEEDS_LINKS
def test_split_may_be_a_link(pets: Path, tmp_path: Path) -> None:
    shutil.move(pets / "val", tmp_path / "elsewhere")
    (pets / "valid").symlink_to(tmp_path / "elsewhere")
    assert listed(pets).splits["val"]["ant"] == ["valid/ant/0.png", "valid/ant/1.png"]


def test_missing_training_folder_is_told_with_what_is_there(pets: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'train'} does not exist; image_folder needs" in refused(tmp_path)
    assert f"; {pets} has one: add `/pets` to the path" in refused(tmp_path)
    move(pets / "train", "learn")
    assert "; there are learn (a folder)" in refused(pets)
    (pets / "train").write_text("")
    assert f"{pets / 'train'} is not a folder" in refused(pets)
    assert f"{tmp_path / 'gone' / 'train'} does not exist" in refused(tmp_path / "gone")


# Classes


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ("val/bee", None, "val has no folder for bee"),
        ("test/bee", None, "test has no folder for bee"),
        (None, "val/dog", "val has folders that train has not: dog"),
        (None, "test/dog", "test has folders that train has not: dog"),
        ("train/bee", "train/bee", "train has no images in bee"),
        ("val/bee", "val/bee", "val has no images in bee"),
        ("train", "train", "train has no folders; there must be one for each class"),
    ],
)
def test_classes_that_differ_are_named(
    remove: str | None, add: str | None, message: str, pets: Path
) -> None:
    if remove:
        shutil.rmtree(pets / remove)
    if add:
        (pets / add).mkdir()
    assert message in refused(pets)


@pytest.mark.parametrize("between", ["pets", "all/of/them"])
def test_classes_that_lie_too_deep_are_named(between: str, pets: Path) -> None:
    for split in ("train", "val", "test"):
        target = pets / split / between
        moved = move(pets / split, "aside")
        target.parent.mkdir(parents=True)
        moved.rename(target)
    up = "1 folder" if between == "pets" else "3 folders"
    assert listed(pets).notices == (
        f"{pets}: if train/{between}/ant, train/{between}/bee are the classes, move them {up} up, "
        "into train",
    )
    shutil.rmtree(pets / "train" / between / "bee")
    assert listed(pets).notices == ()


def test_names_that_look_alike_are_told_apart(pets: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for split, name in (("train", composed), ("val", composed), ("test", apart)):
        move(pets / split / "ant", name)
    assert refused(pets).endswith(
        f"test has no folder for {composed} ('caf\\xe9'); it has folders that train has not: "
        f"{apart} ('cafe\\u0301')"
    )


@pytest.mark.parametrize("twin", ["Ant", "ant ", "\u0430nt", "\uff41nt"])
def test_classes_that_look_alike_are_two_and_a_notice(twin: str, pets: Path) -> None:
    """Another case, a space at the end, a Cyrillic letter, a full-width one."""
    for split in ("train", "val", "test"):
        move(pets / split / "bee", twin)
    found = listed(pets)
    assert set(found.splits["train"]) == {"ant", twin}
    (notice,) = found.notices
    assert notice.startswith(f"{pets}: classes that look alike: ")
    assert repr("ant") in notice
    assert ascii(twin) in notice


# Files


def write_as(path: Path, kind: str) -> Path:
    """Write an image of a format, whatever its ending."""
    written = write_image(path.with_name("x.png"), 7)
    with Image.open(written) as image:
        image.save(path, kind)
    written.unlink()
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("x.jfif", "JPEG"), ("x.jpe", "JPEG"), ("x.JPG", "JPEG"), ("x.pgm", "PPM")),
        *(("x.dib", "BMP"), ("x", "JPEG"), ("x.", "PNG"), ("x.dat", "GIF"), ("x.txt", "WEBP")),
        *(("x.jpg_large", "JPEG"), ("x.jpg?w=3", "TIFF"), ("x.1", "BMP"), ("x.data", "PPM")),
        *((".x.png", "PNG"), (".jpg", "JPEG"), ("\u202egnp.x", "PNG"), ("a\nb", "PNG")),
    ],
)
def test_image_is_found_by_what_it_holds(name: str, kind: str, pets: Path) -> None:
    write_as(pets / "train" / "ant" / name, kind)
    found = listed(pets)
    assert f"train/ant/{name}" in found.splits["train"]["ant"]
    assert found.notices == ()
    assert pets / "train" / "ant" / name in find_images(pets, never)[0]


def test_files_that_are_no_images_are_counted_by_ending(pets: Path) -> None:
    folder = pets / "train" / "ant"
    for name in ("1.heic", "2.HEIC", "notes.txt", "LICENSE", "._0.png", "Thumbs.db", ".DS_Store"):
        (folder / name).write_text("BM P6 GIF")
    write_as(folder / "photo.nef", "TIFF")
    for notices in (listed(pets).notices, find_images(pets, never)[1]):
        assert list(notices) == [
            f"{pets}: passed over files that are not images: 2 .heic (such as train/ant/1.heic), "
            "2 without an ending (such as train/ant/.DS_Store), 1 .db (train/ant/Thumbs.db), "
            "1 .nef (train/ant/photo.nef), 1 .png (train/ant/._0.png), "
            "1 .txt (train/ant/notes.txt)"
        ]


def test_class_of_nothing_but_other_files_says_so(pets: Path) -> None:
    for name in ("0", "1"):
        (pets / "test" / "bee" / f"{name}.png").write_bytes(b"\0\0\0\x1cftypheic")
        move(pets / "test" / "bee" / f"{name}.png", f"{name}.heic")
    assert refused(pets).endswith(
        f"test has no images in bee\n  {pets}: passed over files that are not images: 2 .heic "
        "(such as test/bee/0.heic)"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_only_regular_files_are_opened(pets: Path) -> None:
    folder = pets / "train" / "ant"
    os.mkfifo(folder / "a.png")
    os.mkfifo(folder / "b")
    (folder / "c.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "d.png"))
    (folder / "e").symlink_to("gone")
    (folder / "f").symlink_to("f")
    assert listed(pets).notices == (
        f"{pets}: passed over train/ant/a.png (a FIFO), train/ant/b (a FIFO), "
        "train/ant/c.png (a device), train/ant/d.png (a socket), "
        "train/ant/e (a link that leads nowhere), train/ant/f (a link that leads nowhere)",
    )


def test_folder_named_like_an_image_is_a_folder(pets: Path) -> None:
    write_image(pets / "train" / "ant" / "more.png" / "x.png", 1)
    assert "train/ant/more.png/x.png" in listed(pets).splits["train"]["ant"]


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="names are text there")
def test_names_that_are_no_text_are_named(pets: Path) -> None:
    bad = os.fsdecode(b"\xff")
    shutil.copy(pets / "train" / "ant" / "0.png", pets / "train" / "ant" / f"{bad}.png")
    (pets / "train" / bad).mkdir()
    found = listed(pets)
    assert list(found.splits["train"]) == ["ant", "bee"]
    assert found.notices == (
        f"{pets}: passed over train/ant/{bad}.png (a name that is not UTF-8), "
        f"train/{bad} (a name that is not UTF-8)",
    )


@NEEDS_LINKS
def test_every_real_folder_is_looked_into_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links back into the split label no image twice; those out of it are followed.

    Two folders outside lead to each other, and to a class that has its own images.
    """
    (pets / "train" / "ant" / "again").symlink_to(pets / "train" / "ant")
    (pets / "train" / "ant" / "up").symlink_to(pets / "train")
    one, other = (pets.parent / name for name in ("one", "other"))
    for number, (here, there) in enumerate(((one, other), (other, one))):
        write_image(here / "x.png", seed=number)
        (here / "there").symlink_to(there)
        (here / "class").symlink_to(pets / "train" / "bee")
        (pets / "train" / "ant" / here.name).symlink_to(here)
    seen: list[str] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        seen.append(os.path.realpath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    found = listed(pets)
    counts = {name: len(paths) for name, paths in found.splits["train"].items()}
    assert counts == {"ant": 4, "bee": 2}
    assert len(seen) == len(set(seen)) == 12
