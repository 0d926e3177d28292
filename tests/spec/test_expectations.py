"""Counts in the text of a spec: only they change."""

import pytest

from resnet_builder.errors import UsageError
from resnet_builder.spec.expectations import Change, expected

COUNTS = {"parameters": 269722, "depth": 20, "macs": 40551040}
LINE = "expect: {parameters: 269722, depth: 20, macs: 40551040}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # flow style, with all that one can write between the numbers
        (
            "expect: {parameters: 1, depth: 2, macs: 3}\nname: a\n",
            f"{LINE}\nname: a\n",
        ),
        (
            "name: a # it\nexpect: { macs: 0x1F,depth :   2 } # ours\n# end\n",
            "name: a # it\nexpect: { macs: 40551040,depth :   20 } # ours\n# end\n",
        ),
        (
            "expect: {\n  parameters: 1, # many\n  depth: 20,\n}\n",
            "expect: {\n  parameters: 269722, # many\n  depth: 20,\n}\n",
        ),
        # block style
        (
            "expect:\n  # counted\n  depth:   2   # deep\n\n  parameters: 269722\nname: a\n",
            "expect:\n  # counted\n  depth:   20   # deep\n\n  parameters: 269722\nname: a\n",
        ),
        ("expect:\n  macs:\n  depth: ~\n", "expect:\n  macs: 40551040\n  depth: 20\n"),
        # line ends and the file's end
        (
            "name: a\r\nexpect: {depth: 2}\r\n",
            "name: a\r\nexpect: {depth: 20}\r\n",
        ),
        ("name: a\rexpect: {depth: 2}\r", "name: a\rexpect: {depth: 20}\r"),
        ("expect: {depth: 2}", "expect: {depth: 20}"),
        ("\ufeffexpect: {depth: 2}\n", "\ufeffexpect: {depth: 20}\n"),
        # letters of more than one byte before the numbers
        ("name: a # größer 😀\nexpect: {depth: 2}\n", "name: a # größer 😀\nexpect: {depth: 20}\n"),
        # no numbers yet
        ("expect:\nname: a\n", f"{LINE}\nname: a\n"),
        ("expect: null # none yet\n", f"{LINE} # none yet\n"),
        ("expect: {}\n", f"{LINE}\n"),
        # no section yet
        ("name: a\n", f"name: a\n{LINE}\n"),
        ("name: a", f"name: a\n{LINE}"),
        ("name: a\r\n", f"name: a\r\n{LINE}\r\n"),
        ("a: 1\r\nname: a", f"a: 1\r\nname: a\r\n{LINE}"),
        ("name: a\n# the end\n", f"name: a\n# the end\n{LINE}\n"),
        ("  name: a\n  extends: b\n", f"  name: a\n  extends: b\n  {LINE}\n"),
        ("---\nname: a\n...\n", f"---\nname: a\n{LINE}\n...\n"),
        ("%YAML 1.2\n---\nname: a\n", f"%YAML 1.2\n---\nname: a\n{LINE}\n"),
        ("source: >\n  a\n", f"source: >\n  a\n{LINE}\n"),
        ("{name: a, extends: b}\n", f"{{name: a, extends: b, {LINE}}}\n"),
        ("{\n  name: a, # it\n}\n", f"{{\n  name: a, {LINE}, # it\n}}\n"),
        # another mapping's key of that name
        ("data: {expect: {depth: 2}}\n", f"data: {{expect: {{depth: 2}}}}\n{LINE}\n"),
    ],
)
def test_numbers_change_and_nothing_else(before: str, after: str) -> None:
    assert expected(before, COUNTS)[0] == after
    assert expected(after, COUNTS) == (after, ())


def test_changes_are_told() -> None:
    _, changes = expected("expect: {parameters: 1, depth: 20, macs:}\n", COUNTS)
    assert changes == (Change("parameters", 1, 269722), Change("macs", None, 40551040))
    _, changes = expected("name: a\n", COUNTS)
    assert [change.before for change in changes] == [None, None, None]


def test_text_that_an_added_line_would_change_is_refused() -> None:
    with pytest.raises(UsageError, match=r"only you can add `expect: .parameters: 269722, "):
        expected("source: |\n  a", COUNTS)
