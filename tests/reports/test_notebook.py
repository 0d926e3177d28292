"""Notebooks: progress while training, and a run as HTML."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from resnet_builder import Run, train
from resnet_builder.errors import Stopped
from tests.cli.experiments import TINY, write_tiny
from tests.training.runs import after


@dataclass
class Output:
    """Stand-in for IPython's handle of an output, which keeps all that it was given."""

    shown: list[str] = field(default_factory=list)

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    """Make this process look like the kernel of a notebook."""
    found = Output()
    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: type("Shell", (), {"kernel": None})()
    ipython.display = ModuleType("IPython.display")
    ipython.display.HTML = str
    ipython.display.display = lambda html, display_id: found
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return found


def body(html: str) -> ElementTree.Element:
    """Parse the HTML behind its styles, which is well-formed XML."""
    return ElementTree.fromstring(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))


def test_training_shows_its_progress_and_then_result_and_curves(
    output: Output, tmp_path: Path
) -> None:
    run = train(write_tiny(tmp_path), tmp_path / "run", overrides=["run.report=false"])
    assert run.result is not None
    last = body(output.shown[-1])
    assert not last.findall(".//progress")
    assert any(body(html).findall(".//progress") for html in output.shown[:-1])
    rows = [[cell.text or "" for cell in row] for row in last.findall(".//tbody/tr")]
    assert [(row[0].partition(",")[0], row[2]) for row in rows] == [
        ("validation", "4"),
        ("validation", "8"),
        ("validation", "12"),
        ("test", f"{run.result.selected_step}"),
    ]
    best = [row[2] for row in rows if row[0] == "validation, best"]
    assert best == [f"{run.result.selected_step}"]
    assert rows[-1][-1] == f"{100 * (run.result.test_top1 or 0):.2f} %"
    assert f"test top-1 {rows[-1][-1]}" in "".join(last.itertext())

    html = run._repr_html_()
    assert html is not None
    parsed = body(html)
    text = "".join(parsed.itertext())
    assert f"{run.path}: finished, step 12 of 12" in text
    assert f"test top-1 {100 * (run.result.test_top1 or 0):.2f} %, " in text
    assert "published 50.00 %" in text
    highest = max(row.val_top1 for row in run.history if row.val_top1 is not None)
    assert f"best {100 * highest:.2f}" in text
    assert html.count('class="resnet-chart"') == 2


def test_progress_can_be_left_out(output: Output, tmp_path: Path) -> None:
    short = ["train.epochs=1", "run.report=false"]
    train(write_tiny(tmp_path), tmp_path / "run", overrides=short, progress=False)
    assert not output.shown


def test_run_without_result_or_with_damage_has_a_text_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(write_tiny(tmp_path), tmp_path / "run", should_stop=after(3))
    run = Run(tmp_path / "run")
    assert "run: stopped, step " in (run._repr_html_() or "")
    (tmp_path / "run" / "metrics.jsonl").write_text("{\n")
    assert run._repr_html_() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of other packages
def test_notebook_shows_the_training_of_a_cell(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    (tmp_path / "tiny.yaml").write_text(TINY)
    code = "from resnet_builder import train\nrun = train('tiny.yaml', 'run')\nrun"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(
        notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    progress, result = notebook.cells[0].outputs
    assert progress.output_type == "display_data"
    assert "test top-1" in progress.data["text/html"]
    assert "resnet-chart" in result.data["text/html"]
    assert result.data["text/plain"] == "Run('run')"
