"""``docs/reliability.md`` has every row, and each row has tests, or a reason why not."""

import importlib.util
import inspect
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from resnet_builder import errors

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

# What ids are made of: names of tests, and texts that begin with a row; docstrings are neither.
ID = re.compile(r"""def (test_\w+)|(?<!["'])["'](row\d\d)""")


def script() -> Any:
    """Import the script that writes the document."""
    path = ROOT / "benchmarks" / "reliability.py"
    spec = importlib.util.spec_from_file_location("reliability", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RELIABILITY = script()
TEXT = RELIABILITY.DOC.read_text(encoding="utf-8")


def rows_with_tests() -> set[int]:
    """Return the rows that the ids of tests name."""
    sources = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")]
    ids = [found[1] or found[2] for source in sources for found in ID.finditer(source)]
    ids += [path.name for path in (TESTS / "spec" / "bad").glob("*.yaml")]
    return {int(number) for text in ids for number in RELIABILITY.ROW.findall(text)}


def test_rows_are_numbered_throughout() -> None:
    assert list(RELIABILITY.rows_of(RELIABILITY.load_areas())) == list(range(1, 76))


def test_row_has_tests_or_else_a_reason() -> None:
    rows = RELIABILITY.rows_of(RELIABILITY.load_areas())
    reasons = {number for number, row in rows.items() if "untested" in row}
    assert rows_with_tests() == rows.keys() - reasons


def test_document_is_up_to_date_with_rows_and_results() -> None:
    areas, results = RELIABILITY.load_areas(), RELIABILITY.load_results()
    assert RELIABILITY.refreshed(TEXT, areas, results) == TEXT


def test_document_has_every_exit_code_once() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d+) \| .* \| .* \|$", TEXT, re.MULTILINE)]
    raised = {
        error.exit_code
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.ResnetBuilderError)
    }
    head = codes[: codes.index(143) + 1]
    assert sorted(head) == sorted({0, 143, *raised})


REPORT = """\
<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_row01_x[1]"/>
<testcase classname="tests.test_a" name="test_row01_x[2]"><skipped/></testcase>
<testcase classname="tests.test_b" name="test_row02_row03_y"><failure/></testcase>
<testcase classname="tests.test_b" name="test_z"/>
</testsuite></testsuites>
"""
AREAS = [{"area": "All", "rows": {n: {"when": f"w{n}", "then": f"t{n}"} for n in (1, 2, 3, 4)}}]


def test_table_tells_what_passed_and_what_did_not() -> None:
    results: dict[str, Any] = {}
    cases = list(ElementTree.fromstring(REPORT).iter("testcase"))
    RELIABILITY.take_in(results, "default", cases)
    RELIABILITY.take_in(results, "ci", cases[:1])
    text = RELIABILITY.refreshed("<!-- table: reliability -->\n<!-- end -->", AREAS, results)
    assert "**1 of 4 rows are covered by tests that pass.**" in text
    assert "No test that passes is known of: 2, 3, 4." in text
    assert "| 1 | w1 | t1 | 1 by default, 1 in CI |\n" in text
    assert "| 3 | w3 | t3 | 0 by default, **1 failed** |\n" in text
    assert "| 4 | w4 | t4 | none |\n" in text
    assert "- 1: `tests/test_a.py`: `x`\n" in text


def test_report_takes_the_place_of_the_one_before() -> None:
    results: dict[str, Any] = {}
    cases = list(ElementTree.fromstring(REPORT).iter("testcase"))
    RELIABILITY.take_in(results, "default", cases)
    RELIABILITY.take_in(results, "default", cases[2:])
    assert results["1"] == {}
