"""docs/reliability.md: what the program promises when something goes wrong, and what proves it.

    pytest --junitxml=default.xml; pytest -m ci --junitxml=ci.xml; ...
    python benchmarks/reliability.py [default=default.xml] [ci=ci.xml] [slow=slow.xml]

takes what came of the tests from these reports, keeps it in ``benchmarks/results/reliability.json``
beside what is known of the other suites, and writes the tables anew. It runs no test itself.
"""

import argparse
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DOC = ROOT / "docs" / "reliability.md"
ROWS = ROOT / "docs" / "reliability_rows.yaml"
RESULTS = Path(__file__).parent / "results" / "reliability.json"

SUITES = {"default": "by default", "ci": "in CI", "slow": "slow"}
"""The suites, and how the table calls them."""

OUTCOMES = ("passed", "failed", "skipped")

ROW = re.compile(r"row(\d\d)(?![:\d])")
"""A row's number, in the id of a test."""

_BLOCK = re.compile(r"(<!-- table: reliability -->\n).*?(<!-- end -->)", re.DOTALL)

Results = dict[str, Any]
"""By row, suite and file: the tests' names, and how many passed, failed and were skipped."""


def main() -> None:
    """Take in reports, and write the tables anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="*", metavar="SUITE=FILE")
    results = load_results()
    for report in parser.parse_args().reports:
        suite, _, file = report.partition("=")
        if suite not in SUITES or not file:
            parser.error(f"'{report}' is not SUITE=FILE, the suite one of {', '.join(SUITES)}")
        take_in(results, suite, ElementTree.parse(file).iter("testcase"))
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = DOC.read_text(encoding="utf-8")
    DOC.write_text(refreshed(text, load_areas(), results), encoding="utf-8")


def load_areas() -> list[Any]:
    """Return the areas, each with its rows by number."""
    return list(yaml.safe_load(ROWS.read_text(encoding="utf-8")))


def load_results() -> Results:
    """Return what is known of the tests."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def rows_of(areas: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, str]]:
    """Return all rows by number."""
    return {number: row for area in areas for number, row in area["rows"].items()}


def take_in(results: Results, suite: str, cases: Iterable[ElementTree.Element]) -> None:
    """Replace what is known of a suite."""
    for row in results.values():
        row.pop(suite, None)
    for case in cases:
        name = case.get("name", "")
        for number in sorted({str(int(digits)) for digits in ROW.findall(name)}):
            files = results.setdefault(number, {}).setdefault(suite, {})
            entry = files.setdefault(_file(case), {"tests": [], **dict.fromkeys(OUTCOMES, 0)})
            entry[_outcome(case)] += 1
            test = name.partition("[")[0]
            entry["tests"] = sorted({*entry["tests"], test})


def refreshed(text: str, areas: Iterable[Mapping[str, Any]], results: Results) -> str:
    """Return the document with its tables as rows and results are now."""
    lines = "\n".join(_lines(list(areas), results))
    return _BLOCK.sub(lambda block: f"{block[1]}\n{lines}\n{block[2]}", text)


def _file(case: ElementTree.Element) -> str:
    """Return a test's file, of its dotted name; there are no classes of tests."""
    return case.get("classname", "").replace(".", "/") + ".py"


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def _lines(areas: list[Mapping[str, Any]], results: Results) -> Iterator[str]:
    rows = rows_of(areas)
    covered = [number for number in rows if _is_covered(results.get(str(number), {}))]
    yield f"**{len(covered)} of {len(rows)} rows are covered by tests that pass.**"
    yield from _uncovered({number: rows[number] for number in rows if number not in covered})
    for area in areas:
        yield from (
            "",
            f"### {area['area']}",
            "",
            "| | When | What happens | Tests |",
            "|-:|-|-|-|",
        )
        for number, row in area["rows"].items():
            count = _count(results.get(str(number), {}))
            yield f"| {number} | {row['when']} | {row['then']} | {count} |"
    yield from ("", "### The tests of each row", "")
    for number in rows:
        yield from _tests(number, results.get(str(number), {}))


def _uncovered(rows: Mapping[int, Mapping[str, str]]) -> Iterator[str]:
    """Name the rows that are not covered, and why."""
    for number, row in rows.items():
        if "untested" in row:
            yield f"\nRow {number} is not: {row['untested']}."
    others = [str(number) for number, row in rows.items() if "untested" not in row]
    if others:
        yield f"\nNo test that passes is known of: {', '.join(others)}."


def _is_covered(suites: Mapping[str, Any]) -> bool:
    total = _total(suites)
    return total["passed"] > 0 and total["failed"] == 0


def _total(suites: Mapping[str, Any]) -> dict[str, int]:
    entries = [entry for files in suites.values() for entry in files.values()]
    return {outcome: sum(entry[outcome] for entry in entries) for outcome in OUTCOMES}


def _count(suites: Mapping[str, Any]) -> str:
    """Say in which suites a row has how many tests, and whether any of them fails."""
    counts = {suite: _total({suite: suites[suite]}) for suite in SUITES if suite in suites}
    parts = [f"{count['passed']} {SUITES[suite]}" for suite, count in counts.items()]
    failed = sum(count["failed"] for count in counts.values())
    if failed:
        parts.append(f"**{failed} failed**")
    return ", ".join(parts) or "none"


def _tests(number: int, suites: Mapping[str, Any]) -> Iterator[str]:
    """List a row's tests by file, each name once."""
    tests: dict[str, dict[str, None]] = {}
    for files in suites.values():
        for file, entry in files.items():
            tests.setdefault(file, {}).update(dict.fromkeys(entry["tests"]))
    for file in sorted(tests):
        names = ", ".join(f"`{_bare(name)}`" for name in sorted(tests[file]))
        yield f"- {number}: `{file}`: {names}"


def _bare(name: str) -> str:
    """Take off of a test's name what it shares with all of them."""
    return re.sub(r"_?row\d\d", "", name.removeprefix("test_")).removeprefix("_")


if __name__ == "__main__":
    main()
