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

from resnet_builder.data.class_folders import (
    ClassFolders,
    find_classes,
    find_images,
    find_split,
)
from resnet_builder.data.interfaces import never
from resnet_builder.errors import DataError, MissingDataError, UsageError
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
        (None, "val/dog", "val has folders that train has not: dog; train has ant, bee"),
        (None, "test/dog", "test has folders that train has not: dog; train has ant, bee"),
        ("val/bee", "val/dog", "val has folders that train has not: dog; train has ant, bee"),
        ("train/bee", "train/bee", "train has no images in bee"),
        ("val", "val/ant", "val has no images in ant"),
        ("val", "val", "val has no folders; there must be one for each class"),
        ("train", "train", "train has no folders; there must be one for each class"),
    ],
)
def test_classes_that_differ_are_named(
    remove: str | None, add: str | None, message: str, pets: Path
) -> None:
    if remove:
        shutil.rmtree(pets / remove)
    if add:
        (pets / add).mkdir(parents=True)
    assert message in refused(pets)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("way", ["no folder", "empty folder"])
def test_split_may_lack_a_class(split: str, way: str, pets: Path) -> None:
    shutil.rmtree(pets / split / "bee")
    if way == "empty folder":
        (pets / split / "bee").mkdir()
    found = listed(pets)
    assert found.splits[split] == {"ant": [f"{split}/ant/0.png", f"{split}/ant/1.png"]}
    assert found.notices == (f"{pets}: {split} has no images of bee",)


def test_split_of_nothing_but_other_classes_tells_of_predict(pets: Path) -> None:
    shutil.rmtree(pets / "test")
    write_image(pets / "test" / "unknown" / "0.png", 1)
    assert refused(pets).endswith(
        "has folders that train has not: unknown; train has ant, bee; predict takes images without "
        "labels"
    )


def test_test_images_without_labels_are_passed_over(pets: Path) -> None:
    for name in ("ant", "bee"):
        shutil.rmtree(pets / "test" / name)
    for number in range(3):
        write_image(pets / "test" / f"{number}.png", number)
    (pets / "test" / "ids.csv").write_text("")
    (pets / "test" / ".ipynb_checkpoints").mkdir()
    found = listed(pets)
    assert list(found.splits) == ["train", "val"]
    assert found.notices == (
        f"{pets}: passed over files outside of the classes' folders: 1 .csv (test/ids.csv)",
        f"{pets}: passed over test/.ipynb_checkpoints (a folder)",
        f"{pets}: passed over test: its 3 images lie in no class's folder, so they have no labels; "
        "predict takes them",
    )
    # Validation images without labels serve nothing.
    move(pets / "test", "aside")
    shutil.rmtree(pets / "val")
    move(pets / "aside", "val")
    assert f"{pets / 'val'} has no folders; there must be one for each class" in refused(pets)


# Folders of classes alone


def test_folders_of_classes_alone_are_training_images(tmp_path: Path, pets: Path) -> None:
    root = (pets / "train").rename(tmp_path / "classes")
    (root / "README.md").write_text("about")
    write_image(root / "lost.png", 1)
    (root / ".git").mkdir()
    (root / "runs" / "one").mkdir(parents=True)
    for name in ("best.safetensors", "spec.yaml"):
        (root / "runs" / "one" / name).write_text("")
    found = listed(root)
    assert found.splits == {
        "train": {name: [f"{name}/0.png", f"{name}/1.png"] for name in ("ant", "bee")}
    }
    assert found.notices == (
        f"{root}: passed over files outside of the classes' folders: 1 .md (README.md), "
        "1 .png (lost.png)",
        f"{root}: passed over .git (a folder), runs (a folder with .safetensors files and no "
        "images)",
    )
    (root / "cow").mkdir()
    assert refused(root).startswith(
        f"{root} has no images in cow; each folder counts as a class here: move others away, or "
        "classes to train/"
    )


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (("test/ant/0.png", "ant/0.png"), "there are ant (a folder), test (a folder)"),
        (("val/ant/0.png", "ant/0.png"), "there are ant (a folder), val (a folder)"),
        (("ant/train/0.png", "bee/train/0.png"), "ant has one: add `/ant` to the path"),
        (("Train/ant/0.png", "training/ant/0.png"), "there are Train (a folder), training"),
        (("0.png", "1.png"), "there are 2 .png (such as 0.png)"),
        ((), "train does not exist; image_folder needs"),
    ],
)
def test_what_may_be_splits_is_not_taken_for_classes(
    arrange: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    for name in arrange:
        write_image(tmp_path / "root" / name, 1)
    (tmp_path / "root").mkdir(exist_ok=True)
    assert message in refused(tmp_path / "root")


def test_classes_beside_train_are_named_as_before(pets: Path) -> None:
    write_image(pets / "cow" / "0.png", 1)
    found = listed(pets)
    assert list(found.splits["train"]) == ["ant", "bee"]
    assert found.notices == (f"{pets}: passed over cow (a folder)",)


def test_folders_of_other_files_alone_are_named(tmp_path: Path) -> None:
    (tmp_path / "root" / "ant").mkdir(parents=True)
    (tmp_path / "root" / "ant" / "0.heic").write_text("")
    assert refused(tmp_path / "root").endswith(
        f"\n  {tmp_path}/root: passed over files that are not images: 1 .heic (ant/0.heic)"
    )


def test_table_beside_images_without_classes_is_pointed_to(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image(root / "0.png", 1)
    (root / "labels.CSV").write_text("")
    hint = f"for labels from a table, give {root}/labels.CSV in place of the folder"
    assert refused(root).splitlines() == [
        f"{root}/train does not exist; image_folder needs train/CLASS/... and test/CLASS/..., or "
        "folders of classes alone; there are 1 .csv (labels.CSV), 1 .png (0.png)",
        f"  {hint}",
    ]
    write_image(root / "train" / "0.png", 1)
    assert refused(root).splitlines()[0::2] == [
        f"{root}/train has no folders; there must be one for each class",
        f"  {root}: passed over 0.png (a file), labels.CSV (a file)",
    ]
    assert refused(root).endswith(f"\n  {hint}")
    (root / "train" / "more.tsv").write_text("")
    assert refused(root).endswith(
        f"\n  for labels from a table, give one of {root}/labels.CSV, {root}/train/more.tsv in "
        "place of the folder"
    )
    (root / "train" / "more.tsv").unlink()
    (root / "train").rename(root / "photos")
    assert listed(root).notices[-1] == f"{root}: {hint}"
    write_image(root / "more" / "0.png", 1)
    assert f"{root}: {hint}" not in listed(root).notices


def test_classes_one_folder_below_are_told_with_the_path(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write_image(tmp_path / "root" / "pets" / name / "0.png", 1)
    found = listed(tmp_path / "root")
    assert list(found.splits["train"]) == ["pets"]
    assert found.notices == (
        f"{tmp_path}/root: if pets/ant, pets/bee are the classes, add `/pets` to the path",
    )


# One split alone


def test_one_split_is_listed_without_the_others(pets: Path) -> None:
    whole = listed(pets)
    (pets / "val" / "bee" / "notes.txt").write_text("")
    shutil.rmtree(pets / "train")
    found = find_split(pets, "test", never, undivided=True)
    assert found.splits == {"test": whole.splits["test"]}
    assert found.notices == ()
    shutil.rmtree(pets / "test" / "ant")
    (pets / "test" / "ant").mkdir()
    found = find_split(pets, "test", never, undivided=True)
    assert list(found.splits["test"]) == ["bee"]
    assert found.notices == (f"{pets}: test has no images of ant",)


def test_folders_of_classes_are_any_split_that_may_be_undivided(pets: Path) -> None:
    found = find_split(pets / "test", "test", never, undivided=True)
    assert found.splits == {
        "test": {name: [f"{name}/0.png", f"{name}/1.png"] for name in ("ant", "bee")}
    }
    with pytest.raises(UsageError, match=r"no val images: \S+test is not divided into splits"):
        find_split(pets / "test", "val", never, undivided=False)


def test_split_that_is_not_there_or_has_no_labels_is_refused(pets: Path) -> None:
    shutil.rmtree(pets / "test")
    with pytest.raises(UsageError, match=r"^there are no test images; there are train, val$"):
        find_split(pets, "test", never, undivided=True)
    write_image(pets / "test" / "0.png", 1)
    with pytest.raises(DataError, match="test has no folders of classes, so its images have no la"):
        find_split(pets, "test", never, undivided=True)
    with pytest.raises(MissingDataError, match="gone/test does not exist"):
        find_split(pets / "gone", "test", never, undivided=True)


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
        f"test has folders that train has not: {apart} ('cafe\\u0301'); "
        f"train has bee, {composed} ('caf\\xe9')"
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
    assert "ant" in notice
    assert (ascii(twin) if twin != "Ant" else twin) in notice


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
