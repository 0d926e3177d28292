"""``resnet-build diff``."""

import json
from pathlib import Path

import pytest

from tests.cli.experiments import call

RESNET20_AND_32 = """\
A: the spec resnet20
B: the spec resnet32

name: resnet20 -> resnet32
model.stages[0].blocks: 3 -> 5
model.stages[1].blocks: 3 -> 5
model.stages[2].blocks: 3 -> 5
expect.parameters: 269722 -> 464154
expect.depth: 20 -> 32
expect.macs: 40551040 -> 68862592
published.test_top1: 0.9125 -> 0.9249

                                    A           B   difference
parameters                    269,722     464,154     +194,432
MACs                       40,551,040  68,862,592  +28,311,552
depth                              20          32          +12
activations an image, MiB        1.45        2.33        +0.88
"""

SEVERAL = """\
A: the spec resnet20
B: the spec plain20
C: the spec resnet56

                                                   A         B                             C
name                                        resnet20   plain20                      resnet56
model.shortcut                                   pad      none                           pad
model.stages[0].blocks                             3         3                             9
model.stages[1].blocks                             3         3                             9
model.stages[2].blocks                             3         3                             9
expect.parameters                             269722    269722                        853018
expect.depth                                      20        20                            56
expect.macs                                 40551040  40551040                     125485696
published               {test_top1: 0.9125, sourc...         -  {test_top1: 0.9303, sourc...

                                    A           B            C
parameters                    269,722     269,722      853,018
MACs                       40,551,040  40,551,040  125,485,696
depth                              20          20           56
activations an image, MiB        1.45        1.45         4.08
"""

TINY_TABLE = """\
                                A       B  difference
parameters                    440     440           =
MACs                       25,360  25,360           =
depth                           4       4           =
activations an image, MiB    0.01    0.01           =
"""


def test_values_that_differ_come_before_the_networks_in_numbers() -> None:
    result = call("diff", "resnet20", "resnet32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == RESNET20_AND_32


def test_equal_specs_are_said_to_be_equal() -> None:
    result = call("diff", "resnet20", "resnet20")
    assert result.exit_code == 0
    assert result.stdout.startswith(
        "A: the spec resnet20\nB: the spec resnet20\n\nthe specs are equal\n\n"
    )
    assert result.stdout.count(" =\n") == 4


def test_value_of_one_spec_alone_and_long_values_are_told_apart() -> None:
    lines = call("diff", "resnet20", "resnet50").stdout.splitlines()
    assert "model.stages[3]: only in B: {channels: 512, blocks: 3, stride: 2}" in lines
    at = lines.index("data.normalize: auto")
    assert lines[at + 1] == "  -> {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"


def test_trained_networks_are_compared_by_accuracy(finished_run: Path, other_run: Path) -> None:
    result = call("diff", finished_run, other_run)
    assert (result.exit_code, result.stderr) == (0, "")
    head, specs, table = result.stdout.split("\n\n")
    assert head == f"A: the run {finished_run}\nB: the run {other_run}"
    assert specs == "train.seed: 0 -> 1"
    a, b = (json.loads((run / "result.json").read_text()) for run in (finished_run, other_run))
    rows = {" ".join(row.split()[:2]): row.split()[2:] for row in table.splitlines()}
    for name, key in (("val top-1", "val.top1"), ("test top-1", "test.top1")):
        old, new = (f"{100 * result[key]:.2f}" for result in (a, b))
        difference = f"{100 * (b[key] - a[key]):+.2f}"
        assert rows[name] == [old, "%", new, "%", difference]
    assert list(rows)[-2:] == ["val top-1", "test top-1"]


def test_spec_of_weights_is_the_one_in_their_header(finished_run: Path) -> None:
    result = call("diff", finished_run, finished_run / "best.safetensors")
    head, specs, _ = result.stdout.split("\n\n")
    assert head.endswith(f"B: the weights {finished_run / 'best.safetensors'}")
    assert specs == "the specs are equal"


def test_run_without_weights_yet_is_compared_by_its_network_alone(
    folder: Path, finished_run: Path
) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "spec.yaml").write_bytes((finished_run / "spec.yaml").read_bytes())
    result = call("diff", "run", finished_run)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"the specs are equal\n\n{TINY_TABLE}")


def test_json_has_both_and_their_differences(finished_run: Path, other_run: Path) -> None:
    result = call("diff", finished_run, other_run, "--json")
    found = json.loads(result.stdout)
    a, b = found["subjects"]
    assert (found["schema"], a["kind"], b["kind"]) == (1, "run", "run")
    assert a["parameters"] == b["parameters"] == 440
    assert found["differences"] == [{"path": "train.seed", "values": [0, 1]}]
    told = json.loads((other_run / "result.json").read_text())
    assert b["metrics"]["test.top1"] == told["test.top1"]


def test_several_are_shown_in_columns(finished_run: Path, other_run: Path) -> None:
    assert call("diff", "resnet20", "plain20", "resnet56").stdout == SEVERAL
    result = call("diff", finished_run, other_run, finished_run)
    assert "\n            A  B  C\ntrain.seed  0  1  0\n" in result.stdout
    last = result.stdout.splitlines()[-1].split()
    assert last[:2] == ["test", "top-1"]
    assert last.count("%") == 3


def test_one_alone_is_not_compared() -> None:
    result = call("diff", "resnet20")
    assert result.exit_code == 2
    assert "B..." in result.stderr


def test_bundled_name_is_not_a_directory_of_that_name(folder: Path) -> None:
    (folder / "resnet20").mkdir()
    assert call("diff", "resnet20", "resnet20").exit_code == 0
    result = call("diff", "resnet20", "./resnet20")
    assert result.exit_code == 2
    assert "resnet20 is no run: it has no spec.yaml" in result.stderr


@pytest.mark.parametrize(
    ("other", "code", "message"),
    [
        ("resnet200", 2, "no bundled spec is named 'resnet200'"),
        ("missing.safetensors", 4, "missing.safetensors: there is no such file"),
    ],
)
def test_what_is_not_there_is_named(other: str, code: int, message: str, folder: Path) -> None:
    result = call("diff", "resnet20", other)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
