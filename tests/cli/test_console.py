"""Tables, notes and errors on the console."""

import io
import sys

import pytest

from resnet_builder.cli.console import escaped, note, percent, points, show_error, table
from resnet_builder.errors import DataError, Problem, SpecError, Stopped


def test_table_aligns_names_left_and_numbers_right() -> None:
    assert table(("name", "MACs"), [("a", "1,000"), ("longer", "2")]) == (
        "name     MACs\n"
        "a       1,000\n"
        "longer      2"
    )  # fmt: skip


def test_table_shows_no_control_characters() -> None:
    assert table(("x",), [("\x1b[2J",)]).splitlines()[1] == "\\x1b[2J"


def test_escaped_keeps_lines() -> None:
    assert escaped("a\nb\rc") == "a\nb\\x0dc"


def test_notes_need_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    note("nobody hears this")


def test_numbers_are_written_as_in_papers() -> None:
    assert (percent(0.91254), percent(None)) == ("91.25 %", "")
    assert (points(0.0012), points(-0.01), points(None)) == ("+0.12", "-1.00", "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("no images"), "error: no images\n"),
        (Stopped("stopped after step 3"), "stopped after step 3\n"),
        (
            SpecError([Problem("limit", "", "too large", file="x.yaml")]),
            "x.yaml: error[limit]: too large\n",
        ),
    ],
)
def test_error_is_shown_on_stderr(
    error: Exception, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_error(error)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", text)
