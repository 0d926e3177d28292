"""The families of networks: which depths, blocks and shortcuts each paper has, and its recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Depths:
    """The depths that three stages with as many blocks each can come to.

    Attributes:
        step: Layers that one more block in each stage adds.
        rest: Layers outside the blocks, as the paper counts.
    """

    step: int
    rest: int

    def __str__(self) -> str:
        return f"{self.step}n + {self.rest}"

    def blocks(self, depth: int) -> int | None:
        """Return the number of blocks in each stage, if there is one for this depth."""
        count, left = divmod(depth - self.rest, self.step)
        return count if count > 0 and not left else None

    def around(self, depth: int) -> tuple[int, int]:
        """Return the possible depths below and above one that is not."""
        below = max(1, (depth - self.rest) // self.step)
        return self.step * below + self.rest, self.step * (below + 1) + self.rest


@dataclass(frozen=True, slots=True)
class Family:
    """Networks of one paper.

    Attributes:
        title: What they are called before the depth.
        name: How their specs' names begin.
        source: The paper.
        depths: For small images, the depths that each kind of block can come to.
        large_depths: For large pictures, those that there are.
        recipe: The bundled recipe for small images.
        large_epochs: Passes over large pictures.
        needs: What has to be wished for.
        takes: What else can be wished for.
        widths: Of the stages, for small images.
        block_prefix: What the names of its blocks begin with.
        shortcut: For small images; for large pictures it is a projection, if there is any.
        attention: Of every block.
        note: What one must know of the depth in its name.
    """

    title: str
    name: str
    source: str
    depths: Mapping[str, Depths]
    large_depths: tuple[int, ...] = (18, 34, 50, 101, 152)
    recipe: str = "he2015"
    large_epochs: int = 90
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ("shortcut",)
    widths: tuple[int, int, int] = (16, 32, 64)
    block_prefix: str = ""
    shortcut: str = "projection"
    attention: Mapping[str, Any] | None = None
    note: str = ""


_HE_2015 = "He et al. 2015, https://arxiv.org/abs/1512.03385"

FAMILIES = {
    "resnet": Family(
        title="ResNet",
        name="resnet",
        source=_HE_2015,
        depths={"basic": Depths(6, 2)},
        shortcut="pad",
    ),
    "plain": Family(
        title="Plain network",
        name="plain",
        source=_HE_2015,
        depths={"basic": Depths(6, 2)},
        large_depths=(18, 34),
        takes=(),
        shortcut="none",
    ),
    "preact": Family(
        title="Pre-activated ResNet",
        name="preact",
        source="He et al. 2016, https://arxiv.org/abs/1603.05027",
        depths={"basic": Depths(6, 2), "bottleneck": Depths(9, 2)},
        recipe="he2015_warmup",
        takes=("shortcut", "block"),
        block_prefix="preact_",
    ),
    "wrn": Family(
        title="Wide ResNet",
        name="wrn",
        source="Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146",
        depths={"basic": Depths(6, 4)},
        large_depths=(),
        recipe="wrn200",
        needs=("width",),
        block_prefix="preact_",
        note="The name counts two layers more than the depth on the residual path.",
    ),
    "resnext": Family(
        title="ResNeXt",
        name="resnext",
        source="Xie et al. 2016, https://arxiv.org/abs/1611.05431",
        depths={"bottleneck": Depths(9, 2)},
        large_depths=(50, 101, 152),
        recipe="resnext300",
        large_epochs=100,
        needs=("groups", "width_per_group"),
        widths=(64, 128, 256),
    ),
    "se_resnet": Family(
        title="SE-ResNet",
        name="seresnet",
        source="Hu et al. 2018, https://arxiv.org/abs/1709.01507",
        depths={"basic": Depths(6, 2)},
        shortcut="pad",
        attention={"type": "se", "reduction": 16},
    ),
}

PAPER_BLOCKS = {110: "basic", 164: "bottleneck"}
"""The blocks of He et al. 2016, tables 2 and 4, at depths that both kinds can come to."""

LARGE_STAGES = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""He et al. 2015, table 1."""

LARGE_WIDTHS = (64, 128, 256, 512)
