"""Loading weights, whoever wrote them, into a network: all of them or none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.weights.foreign import ForeignWeights, read_foreign
from resnet_builder.weights.matching import HEAD, Difference, Matching, is_head, match

SHOWN = 10
"""How many differences between a file and a network are told; the rest are counted."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each tensor of a file, and of a network.

    Attributes:
        layout: Whose names the file has, as listed in ``docs/layouts.md``.
        wrappers: What was taken off to get at the tensors, outermost first.
        ignored: What else is in the file.
        averaged: Whether they are averaged weights.
        has_other: Whether the file has the others too: averaged, or as trained.
        converted: Types of numbers that were made float32.
        matched: Tensors that have the same name on both sides.
        renamed: Our names of the others, by theirs.
        reshaped: Our names of those whose layer is linear on one side and a 1x1 convolution on
            the other.
        folded: The running means that biases of convolutions were taken from, by the biases'
            names.
        fresh: Tensors of the network's own head, which it kept.
        uncounted: Counters of batches that only one side has; nothing is computed from them.
        missing: Other tensors that the file lacks; the network kept its own.
        unexpected: Other tensors that the network has no place for.
    """

    layout: str
    wrappers: tuple[str, ...]
    ignored: tuple[str, ...]
    averaged: bool
    has_other: bool
    converted: tuple[str, ...]
    matched: tuple[str, ...]
    renamed: Mapping[str, str]
    reshaped: tuple[str, ...]
    folded: Mapping[str, str]
    fresh: tuple[str, ...]
    uncounted: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    new_head: bool = False,
    ema: bool = False,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> LoadReport:
    """Load weights from a file, this program's or another's, into a network.

    The file may have torchvision's names, which are ours, or those of another codebase in
    ``docs/layouts.md``. After an error the network is as it was.

    Args:
        model: The network, on any device; changed in place.
        path: The file.
        new_head: Keep the network's own ``fc``, as for other classes than the file's.
        ema: Take the averaged weights, not the trained ones beside them.
        allow_missing: Let the network keep its own tensors where the file has none.
        allow_unexpected: Leave out what the network has no place for.

    Raises:
        CheckpointError: The file cannot be read, or does not hold the network's weights.
        StorageError: The disk is failing, or the file may not be read.
        UsageError: The network has no memory for weights, or no ``fc`` to keep.
    """
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UsageError("the network is on meta, where there is no memory for weights")
    foreign = read_foreign(Path(path), ema=ema)
    matching = match(foreign.tensors, model, new_head=new_head)
    if new_head and not matching.fresh:
        raise UsageError(f"the network has no `{HEAD}`, so it cannot keep a new head")
    try:
        _refuse_misfits(matching, missing=allow_missing, unexpected=allow_unexpected)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _fill(model, matching.tensors)
    return _report(foreign, matching)


def _refuse_misfits(matching: Matching, *, missing: bool, unexpected: bool) -> None:
    """Refuse weights that are not the network's.

    Args:
        matching: What fits and what does not.
        missing: Whether tensors may be missing.
        unexpected: Whether there may be more of them.

    Raises:
        CheckpointError: Naming what differs.
    """
    name, refusal = matching.layout.name, matching.layout.refusal
    if refusal is not None:
        raise CheckpointError(f"{name}'s weights cannot be used: {refusal}")
    ours = [*matching.mismatched, *(() if missing else matching.missing)]
    theirs = [] if unexpected else matching.unexpected
    if ours or theirs:
        lines = [
            f"these tensors are not the network's (by {name}'s names):",
            *_listed(ours, theirs),
        ]
        if not matching.sources:
            lines.append("docs/layouts.md lists whose names are understood")
        elif not theirs and all(is_head(one.name) and one.theirs for one in ours):
            lines.append("--new-head (new_head=True) keeps the network's own head instead")
        raise CheckpointError("\n  ".join(lines))
    if matching.unfoldable:
        raise CheckpointError(
            "no part has a biased convolution, and no batch norm follows that could take in the "
            f"bias of {', '.join(matching.unfoldable)}"
        )


def _listed(ours: Sequence[Difference], theirs: Sequence[Difference]) -> Iterator[str]:
    """Yield the first differences of either kind, as far as there is room, and how many more."""
    room = max(SHOWN // 2, SHOWN - len(theirs))
    shown = [*ours[:room], *theirs[: SHOWN - min(room, len(ours))]]
    yield from map(str, shown)
    if more := len(ours) + len(theirs) - len(shown):
        yield f"and {more} more"


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    places = model.state_dict()
    for name, tensor in tensors.items():
        places[name].copy_(tensor)


def _report(foreign: ForeignWeights, matching: Matching) -> LoadReport:
    sources = matching.sources.items()
    return LoadReport(
        layout=matching.layout.name,
        wrappers=foreign.wrappers,
        ignored=foreign.ignored,
        averaged=foreign.averaged,
        has_other=foreign.has_other,
        converted=foreign.converted,
        matched=tuple(name for name, key in sources if name == key),
        renamed={key: name for name, key in sources if name != key},
        reshaped=tuple(matching.reshaped),
        folded=matching.folded,
        fresh=tuple(matching.fresh),
        uncounted=tuple(matching.uncounted),
        missing=tuple(one.name for one in matching.missing),
        unexpected=tuple(one.name for one in matching.unexpected),
    )
