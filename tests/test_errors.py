"""Display of problems, and protection of the terminal that they are shown on."""

import pytest

from resnet_builder.errors import DataError, Problem, SpecPath, counted, dotted, nearest, visible


def test_problem_is_shown_with_its_place_line_choices_and_suggestion() -> None:
    problem = Problem(
        "unknown-name",
        "model.stages[1].shortcut",
        "no shortcut is named 'proj'",
        file="specs/resnet32.yaml",
        line=7,
        col=43,
        snippet="    - {channels: 32, blocks: 5, shortcut: proj}",
        allowed=("none", "pad", "projection"),
        suggestion="projection",
    )
    assert str(problem) == (
        "specs/resnet32.yaml:7:43: error[unknown-name]: model.stages[1].shortcut: "
        "no shortcut is named 'proj'\n"
        "    7 |     - {channels: 32, blocks: 5, shortcut: proj}\n"
        "      |                                           ^\n"
        "allowed: none, pad, projection\n"
        "did you mean: projection"
    )


def test_problem_in_an_argument_shows_the_argument() -> None:
    problem = Problem("shape", "a", "wrong", file="<command line>:--set", col=3, snippet="a=5")
    assert str(problem) == (
        "<command line>:--set: error[shape]: a: wrong\n      | a=5\n      |   ^"
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("model", "stages", 1, "block"), "model.stages[1].block"),
        ((0, 1), "[0][1]"),
    ],
)
def test_path_is_written_with_dots_and_brackets(path: SpecPath, text: str) -> None:
    assert dotted(path) == text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("projecton", "projection"),
        ("Projection", "projection"),
        ("pr\u043ejection", "projection"),
        ("pro\u200bjection", "projection"),
        ("\u0440ad", "pad"),
        ("proj", "projection"),
        ("pr", None),
        ("vertical_flip", None),
        ("random_vertical_flip", None),
        ("flip_horizontal", "horizontal_flip"),
        ("horizontal-flp", "horizontal_flip"),
        ("conv5x5", None),
        ("conv3_3", "conv3x3"),
        ("layer9", None),
        ("layer_1", "layer1"),
        ("", None),
        ("C", None),
    ],
)
def test_nearest_name_is_a_misspelt_one_and_means_the_same(name: str, meant: str | None) -> None:
    shortcuts = ["pad", "projection_all", "projection", "none"]
    assert nearest(name, [*shortcuts, "horizontal_flip", "conv3x3", "layer1", "layer2"]) == meant


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, text!", "plain, text!"),
        ("caf\xe9 \u4e2d \u0444", "caf\xe9 \u4e2d \u0444"),
        pytest.param("m\u043edel", "m\u043e<U+043E>del", id="cyrillic"),
        pytest.param("a\u200bb", "a<U+200B>b", id="zero-width"),
        pytest.param("a\u202eb", "a<U+202E>b", id="override"),
        pytest.param("a\u00a0b\u2002c", "a<U+00A0>b<U+2002>c", id="other-spaces"),
        pytest.param("\x1b[2J", "\\x1b[2J", id="escape"),
        ("a\nb\rc\td\x7f", "a\\x0ab\\x0dc\\x09d\\x7f"),
        ("\x9b\ud800\ue000\u2028", "<U+009B><U+D800><U+E000><U+2028>"),
    ],
)
def test_what_cannot_be_seen_is_spelt_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_message_is_escaped_everywhere() -> None:
    evil = "\x1b[2J\n"
    problem = Problem(
        "shape", evil, evil, file=evil, snippet=evil, allowed=(evil,), suggestion=evil
    )
    lines = str(problem).split("\n")
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)


def test_caret_stands_below_its_column() -> None:
    def caret(snippet: str, col: int) -> tuple[str, str]:
        _, line, below = str(Problem("shape", "", "", col=col, snippet=snippet)).split("\n")
        return line[8:], below[8:]

    assert caret("abc", 2) == ("abc", " ^")
    assert caret("\tabc", 2) == (" abc", " ^")
    assert caret("\x1bab", 2) == ("\\x1bab", "    ^")
    assert caret("\u4e2db", 2) == ("\u4e2db", "  ^"), "a wide letter takes two columns"
    assert caret("e\u0301b", 3) == ("e\u0301b", " ^"), "an accent takes none"
    assert caret("abc", 4) == ("abc", "   ^")
    assert caret("", 1) == ("", "^")


def test_long_line_is_cut_around_its_column() -> None:
    snippet = "x" * 500 + "HERE" + "y" * 500
    _, line, below = str(Problem("shape", "", "", line=1, col=501, snippet=snippet)).split("\n")
    assert len(line) == 8 + 160
    assert line[below.index("^") :].startswith("HERE")


def test_names_in_a_message_begin_no_line_and_send_nothing_to_the_terminal() -> None:
    """Letters of other scripts stay: a message full of code points could not be read."""
    error = DataError(
        "2 images cannot be decoded:", "  a\nerror: b\r\x1b[2J.png", "  книга\u202e.png"
    )
    assert str(error) == (
        "2 images cannot be decoded:\n  a\\x0aerror: b\\x0d\\x1b[2J.png\n  книга<U+202E>.png"
    )


def test_one_is_not_counted_as_many() -> None:
    assert counted(1, "thread") == "1 thread"
    assert counted(0, "entry", "entries") == "0 entries"
    assert counted(2_000, "image") == "2,000 images"
