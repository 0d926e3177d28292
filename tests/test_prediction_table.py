"""Tables of predictions."""

import csv
import json
import math
import os
from pathlib import Path

import pytest

from resnet_builder.errors import UsageError
from resnet_builder.prediction_table import Cell, probability_columns, write_table

COLUMNS = ("file", "prediction", *probability_columns(("a,b", "file")))
ROWS: list[list[Cell]] = [
    ['with "quotes"\nand a line', "a,b", 1 / 3, 2.5e-17],
    [os.fsdecode(b"latin \xe9.png"), None, math.nan, math.inf],
    ["whole numbers", True, 7, None],
]


def test_csv_is_read_back_as_it_was(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", COLUMNS, ROWS)
    with open(tmp_path / "t.csv", newline="", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "prediction", "p_a,b", "p_file"]
    assert rows == [
        [str(ROWS[0][0]), "a,b", "0.333333333", "2.5e-17"],
        [str(ROWS[1][0]), "", "", ""],
        ["whole numbers", "True", "7", ""],
    ]


def test_json_has_an_object_a_row(tmp_path: Path) -> None:
    write_table(tmp_path / "t.json", COLUMNS, ROWS)
    assert json.loads((tmp_path / "t.json").read_text()) == [
        dict(zip(COLUMNS, [*ROWS[0][:2], 0.333333333, 2.5e-17], strict=True)),
        dict(zip(COLUMNS, [ROWS[1][0], None, None, None], strict=True)),
        dict(zip(COLUMNS, ROWS[2], strict=True)),
    ]
    write_table(tmp_path / "empty.json", COLUMNS, [])
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_no_table_overwrites_a_file(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", COLUMNS, ROWS)
    before = (tmp_path / "t.csv").read_bytes()
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        write_table(tmp_path / "t.csv", COLUMNS, [])
    assert (tmp_path / "t.csv").read_bytes() == before
