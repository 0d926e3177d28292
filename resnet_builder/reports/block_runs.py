"""Equal blocks of a stage, and the texts of their steps, for drawings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from resnet_builder.blocks.interfaces import SHORTCUT_ATTRIBUTE
from resnet_builder.summary import SUM, BlockRow, Row, Summary


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks of a stage that follow each other and are equal.

    Attributes:
        blocks: The blocks, at least one.
        lines: Labels of the steps before the sum, in lines of one convolution each.
        after: Labels of the steps after the sum.
        shortcut: Label of the shortcut; empty for an identity.
    """

    blocks: tuple[BlockRow, ...]
    lines: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]
    shortcut: str

    @property
    def block(self) -> BlockRow:
        """First of the blocks."""
        return self.blocks[0]

    @property
    def changes_shape(self) -> bool:
        """Whether the blocks' output has another shape than their input."""
        return self.block.input != self.block.output


def block_runs(found: Summary, stage: str) -> list[BlockRun]:
    """Group the equal blocks of a stage that follow each other."""
    layers = {layer.name: layer for layer in found.layers}
    blocks = [block for block in found.blocks if block.name.startswith(f"{stage}.")]
    single = [_describe(block, layers, found.layers) for block in blocks]

    def look(run: BlockRun) -> tuple[object, ...]:
        places = run.block.input, run.block.output, run.block.shortcut, run.block.shortcut_from
        return run.lines, run.after, run.shortcut, places

    runs = []
    for _, group in groupby(single, look):
        equal = list(group)
        runs.append(replace(equal[0], blocks=tuple(run.block for run in equal)))
    return runs


def _describe(block: BlockRow, layers: Mapping[str, Row], rows: Sequence[Row]) -> BlockRun:
    """Label the steps of a block."""
    steps = [
        (
            row.label if (row := layers.get(f"{block.name}.{step}")) else step,
            bool(row and row.depth),
        )
        for step in block.path
    ]
    end = block.path.index(SUM) if SUM in block.path else len(steps)
    lines: list[list[str]] = [[]]
    first_is_convolution = bool(steps) and steps[0][1]
    for number, (text, is_convolution) in enumerate(steps[:end]):
        # A line begins with its convolution, or ends with it where norms stand before; and the
        # shortcut may begin in between.
        begins = is_convolution and first_is_convolution
        if lines[-1] and (begins or number == block.shortcut_from):
            lines.append([])
        lines[-1].append(text)
        if is_convolution and not first_is_convolution:
            lines.append([])
    shortcut = ""
    if block.shortcut not in {None, "identity"}:
        inside = f"{block.name}.{SHORTCUT_ATTRIBUTE}"
        labels = [row.label for row in rows if row.name.startswith(inside) and "conv" in row.label]
        shortcut = ", ".join([str(block.shortcut), *labels])
    after = tuple(text for text, _ in steps[end + 1 :])
    shown = tuple(tuple(line) for line in lines if line) or ((block.kind,),)
    return BlockRun((block,), shown, after, shortcut)


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a shape as ``16 x 32 x 32``."""
    return " x ".join(map(str, shape))
