"""``docs/errors.md`` has a paragraph on every code, and its messages are the real ones.

``REGENERATE_GOLDEN=1 pytest tests/test_errors_doc.py`` writes the messages anew: read the diff.
"""

import inspect
import os
import re
from pathlib import Path

import pytest

from resnet_builder import errors
from resnet_builder.builder import read_spec
from resnet_builder.errors import SpecError
from resnet_builder.problems import CODES

DOC = Path(__file__).parents[1] / "docs" / "errors.md"
TEXT = DOC.read_text(encoding="utf-8")
BASE = re.search(r"```yaml\n(# base\.yaml\n.*?)```\n", TEXT, re.DOTALL)
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", TEXT, re.M | re.S))
EXAMPLE = re.compile(r"```yaml\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def test_every_code_has_a_paragraph_in_order() -> None:
    assert tuple(SECTIONS) == CODES


@pytest.mark.parametrize("code", CODES)
def test_example_gets_its_message(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert BASE is not None
    Path("base.yaml").write_text(BASE[1], encoding="utf-8")
    example = EXAMPLE.search(SECTIONS[code])
    assert example is not None
    Path("example.yaml").write_text(example[1], encoding="utf-8")

    with pytest.raises(SpecError) as raised:
        read_spec("example.yaml")

    assert [problem.code for problem in raised.value.errors] == [code]
    if os.environ.get("REGENERATE_GOLDEN"):
        write_message(example, str(raised.value))
    else:
        assert example[2] == f"{raised.value}\n"


def write_message(example: re.Match[str], message: str) -> None:
    """Put a message behind its example."""
    text = DOC.read_text(encoding="utf-8")
    new = f"```yaml\n{example[1]}```\n\n```text\n{message}\n```\n"
    DOC.write_text(text.replace(example[0], new), encoding="utf-8")


def test_message_at_the_top_is_that_of_an_example() -> None:
    top = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    example = EXAMPLE.search(SECTIONS["unknown-name"])
    assert top is not None
    assert example is not None
    assert top[1] == example[2]


def test_example_of_a_code_is_no_longer_than_it_must_be() -> None:
    for code, body in SECTIONS.items():
        example = EXAMPLE.search(body)
        assert example is not None
        assert len(example[1].splitlines()) <= 5, code


def test_base_of_the_examples_has_no_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert BASE is not None
    Path("base.yaml").write_text(BASE[1], encoding="utf-8")
    assert read_spec("base.yaml").name == "base"


def test_table_has_every_error_and_its_exit_code() -> None:
    rows = re.findall(r"^\| +(\d+) \| .*? \| (.*?) ?\|$", TEXT, re.MULTILINE)
    table = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    raised = {
        name: error.exit_code
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.ResnetBuilderError)
    }
    table["Stopped"] = 130  # the signal decides; both its codes are in the table
    assert table == raised
    assert {int(code) for code, _ in rows} == {*range(10), 130, 143}
