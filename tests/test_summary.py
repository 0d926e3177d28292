import pytest

from resnet_builder.spec.load import load_spec
from resnet_builder.summary import summarize
from tests.networks import cifar_spec, imagenet_spec


def test_summary_adds_up() -> None:
    summary = summarize(cifar_spec(5))
    rows = summary.rows
    assert summary.parameters == sum(row.parameters for row in rows) == 464_154
    assert summary.macs == sum(row.macs for row in rows) == 68_862_592
    assert summary.depth == sum(row.depth for row in rows) == 32
    assert summary.depth_arithmetic == "1 + 10 + 10 + 10 + 1 = 32"
    assert sum(layer.depth for layer in summary.layers) == 32
    assert [row.name for row in rows] == ["stem", "layer1", "layer2", "layer3", "head"]
    assert [row.output for row in rows[1:]] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (10,)]
    assert rows[1].kind == "5 x basic"
    # Closed forms of the terms, n = 5.
    stages = [4672 * 5, 18560 * 5 - 4608, 73984 * 5 - 18432]
    assert [row.parameters for row in rows] == [464, *stages, 650]


@pytest.mark.parametrize(
    ("blocks", "fields"),
    # stem 3; each block adds 2 x 2 pixels x the distance of its neighbours, which doubles
    # after the first convolution of a stage that strides.
    [(1, [3, 7, 7 + 2 + 4, 13 + 4 + 8]), (3, [3, 15, 15 + 2 + 5 * 4, 37 + 4 + 5 * 8])],
)
def test_receptive_field_follows_the_residual_path(blocks: int, fields: list[int]) -> None:
    rows = summarize(cifar_spec(blocks, shortcut="projection")).rows
    assert [row.receptive_field for row in rows[:-1]] == fields
    assert rows[-1].receptive_field is None


@pytest.mark.parametrize(
    ("stride_in", "fields"),
    # Each block adds 2 x the distance of its 3x3 convolution's input pixels: 4, 8, 16 and 32 once
    # the stage has strided. Striding in the 3x3 itself leaves the first block of a stage at half.
    [
        ("conv1x1", [11, 11 + 3 * 8, 35 + 4 * 16, 99 + 6 * 32, 291 + 3 * 64]),
        ("conv3x3", [11, 11 + 3 * 8, 35 + 8 + 3 * 16, 91 + 16 + 5 * 32, 267 + 32 + 2 * 64]),
    ],
)
def test_receptive_field_of_resnet50_is_the_sum_over_its_blocks(
    stride_in: str, fields: list[int]
) -> None:
    spec = imagenet_spec((3, 4, 6, 3), {"type": "bottleneck", "stride_in": stride_in})
    assert [row.receptive_field for row in summarize(spec).rows[:-1]] == fields


@pytest.mark.parametrize(
    ("block", "fields"),
    # Stem 5, and the distance of neighbours is 2. Each 3x3 adds 2 x its dilation x the distance.
    [
        ("basic", [5, 5 + 2 * (2 + 6), 21 + 2 * (6 + 4) + 2 * (4 + 4)]),
        ("bottleneck", [5, 5 + 2 * 2, 9 + 2 * 6 + 2 * 4]),
    ],
)
def test_receptive_field_of_dilated_stages(block: str, fields: list[int]) -> None:
    stages = [
        {"channels": 8, "blocks": 1, "dilation": 3},
        {"channels": 8, "blocks": 2, "dilation": 2},
    ]
    stem = {"type": "conv", "channels": 8, "kernel_size": 5, "stride": 2}
    rows = summarize(cifar_spec(block=block, stem=stem, stages=stages, shortcut="projection")).rows
    assert [row.receptive_field for row in rows[:-1]] == fields
    assert [row.output[1:] for row in rows[:-1]] == [(16, 16)] * 3


def test_a_stem_of_three_convolutions_counts_as_one_layer() -> None:
    found = summarize(load_spec("resnet26d"))
    assert sum(layer.depth for layer in found.layers) == found.depth == 26
    assert found.rows[0].depth == 1


def test_receptive_field_sees_a_blur() -> None:
    """By hand: 3, 5, 7, 9; then 2 more for the blur, whose stride doubles what follows."""
    spec = cifar_spec(1, widths=(8, 16), antialias="blur", shortcut="projection")
    fields = {layer.name: layer.receptive_field for layer in summarize(spec).layers}
    assert fields["layer2.0.conv1"] == 9
    assert fields["layer2.0.blur"] == 11
    assert fields["layer2.0.conv2"] == 15
