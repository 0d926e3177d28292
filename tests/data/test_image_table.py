"""Image tables: columns, files, labels and splits; whatever is wrong with a row has its line."""

import json
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.data.image_folder import ImageFolder
from resnet_builder.data.image_table import ImageTable
from resnet_builder.data.interfaces import LoadContext, LoadedDataset, never
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.errors import DataError, MissingDataError, PartError, UsageError
from resnet_builder.testing import check_dataset
from tests.data.folders import write_image, write_pets
from tests.fuzz.damage import damage_bytes

ROWS = [
    *((f"images/{number}.png", "bee" if number % 2 else "ant", "train") for number in range(4)),
    ("images/4.png", "ant", "validation"),
    ("images/5.png", "bee", "Test"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in a folder beside the table."""
    for number in range(6):
        write_image(tmp_path / "images" / f"{number}.png", number)
    return tmp_path


def write(root: Path, *lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = root / name
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def write_rows(root: Path, delimiter: str = ",") -> Path:
    return write(root, delimiter.join(("file", "label", "split")), *map(delimiter.join, ROWS))


def load(path: Path, **options: Any) -> LoadedDataset:
    how = {name: options.pop(name) for name in ("skip_bad",) if name in options}
    dataset = ImageTable(path=str(path), **options)
    inspected = dataset.inspect(path.parent, never)
    loaded = dataset.load(LoadContext(path.parent, Preprocessing(), **how))
    assert inspected.classes == loaded.classes
    assert loaded.notices[: len(inspected.notices)] == inspected.notices
    return loaded


def refused(path: Path, kind: type[Exception] = DataError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(path, **options)
    return str(caught.value)


def everything(source: Any) -> torch.Tensor:
    return next(source.read([torch.arange(len(source))]))


def told(loaded: LoadedDataset, path: Path) -> list[str]:
    """Return the table's notices, without its path before each."""
    return [notice.removeprefix(f"{path}: ") for notice in loaded.notices]


# Files and formats


def test_table_and_folders_of_the_same_images_are_the_same_bits(tmp_path: Path) -> None:
    pets = write_pets(tmp_path, ("train", "val", "test"))
    names = [path.relative_to(tmp_path).as_posix() for path in pets.rglob("*.bmp")]
    rows = [",".join((name, *reversed(name.split("/")[1:3]))) for name in sorted(names)[::-1]]
    table = load(write(tmp_path, "file,label,split", *rows))
    folders = ImageFolder(path="pets").load(LoadContext(tmp_path, Preprocessing()))
    assert (table.fingerprint, table.parts) == (folders.fingerprint, folders.parts)
    assert (table.classes, table.notices) == (folders.classes, ())
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(table, split), getattr(folders, split)
        assert torch.equal(everything(ours), everything(theirs))
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    "way", ["comma", "semicolon", "tab", "mark", "windows", "quotes", "another ending", "parquet"]
)
def test_form_of_the_table_does_not_matter(way: str, root: Path) -> None:
    wanted = load(write_rows(root))
    if way in {"semicolon", "tab"}:
        path = write_rows(root, ";" if way == "semicolon" else "\t")
    elif way == "quotes":
        lines = [",".join(f'" {cell} "' for cell in row) for row in ROWS]
        path = write(root, '"file","label","split"', "", *lines, ",,")
    elif way == "another ending":
        path = write_rows(root).rename(root / "labels.txt")
    elif way == "parquet":
        path = write_parquet(root / "labels.parquet", *zip(*ROWS, strict=True))
    else:
        path = write_rows(root)
        content = path.read_bytes()
        content = b"\xef\xbb\xbf" + content if way == "mark" else content.replace(b"\n", b"\r\n")
        path.write_bytes(content)
    if way in {"another ending", "parquet"}:
        (root / "labels.csv").unlink(missing_ok=True)
    loaded = load(path)
    assert loaded.fingerprint == wanted.fingerprint
    assert told(loaded, path) == ["val has no images of bee", "test has no images of ant"]


def write_parquet(path: Path, *columns: Any, names: Any = ("file", "label", "split")) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    metadata = {
        "huggingface": json.dumps(
            {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
        )
    }
    table = pyarrow.table(dict(zip(names, map(pyarrow.array, columns), strict=True)))
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_parquet_has_names_of_classes_or_images_that_are_no_files(root: Path) -> None:
    files, labels, splits = zip(*ROWS, strict=True)
    wanted = load(write_rows(root))
    numbers = [("ant", "bee").index(label) for label in labels]
    path = root / "labels.parquet"
    (root / "labels.csv").unlink()
    assert load(write_parquet(path, files, numbers, splits)).fingerprint == wanted.fingerprint
    write_parquet(path, files, [0, 1, None, 7, 0, 1], splits)
    assert "  row 3: its label is empty" in refused(path)
    write_parquet(path, [{"bytes": b"x", "path": name} for name in files], numbers, splits)
    assert "there are label, split, file (it holds images, not names of files; write" in refused(
        path
    )
    assert refused(path, file_column="file").endswith(
        "column `file` holds images, not names of files; write them to files first"
    )
    path.write_bytes(path.read_bytes()[:-9] + b"damaged!!")
    assert "labels.parquet: it is damaged: " in refused(path)


def test_parquet_without_pyarrow_says_how_to_get_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(root / "labels.parquet", *zip(*ROWS, strict=True))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'resnet-builder[table]'; or save the table as CSV" in refused(
        path, UsageError
    )


@pytest.mark.parametrize("name", ["set", "part", "Phase"])
def test_column_of_nothing_but_splits_is_read(name: str, root: Path) -> None:
    path = write(root, f"file,label,{name}", "0,ant,train", "1,bee,Training", "2,ant,test")
    found = load(path)
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (2, 1)
    assert f"column `{name}` is read as that of the splits" in told(found, path)


def test_column_that_may_mean_splits_is_told(root: Path) -> None:
    path = write(root, "file,label,is_test", "0,ant,0", "1,bee,0", "2,ant,1")
    assert any("column `is_test` is not read, and all" in one for one in told(load(path), path))


def test_labels_in_brackets_and_repeated_columns_are_refused(root: Path) -> None:
    path = write(root, "file,label", "0,\"['ant', 'bee']\"", "1,ant")
    assert "line 2: its label is ['ant', 'bee']; write the labels without brackets" in refused(
        path, separator=","
    )
    with pytest.raises(PartError, match="`ant` is there twice"):
        ImageTable(path="x.csv", label_columns=("ant", "bee", "ant"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; its first line must name the columns"),
        (b"\n\n", "it is empty; its first line must name the columns"),
        (b"file,label\n", "has no rows, but for the names of the columns"),
        ("file,label\n".encode("utf-16"), "it is UTF-16; save it as CSV in UTF-8"),
        (b"file,label\na,caf\xe9\n", "line 2 is not UTF-8; save the table as UTF-8"),
        (b"PK\3\4", "it is a spreadsheet or a zip archive; save it as CSV in UTF-8"),
        (b"\x1f\x8b\x08", "it is compressed; unpack it"),
        (b'file,label\n0,ant\n1,"bee\n2,ant\n', "the row that begins in line 3: unexpected end of"),
        (b'file,label\n0,"a"nt\n', "the row that begins in line 2: ',' expected after '\"'"),
        (b"file,label\n" + b"x" * 200_000 + b",ant\n", "line 2: field larger than field limit"),
        (b"file,label\n0,ant\n1\n2,a,b\n", "names 2 columns, but line 3 has 1 field, line 4 has 3"),
        (b"images/0.png,ant\nimages/1.png,bee\n", "no column is called file, filename, path"),
        (b"file,x,y\n0,1,2\n", "no column is called label, labels, class, class_name, target or"),
        (
            b"file,x,y\n0,1,0\n",
            "if each class has a column of 0 and 1, set data.dataset.label_col",
        ),
        (b"file,label\n0,a;b\n1,a\n2,b\n3,\n", "  labels like 'a;b' are classes of their own; if "),
        (b"<svg>\n<path d='1,2'>\n", "labels.csv is no table of labels: its first line names one"),
        (b"file,file,label\n0,1,2\n", "2 columns are called `file`"),
    ],
)
def test_file_that_is_no_table_is_refused(content: bytes, message: str, root: Path) -> None:
    path = root / "labels.csv"
    path.write_bytes(content)
    assert message in refused(path)


def test_only_regular_files_are_opened(root: Path) -> None:
    assert "there is no such table" in refused(root / "gone.csv", MissingDataError)
    assert "it is a directory, not a regular file" in refused(root / "images")
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "pipe.csv")
        assert "it is a FIFO, not a regular file" in refused(root / "pipe.csv")
        os.mkfifo(root / "images" / "pipe.png")
        path = write(root, "file,label", "images/pipe.png,ant", "images/0.png,bee")
        assert "  line 2: there is no image 'images/pipe.png' in " in refused(path)


# Columns


@pytest.mark.parametrize(
    ("header", "options", "notices"),
    [
        ("Image_ID,Category", {}, []),
        ("file name,CLASS", {}, []),
        ("filepath,class-name", {}, []),
        ("id,breed", {}, ["labels are read from column `breed`, the only other one"]),
        ("a,b", {"file_column": "a", "label_column": "b"}, []),
        (
            "id,label,path,class",
            {},
            [
                "column `path` is read, `id` not; data.dataset.file_column names another",
                "column `label` is read, `class` not; data.dataset.label_column names another",
            ],
        ),
    ],
)
def test_columns_are_found_by_their_usual_names(
    header: str, options: dict[str, str], notices: list[str], root: Path
) -> None:
    rows = ["images/0.png,ant", "images/1.png,bee"]
    if header.count(",") == 3:
        rows = ["9,ant,images/0.png,x", "9,bee,images/1.png,x"]
    path = write(root, header, *rows)
    loaded = load(path, root="images/..", **options)
    assert (loaded.classes, len(loaded.train)) == (("ant", "bee"), 2)
    assert told(loaded, path)[:-1] == notices


def test_column_that_is_not_there_is_named_with_the_others(root: Path) -> None:
    path = write(root, "id,,breed,size", "0,0,ant,1")
    assert refused(path).endswith(
        "there are id, one without a name, breed, size; name it by data.dataset.label_column (the "
        "first line of the file must name the columns)"
    )
    assert refused(path, label_column="bred").endswith(
        "data.dataset.label_column: there is no column `bred`; there are id, one without a name, "
        "breed, size; did you mean: breed"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"root": "other"},
        {"file_column": "name"},
        {"label_column": "colour"},
        {"split_column": "fold"},
        {"separator": ";"},
        {"label_columns": ("big", "small")},
        {"channels": 1},
        {"channels": 4},
    ],
    ids=str,
)
def test_every_option_changes_what_is_loaded(options: dict[str, Any], root: Path) -> None:
    for number in range(6):
        write_image(root / "other" / f"{number}.png", 50 + number)
    lines = [
        f"{n},{5 - n},{'cat' if n % 2 else 'dog'},{'red' if n > 3 else 'blue'},train,"
        f"{'val' if n < 2 else 'train'},{n % 2},{int(n > 1)}"
        for n in range(6)
    ]
    path = write(root, "id,name,label,colour,split,fold,big,small", *lines)
    before, after = (load(path, **{"root": "images", **more}) for more in ({}, options))
    assert after.fingerprint != before.fingerprint
    assert (after.validation is None) == (options != {"split_column": "fold"})
    assert next(after.train.read([torch.tensor([0])])).shape[1] == options.get("channels", 3)


@pytest.mark.parametrize("other", ["label_column", "separator"])
def test_options_that_exclude_each_other_are_refused(other: str) -> None:
    with pytest.raises(PartError, match="has no place beside `label_columns`") as caught:
        ImageTable(path="x", label_columns=("a", "b"), **{other: ";"})  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.option) == ("exclusive", other)


# Files of the rows


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        *((cell, {}) for cell in ("images/0.png", "images/0", "0.png", "0", "./images//0.png")),
        *((cell, {}) for cell in ("images\\0.png", "images/../images/0.png", "ROOT/images/0.png")),
        *(("0", {"root": root}) for root in ("images", "ROOT/images", "images/../images")),
        ("../outside/0.dat", {"root": "images"}),
    ],
)
def test_image_is_found_by_whatever_a_table_calls_it(
    cell: str, options: dict[str, str], root: Path
) -> None:
    (root / "outside").mkdir()
    (root / "outside" / "0.dat").write_bytes((root / "images" / "0.png").read_bytes())
    if "outside" not in cell:
        (root / "outside" / "0.dat").unlink()
    other = "images/1.png" if not options else "1"
    path = write(root, "file,label", f"{cell},ant".replace("ROOT", str(root)), f"{other},bee")
    options = {name: value.replace("ROOT", str(root)) for name, value in options.items()}
    loaded = load(path, **options)
    whole = load(write(root, "file,label", "images/0.png,ant", "images/1.png,bee"))
    assert torch.equal(everything(loaded.train), everything(whole.train))


def test_images_without_a_row_and_other_files_are_told(root: Path) -> None:
    (root / "images" / "notes.txt").write_text("")
    path = write(root, "file,label", *(f"{number},c{number % 2}" for number in range(4)))
    assert load(path).notices == (
        f"{root}: passed over files that are not images: 1 .txt (images/notes.txt)",
        f"{path}: passed over 2 images in {root} without a row: images/4.png, images/5.png",
    )


def test_every_row_that_cannot_be_used_is_named_by_its_line(root: Path) -> None:
    write_image(root / "more" / "0.jpg", 1)
    path = write(
        root,
        "file,label,split",
        "images/1.png,ant,train",
        '"images/\n2.png",bee,train',
        "images/2.png,,train",
        ",ant,train",
        "images/3.png,ant,holdout",
        "images/3.png,ant,",
        "0,ant,train",
        "images/1.png,bee,train",
        "images/1.png,ant,val",
        *["gone.png,ant,train"] * 20,
    )
    assert refused(path).splitlines()[:12] == [
        f"{path}: 28 rows cannot be used; repair or remove them",
        "  line 6 names no file",
        "  line 7: its split is 'holdout'; it must be train, val or test",
        "  line 8: its split is empty; it must be train, val or test",
        f"  line 3: there is no image 'images/\\x0a2.png' in {root}",
        "  line 9: '0' is the name of images/0.png, more/0.jpg; write the path, or name their "
        "folder by data.dataset.root",
        *(f"  line {line}: there is no image 'gone.png' in {root}" for line in range(12, 18)),
    ]
    assert refused(path).endswith("\n  and 8 more")


def test_repeated_rows_count_once_unless_they_differ(root: Path) -> None:
    lines = ["file,label", "images/0.png,ant", "images/1.png,bee", "0,ant"]
    path = write(root, *lines)
    assert "passed over 1 repeated row: '0' in line 4" in told(load(path), path)
    path = write(root, *lines, "0.png,bee")
    assert (
        "  line 5: '0.png' is bee here, and ant in line 2; to give an image several labels, write "
        "them into one row, with data.dataset.separator"
    ) in refused(path)
    path = write(root, "file,label,split", "0,ant,train", "1,bee,train", "images/0.png,ant,test")
    assert "  line 4: 'images/0.png' is in test here, and in train in line 2" in refused(path)


# Labels and splits


def test_labels_that_are_numbers_are_sorted_by_value(root: Path) -> None:
    path = write(root, "id,target", *(f"{number},{number + 7}" for number in range(6)))
    loaded = load(path)
    assert loaded.classes == ("7", "8", "9", "10", "11", "12")
    assert told(loaded, path) == [
        "no two training images have the same label: is its column right?"
    ]


@pytest.mark.parametrize(("separator", "is_told"), [("|", True), (" ", True), ("-", False)])
def test_labels_that_look_like_several_are_told(separator: str, is_told: bool, root: Path) -> None:
    both = f"ant{separator}bee"
    path = write(root, "id,label", f"0,{both}", "1,ant", "2,bee", f"3,{both}", "4,ant", "5,bee")
    notice = (
        f"labels like '{both}' are classes of their own; if they are several labels, set "
        f'data.dataset.separator to "{separator}"'
    )
    assert told(load(path), path) == [notice] * is_told
    assert not told(load(path, separator=separator), path)
    path = write(root, "id,label", *(f"{number},new york {number % 2}" for number in range(6)))
    assert not told(load(path), path)


def test_splits_are_compared_with_the_classes_of_train(root: Path) -> None:
    rows = ["file,label,split", "0,ant,train", "1,bee,train", "2,ant,dev", "3,ant,val"]
    path = write(root, *rows[:3], "2,cow,val", "3,bee,val")
    assert refused(path).endswith(
        "labels.csv: val has labels that train has not: cow; train has ant, bee"
    )
    path = write(root, *rows[:3], rows[4])
    loaded = load(path)
    assert "val has no images of bee" in told(loaded, path)
    assert loaded.validation is not None
    assert loaded.validation.labels.tolist() == [0]
    path = write(root, rows[0], rows[4])
    assert refused(path).endswith("labels.csv: there are no train images; there are val")


def test_test_rows_without_labels_are_passed_over_and_others_refused(root: Path) -> None:
    rows = ["file,label,split", "0,ant,train", "1,bee,train", "2,,test", "3,,test"]
    path = write(root, *rows)
    loaded = load(path)
    assert loaded.test is None
    notice = "passed over test: its 2 images have no labels; predict takes them"
    assert notice in told(loaded, path)
    assert "  line 4: its label is empty" in refused(write(root, *rows, "4,ant,test"))


def test_one_split_is_loaded_where_only_its_images_are(root: Path) -> None:
    path = write_rows(root)
    whole = load(path)
    for number in range(5):
        (root / "images" / f"{number}.png").unlink()
    context = LoadContext(root, Preprocessing())
    found = ImageTable(path=str(path)).load_split(context, "test", undivided=True)
    assert (found.classes, found.notices) == (("bee",), ())
    assert torch.equal(everything(found.images), everything(whole.test))
    with pytest.raises(DataError, match=r"line 6: there is no image 'images/4\.png'"):
        ImageTable(path=str(path)).load_split(context, "val", undivided=True)
    path = write(root, "file,label", "5,bee")
    found = ImageTable(path=str(path)).load_split(context, "test", undivided=True)
    assert torch.equal(everything(found.images), everything(whole.test))
    with pytest.raises(UsageError, match=r"no val images: .* has no column of splits"):
        ImageTable(path=str(path)).load_split(context, "val", undivided=False)


# Several labels


MULTI = [["red", "big"], ["red"], [], ["small"], ["big", "small"], ["red", "big"]]


@pytest.mark.parametrize("way", ["separator", "columns"])
def test_several_labels_are_a_row_of_ones_for_each_image(way: str, root: Path) -> None:
    names = ("big", "red", "small")
    options: dict[str, Any] = {"separator": "|"}
    lines = ["file,labels", *(f"{n},{' | '.join(labels)}" for n, labels in enumerate(MULTI))]
    if way == "columns":
        options = {"label_columns": names}
        values = [[("True", "0.0")[name not in labels] for name in names] for labels in MULTI]
        lines = ["file,big,red,small", *(f"{n},{','.join(row)}" for n, row in enumerate(values))]
    path = write(root, *lines)
    loaded = load(path, **options)
    assert loaded.classes == names
    assert loaded.train.labels.dtype == torch.uint8
    wanted = [[int(name in labels) for name in names] for labels in MULTI]
    assert loaded.train.labels.tolist() == wanted
    assert loaded.train.subset(torch.tensor([3, 0])).labels.tolist() == [wanted[3], wanted[0]]
    assert told(loaded, path) == ["1 image of train without a label: of no class"]
    assert ImageTable(path=str(path), **options).inspect(root, never).multi_label
    path.write_text(path.read_text().replace("0,", "1,", 1).replace("1,", "0,", 1))
    before = loaded.fingerprint
    path = write(root, *lines[:2], *lines[3:1:-1], *lines[4:])  # the order of rows is nothing
    assert load(path, **options).fingerprint == before
    path = write(
        root, *lines[:-1], lines[-1].replace("big", "small").replace("True,True", "True,0")
    )
    changed = load(path, **options)
    assert changed.fingerprint != before
    assert list(changed.parts) == ["train"]


def test_columns_of_labels_hold_nothing_but_0_and_1(root: Path) -> None:
    path = write(root, "file,a,b", "0,1,0", "1,2,", "2,yes,1")
    assert refused(path, label_columns=("a", "b")).splitlines()[1:] == [
        "  line 3: `a` is '2'; it must be 0 or 1",
        "  line 3: `b` is ''; it must be 0 or 1",
        "  line 4: `a` is 'yes'; it must be 0 or 1",
    ]
    path = write(root, "file,a,b", "0,1,0", "1,1,0")
    assert refused(path, label_columns=("a", "b")).endswith(
        "no training image has the label b; leave it out of data.dataset.label_columns"
    )


def test_table_keeps_the_contract(root: Path) -> None:
    check_dataset(ImageTable, root, path=str(write_rows(root)))


def test_broken_images_are_named_by_their_files_and_skipped(root: Path) -> None:
    path = write_rows(root)
    (root / "images" / "0.png").write_bytes(b"")
    assert f"\n  {root}/images/0.png: cannot be decoded: " in refused(path)
    loaded = load(path, skip_bad=True)
    assert loaded.skipped == ("images/0.png",)
    assert loaded.train.labels.tolist() == [0, 1, 1]


def test_damaged_tables_are_read_or_refused_with_a_message(root: Path) -> None:
    table = write_rows(root)
    contents = [table.read_bytes()]
    contents.append(write_parquet(table, *zip(*ROWS, strict=True)).read_bytes())
    draw, refusals, num_read = random.Random(0), list[str](), 0
    for number in range(120):
        table.write_bytes(damage_bytes(contents[number % 2], draw, contents))
        try:
            separator = draw.choice([None, ";"])
            ImageTable(path=str(table), separator=separator).inspect(root, never)
            num_read += 1
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 50 < len(refusals) + num_read
    assert "".join(refusals).replace("\n", "").isprintable()


def test_images_in_parquet_are_written_to_files_as_the_docs_say(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(root.rglob("*.png"))]
    write_parquet(root / "train.parquet", images, [0, 1] * 3, names=("image", "label"))
    page = Path(__file__).parents[2] / "docs" / "reference" / "data.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    loaded = ImageFolder(path="pets").load(LoadContext(root, Preprocessing()))
    assert (loaded.classes, len(loaded.train)) == (("0", "1"), 6)
