"""The first half of checking: whole specs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors.numpy

from resnet_builder.errors import SpecError
from resnet_builder.spec.embedded import embedded_spec
from resnet_builder.spec.load import load_spec, load_spec_text, read_draft
from resnet_builder.spec.recipe import Sgd
from resnet_builder.spec.section import Part
from tests.spec.texts import FULL, MINIMAL, draft, problems, write


def test_spec_has_what_the_text_says() -> None:
    spec = load_spec_text(FULL)
    assert spec.train is not None
    assert spec.data is not None
    assert spec.model.shortcut == Part.model_validate({"type": "pad", "position": "end"})
    assert spec.model.block == Part(type="basic")
    assert spec.model.stages[1].stride == 2
    assert spec.train.optimizer == Sgd(type="sgd", lr=0.1, momentum=0.9)
    assert spec.data.validation == 0.1


def test_loading_imports_no_torch() -> None:
    """Neither does any other module of the room, nor what it stands on."""
    program = (
        "import pkgutil, sys, resnet_builder.spec as room\n"
        "for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
        "    __import__(module.name)\n"
        "import resnet_builder.errors, resnet_builder.errors, resnet_builder.registry\n"
        "print(*{'torch', 'torchvision', 'numpy', 'sklearn'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def write_weights(path: Path, **metadata: str) -> Path:
    safetensors.numpy.save_file({"a": numpy.zeros(2)}, path, metadata)
    return path


def test_file_of_weights_stands_for_the_spec_in_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "best.safetensors", resnet_builder=json.dumps({"spec": FULL}))
    assert load_spec("best.safetensors") == load_spec_text(FULL)
    assert load_spec("./best.safetensors") == load_spec_text(FULL)
    for number in range(0x100):  # the length of a header may begin like a pickle
        text = json.dumps({"spec": FULL, "note": " " * number})
        path = write_weights(tmp_path / "n.safetensors", resnet_builder=text)
        with path.open("rb") as file:
            assert embedded_spec(file) == FULL
    assert load_spec({"extends": "./best.safetensors", "name": "x"}).model.num_classes == 10
    assert load_spec("best.safetensors", overrides=["model.num_classes=7"]).model.num_classes == 7
    state = json.dumps({"provenance": {"spec": FULL}})
    assert load_spec(write_weights(tmp_path / "s.safetensors", checkpoint=state)).name == "full"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and so on", "it is a file of torch.save, which has no spec; name the spec"),
        ({}, "it is a file of weights without a spec; name the spec of its network instead"),
        ({"resnet_builder": "[]"}, "it is a file of weights without a spec"),
        ({"resnet_builder": '{"spec": 3}'}, "it is a file of weights without a spec"),
        ({"checkpoint": "{"}, "it is a file of weights without a spec"),
        (bytes([9, 0, 0, 0, 0, 0, 0, 0]) + b"{}", "it is a file of weights without a spec"),
    ],
)
def test_weights_without_a_spec_are_told_what_they_are(
    content: bytes | dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_weights(path, **content)
    with pytest.raises(SpecError, match=message) as raised:
        load_spec(path)
    assert str(path) in str(raised.value)


def test_bad_section_hides_no_other(tmp_path: Path) -> None:
    found = draft(tmp_path, "train.batch_size=x", "data.validation=-1", "run.device=tpu")
    assert (found.train, found.data, found.run, found.spec) == (None, None, None, None)
    assert found.model is not None
    assert found.expect is not None
    assert [problem.path for problem in found.problems] == [
        "train.batch_size",
        "data.validation",
        "run.device",
    ]
    assert found.is_wrong("train")
    assert not found.is_wrong("model")


def test_absent_section_is_not_wrong(tmp_path: Path) -> None:
    found = draft(tmp_path, text=MINIMAL)
    assert (found.data, found.train, found.expect, found.published) == (None, None, None, None)
    assert not any(found.is_wrong(section) for section in ("data", "train", "model"))
    assert found.spec is not None
    assert found.plugins == ()


def test_section_that_could_not_be_read_as_written_is_wrong_once(tmp_path: Path) -> None:
    text = FULL + "run: {compile: no, threads: !!str auto}\nplugins: no\n"
    found = draft(tmp_path, text=text)
    assert [(one.code, one.path) for one in found.problems] == [
        ("yaml-ambiguous", "run.compile"),
        ("yaml-tag", "run.threads"),
        ("yaml-ambiguous", "plugins"),
    ]
    assert (found.run, found.plugins) == (None, None)


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("resnet32.yaml", MINIMAL, "resnet32"),
        ("resnet32.v2.yml", MINIMAL, "resnet32.v2"),
        ("my net.yaml", MINIMAL + "name: mine\n", "mine"),
        ("x.yaml", MINIMAL + "name: null\n", "x"),
        pytest.param("x.yaml", MINIMAL + "name: 2020-13-45\n", "2020-13-45", id="no-date"),
        pytest.param("x.yaml", MINIMAL + "name: 2020-01-01\n", "2020-01-01", id="date"),
    ],
)
def test_name_is_the_files_unless_given(file: str, text: str, name: str, tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, text, file)).name == name


@pytest.mark.parametrize(
    ("stem", "reason", "suggestion"),
    [
        ("zh 2", "a name has at most 64 letters", "name: zh_2"),
        ("中文", "a name has at most 64 letters", None),
        (".hidden", "a name has at most 64 letters", "name: hidden"),
        ("x" * 65, "a name has at most 64 letters", f"name: {'x' * 64}"),
        ("con", "Windows reserves it", None),
    ],
)
def test_file_name_that_cannot_name_a_spec_is_said_to_be_the_cause(
    stem: str, reason: str, suggestion: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path, f"{MINIMAL}trian: 1\n", f"{stem}.yaml")
    problem, _ = read_draft(path).problems
    assert (problem.code, problem.path, problem.file) == ("missing-key", "name", str(path))
    assert f"the file name '{stem[:60]}" in problem.message
    assert f"cannot be used instead: {reason}" in problem.message
    assert "add a line `name: ...`, or rename the file" in problem.message
    assert (problem.line, problem.suggestion) == (None, suggestion)


def test_mapping_is_a_source() -> None:
    data = load_spec_text(MINIMAL).model_dump(exclude={"name"}, exclude_none=True)
    assert load_spec(data).model == load_spec_text(MINIMAL).model
    with pytest.raises(SpecError, match=r"^<mapping>: error\[unknown-key\]: modl: there is no"):
        load_spec({**data, "modl": None})


@pytest.mark.parametrize("value", ["${HOME}", "{x}", "%(x)s"])
def test_text_is_literal(value: str) -> None:
    spec = load_spec_text(FULL.replace("source: someone", f"source: '{value}'"))
    assert spec.published is not None
    assert spec.published.source == value


@pytest.mark.parametrize("value", ["a/b", "/abs", "..", "a\\b", "nul", "COM1.x", ".hidden", ""])
def test_name_is_a_file_name_everywhere(value: str) -> None:
    [problem] = problems(FULL.replace("name: full", f"name: '{value}'"))
    assert (problem.code, problem.path) == ("out-of-range", "name")
