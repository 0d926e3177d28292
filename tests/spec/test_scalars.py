"""Plain words: YAML 1.2's meaning, compared by equality and by type."""

import math

import pytest

from resnet_builder.spec.scalars import AmbiguousError, is_text, resolve

MEANINGS = [
    pytest.param("1e-4", 0.0001, id="row07-1e-4"),
    pytest.param("1e4", 10000.0, id="row07-1e4"),
    pytest.param("1.5e4", 15000.0, id="row07-1.5e4"),
    pytest.param("1E+3", 1000.0, id="row07-1E+3"),
    pytest.param(".5", 0.5, id="row07-no-integer-part"),
    pytest.param("1.", 1.0, id="row07-no-fraction"),
    pytest.param("-1", -1, id="negative"),
    pytest.param("+12", 12, id="plus"),
    pytest.param("0", 0, id="zero"),
    pytest.param("-0.0", -0.0, id="minus-zero"),
    pytest.param("0o17", 15, id="row09-0o17"),
    pytest.param("0xfF", 255, id="hexadecimal"),
    pytest.param("190:20:30", "190:20:30", id="row09-190:20:30"),
    pytest.param("16:9", "16:9", id="row09-16:9"),
    pytest.param("2020-01-01", "2020-01-01", id="row10-date"),
    pytest.param("2020-13-45", "2020-13-45", id="row10-no-date"),
    pytest.param("0b_", "0b_", id="row11-0b_"),
    pytest.param("0b11", "0b11", id="row11-0b11"),
    pytest.param("1e400", math.inf, id="row19-1e400"),
    pytest.param("-.inf", -math.inf, id="minus-infinity"),
    pytest.param("true", True, id="true"),
    pytest.param("FALSE", False, id="FALSE"),
    pytest.param("tRUE", "tRUE", id="tRUE"),
    pytest.param("null", None, id="null"),
    pytest.param("~", None, id="tilde"),
    pytest.param("", None, id="nothing"),
    pytest.param("y", "y", id="y"),
    pytest.param("=", "=", id="equals"),
    pytest.param("${HOME}", "${HOME}", id="row36-shell"),
    pytest.param("~/data", "~/data", id="row36-home"),
    pytest.param("{{ x }}", "{{ x }}", id="row36-template"),
    pytest.param("%(x)s", "%(x)s", id="row36-format"),
    pytest.param("1_000a", "1_000a", id="underscored-text"),
    pytest.param("_1", "_1", id="underscore-first"),
    pytest.param("0x", "0x", id="no-digits"),
    pytest.param("-0x1", "-0x1", id="signed-hexadecimal"),
    pytest.param("1e", "1e", id="no-exponent"),
    pytest.param(".", ".", id="point"),
    pytest.param("\u0661", "\u0661", id="arabic-digit"),
]


@pytest.mark.parametrize(("text", "value"), MEANINGS)
def test_plain_word_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve(text)
    assert (type(found), found) == (type(value), value)
    assert is_text(text) is isinstance(value, str)


def test_not_a_number_is_a_number() -> None:
    value = resolve(".nan")
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("text", "value", "spelling"),
    [
        pytest.param("no", False, "false", id="row08-no"),
        pytest.param("Off", False, "false", id="row08-Off"),
        pytest.param("YES", True, "true", id="row08-YES"),
        pytest.param("on", True, "true", id="row08-on"),
        pytest.param("010", 10, "10", id="row09-010"),
        pytest.param("-007", -7, "-7", id="row09--007"),
        pytest.param("+08", 8, "8", id="row09-+08"),
        pytest.param("00", 0, "0", id="row09-00"),
        pytest.param("1_000", 1000, "1000", id="row09-1_000"),
        pytest.param("1_0.5e1", 100.0 + 5.0, "10.5e1", id="row09-1_0.5e1"),
    ],
)
def test_ambiguous_word_is_refused_with_its_spelling(
    text: str, value: object, spelling: str
) -> None:
    with pytest.raises(AmbiguousError, match=f"write {spelling}") as raised:
        resolve(text)
    assert (raised.value.value, raised.value.spelling) == (value, spelling)
    assert not is_text(text)


def test_octal_reading_is_offered_where_there_is_one() -> None:
    with pytest.raises(AmbiguousError, match="write 10, 0o10 for octal, or"):
        resolve("010")
    with pytest.raises(AmbiguousError, match='write 8, or "08"'):
        resolve("08")


def test_text_of_many_digits_is_no_plain_text() -> None:
    assert not is_text("9" * 5000)
