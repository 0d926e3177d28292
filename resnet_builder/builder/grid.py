"""How stages subsample: by their strides, or by dilation that stands in for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from resnet_builder.errors import UsageError
from resnet_builder.spec.schema import StageSpec


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixels that a stage computes.

    Attributes:
        stride: Of the first block.
        undone_stride: The stride that dilation stands in for; only one of the two is not 1.
        first_dilation: Dilation of the first block's convolutions, up to the one that strides.
        dilation: Dilation of those after it.
        output_stride: By how much an image has shrunk behind the stage.
    """

    stride: int
    undone_stride: int
    first_dilation: int
    dilation: int
    output_stride: int


def stage_grids(
    stem_stride: int, stages: Sequence[StageSpec], output_stride: int | None
) -> list[Grid]:
    """Return each stage's grid.

    Strides beyond ``output_stride`` are replaced by dilation, so that each output is what it was,
    with new ones between (Chen et al. 2017, section 3.1, https://arxiv.org/abs/1706.05587).

    Args:
        stem_stride: By how much the stem shrinks an image.
        stages: With their strides.
        output_stride: Of the last stage; ``None`` leaves all strides as they are.

    Raises:
        UsageError: The strides do not reach ``output_stride``.
    """
    grids = list(_grids(stem_stride, stages, output_stride))
    if output_stride is not None and grids[-1].output_stride != output_stride:
        every = _grids(stem_stride, stages, None)
        reached = sorted({stem_stride, *(grid.output_stride for grid in every)})
        raise UsageError(
            f"output_stride cannot be {output_stride}: "
            f"the network's strides reach {', '.join(map(str, reached))}"
        )
    return grids


def _grids(
    stem_stride: int, stages: Sequence[StageSpec], output_stride: int | None
) -> Iterator[Grid]:
    reached, dilation = stem_stride, 1
    for stage in stages:
        first_dilation, stride = dilation, stage.stride
        if output_stride is not None and reached * stride > output_stride:
            dilation, stride = dilation * stage.stride, 1
        reached *= stride
        yield Grid(stride, stage.stride // stride, first_dilation, dilation, reached)
