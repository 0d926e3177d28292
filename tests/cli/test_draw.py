"""``resnet-build draw``."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.experiments import call, write_tiny


def test_drawing_is_written_in_the_form_of_its_ending(folder: Path) -> None:
    write_tiny(folder)
    for form in (".svg", ".mmd", ".md"):
        result = call("draw", "tiny.yaml", "-o", f"net{form}")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"wrote net{form}: tiny, depth 1 + 2 + 1 = 4\n"
    svg, mermaid = Path("net.svg").read_text(), Path("net.mmd").read_text()
    assert ElementTree.fromstring(svg).findtext("{http://www.w3.org/2000/svg}title") == "tiny"
    assert Path("net.md").read_text() == f"```mermaid\n{mermaid}```\n"
    assert call("draw", "tiny.yaml").stdout == svg
    changed = call("draw", "tiny.yaml", "--full", "--set", "model.stages.0.blocks=3")
    assert "depth 1 + 6 + 1 = 8" in changed.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.png", "error: net.png: name a file that ends in .svg, .mmd or .md\n"),
        (
            "tiny.md",
            "error: tiny.md exists and is not overwritten: name another file, or remove it\n",
        ),
    ],
)
def test_other_endings_and_files_that_exist_are_refused(
    name: str, message: str, folder: Path
) -> None:
    write_tiny(folder, name="tiny.md")
    before = Path("tiny.md").read_text()
    result = call("draw", "resnet20", "-o", name)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)
    assert Path("tiny.md").read_text() == before
