"""Every bad spec in ``bad/`` gets exactly the message stored beside it.

``REGENERATE_GOLDEN=1 pytest tests/spec/test_golden.py`` writes the messages anew: read the diff.
The numbers in file names are those of the fault catalogue the project keeps.
"""

import os
from pathlib import Path

import pytest

from resnet_builder.errors import SpecError
from resnet_builder.spec.load import load_spec

BAD = Path(__file__).parent / "bad"
CASES = sorted(path.name for path in BAD.glob("*.yaml") if path.name != "base.yaml")


def test_there_are_bad_specs() -> None:
    assert len(CASES) > 100
    assert {path.stem for path in BAD.glob("*.txt")} == {Path(name).stem for name in CASES}


def test_base_of_the_bad_specs_is_good() -> None:
    assert load_spec(BAD / "base.yaml").name == "base"


@pytest.mark.parametrize("name", CASES)
def test_bad_spec_gets_its_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    before = sorted(BAD.rglob("*"))

    with pytest.raises(SpecError) as raised:
        load_spec(name)

    golden = BAD / name.replace(".yaml", ".txt")
    message = f"{raised.value}\n"
    if os.environ.get("REGENERATE_GOLDEN"):
        golden.write_text(message, encoding="utf-8")
    else:
        assert sorted(BAD.rglob("*")) == before, "nothing in a spec is run"
    assert message == golden.read_text(encoding="utf-8")
