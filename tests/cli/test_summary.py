"""``resnet-build summary``."""

import json
from pathlib import Path

from tests.cli.experiments import call, write_tiny

RESNET32 = """\
resnet32: images of 3 x 32 x 32

        kind                        output  parameters        MACs  field  depth
stem    conv1, bn1, relu      16 x 32 x 32         464     442,368      3      1
layer1  5 x basic             16 x 32 x 32      23,360  23,592,960     23     10
layer2  5 x basic             32 x 16 x 16      88,192  22,413,312     61     10
layer3  5 x basic               64 x 8 x 8     351,488  22,413,312    137     10
head    avgpool, flatten, fc            10         650         640    all      1
total                                          464,154  68,862,592            32

depth 1 + 10 + 10 + 10 + 1 = 32
a training step keeps 2.3 MiB of activations an image, in fp32
"""


def test_summary_is_a_table() -> None:
    result = call("summary", "resnet32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == RESNET32


def test_depth_shows_every_layer() -> None:
    lines = call("summary", "resnet20", "--depth").stdout.splitlines()
    assert lines[3].split() == [
        "conv1",
        "Conv2d",
        *["16", "x", "32", "x", "32"],
        "432",
        "442,368",
        "3",
        "1",
    ]
    assert len([line for line in lines if " Conv2d " in line]) == 19


def test_json_has_rows_and_layers() -> None:
    result = call("summary", "resnet20", "--json")
    found = json.loads(result.stdout)
    assert result.stderr == ""
    assert (found["schema"], found["name"], found["image"]) == (1, "resnet20", [3, 32, 32])
    assert (found["parameters"], found["depth"], found["macs"]) == (269722, 20, 40551040)
    assert sum(row["macs"] for row in found["rows"]) == found["macs"]
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]


def test_spec_of_a_run_is_found_in_its_folder(folder: Path) -> None:
    write_tiny(folder, name="spec.yaml")
    expected = call("validate", "spec.yaml").stdout.replace("spec.yaml", str(folder))
    assert call("validate", folder).stdout == expected
    expected = call("summary", "spec.yaml").stdout
    assert call("summary", folder).stdout == f"{expected}\nstate: killed\n"


def test_state_and_accuracies_of_a_run_follow_its_network(finished_run: Path) -> None:
    result = call("summary", finished_run)
    record = json.loads((finished_run / "result.json").read_text())
    facts = result.stdout.rpartition("\n\n")[2].splitlines()
    assert facts[:3] == ["state: finished", "steps: 12 of 12", "seed: 0"]
    assert f"test top-1: {100 * record['test.top1']:.2f} %" in facts
    assert facts[-1] == f"device: {record['device']}, fp32"
