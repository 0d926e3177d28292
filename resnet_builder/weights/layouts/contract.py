"""What a layout is: another codebase's names for the layers of a network."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Names = str | tuple[str, ...]

_NUMBERS = re.compile(r"\\{(stage|block|number)\\}")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a codebase, or a family of them, names the layers of a network.

    In names, ``{stage}``, ``{block}`` and ``{number}`` stand for numbers. A layer that is not
    listed has our name.

    Attributes:
        name: Of the codebase whose names they are.
        layers: Our name for each of theirs. Of several, the first that the network has is
            meant.
        first_stage: What they call the first stage; ours is 1.
        first_block: What they call the first block of a stage; ours is 0.
        prefix: What may stand before a name.
        refusal: Why no network of ours computes what theirs do, where that is so.
    """

    name: str
    layers: Mapping[str, Names]
    first_stage: int = 1
    first_block: int = 0
    prefix: str = ""
    refusal: str | None = None
    _patterns: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        patterns = tuple(
            (_pattern(theirs), (ours,) if isinstance(ours, str) else ours)
            for theirs, ours in self.layers.items()
        )
        object.__setattr__(self, "_patterns", patterns)

    def translate(self, layer: str, network: Collection[str]) -> str | None:
        """Return what a layer of theirs is called in a network, if that has it.

        Args:
            layer: Their name.
            network: The names of the network's layers.
        """
        name = layer.removeprefix(self.prefix)
        for pattern, ours in self._patterns:
            if found := pattern.fullmatch(name):
                numbers = self._renumbered(found.groupdict())
                candidates = [one.format(**numbers) for one in ours]
                return next((one for one in candidates if one in network), None)
        return name if name in network else None

    def _renumbered(self, numbers: Mapping[str, str]) -> dict[str, int]:
        first = {"stage": self.first_stage - 1, "block": self.first_block}
        return {key: int(number) - first.get(key, 0) for key, number in numbers.items()}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(_NUMBERS.sub(r"(?P<\1>[0-9]{1,4})", re.escape(name)))
