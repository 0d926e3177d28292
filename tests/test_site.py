"""The site of docs/: links, navigation, and the reference pages that are made from the code.

``python docs/generate.py``, or ``REGENERATE_GOLDEN=1 pytest tests/test_site.py``, writes them.
"""

import inspect
import os
import re
import runpy
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from jsonschema import Draft202012Validator

from resnet_builder.parts import REGISTRIES
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.json_schema import json_schema
from resnet_builder.spec.yaml_source import parse_plain

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings exist, for GitHub and for the site; addresses of hosts are well-formed."""
    for link in links(page):
        place, _, anchor = link.partition("#")
        if "://" in place:
            assert re.fullmatch(r"https?", urlsplit(place).scheme), link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", urlsplit(place).netloc), link
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert DOCS in target.parents or DOCS not in page.parents, f"{link}: not part of the site"
        if anchor:
            assert anchor in anchors(target), link


def links(page: Path) -> list[str]:
    """Targets of the links and images of a page, without those in code."""
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    return [markdown or html for markdown, html in found]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page that GitHub and the site agree on."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = [re.sub(r"[`*]", "", one).strip() for one in re.findall(r"^#+ (.*)$", text, re.M)]
    return {of_github(one) for one in headings} & {of_site(one) for one in headings}


def of_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def of_site(heading: str) -> str:
    """Anchor of a heading as Python-Markdown makes it."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def test_navigation_and_index_have_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    index, *sections = config["nav"]
    named = [page for section in sections for pages in section.values() for page in pages]
    assert [index, *sorted(named)] == [
        "index.md",
        *sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.stem != "index"),
    ]
    linked = [link for link in links(DOCS / "index.md") if link.endswith(".md")]
    assert [*dict.fromkeys(linked)] == named


@pytest.mark.parametrize("page", ["keys.md", "parts.md", "commands.md"])
def test_reference_is_that_of_the_code(page: str) -> None:
    text = runpy.run_path(str(DOCS / "generate.py"))[f"{Path(page).stem}_page"]()
    file = DOCS / "reference" / page
    if os.environ.get("REGENERATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == text, "python docs/generate.py writes it again"


@pytest.mark.parametrize("page", ["spec.md", "data.md"])
def test_parts_of_specs_in_the_reference_fit_the_schema(page: str) -> None:
    schema = json_schema(REGISTRIES)
    homes = {
        key: name for name in ("model", "data") for key in schema["properties"][name]["properties"]
    }
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    found = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found
    for block in found:
        values = parse_plain(block, page)
        first = next(iter(values))
        spec = {homes[first]: values} if first in homes else values
        Draft202012Validator(schema).validate(spec)


def test_page_of_run_directories_names_every_file() -> None:
    run = RunDirectory(Path("run"))
    values = [
        getattr(run, name)
        for name, found in inspect.getmembers(RunDirectory)
        if isinstance(found, property) and found.fget.__annotations__["return"] is Path
    ]
    text = (DOCS / "reference" / "runs.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+?)/?` \|", text, re.MULTILINE)
    assert {value.name for value in values} <= set(named)


def test_speed_ups_of_readme_are_those_of_the_benchmarks() -> None:
    benchmarks = (DOCS / "reference" / "benchmarks.md").read_text(encoding="utf-8")
    [table] = re.findall(r"<!-- table: training -->\n(.*?)<!-- end -->", benchmarks, re.DOTALL)
    pairs = re.findall(r"\| ([\d.]+), ([\d.]+) \|$", table, re.MULTILINE)
    stock, tuned = ([float(one) for one in column] for column in zip(*pairs, strict=True))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for column, words in ((stock, "the usual script"), (tuned, "one with channels-last memory")):
        assert f"{min(column):.1f} to {max(column):.1f} times as fast as {words}" in readme


def test_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert tables["refreshed"](text) == text, f"python benchmarks/tables.py writes {page} again"
