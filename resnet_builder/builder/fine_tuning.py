"""Checks of what a spec starts from, and of the layers that its recipe names."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from resnet_builder.builder.pretrained import published_weights
from resnet_builder.errors import Problem, nearest
from resnet_builder.runs.files import storage_errors
from resnet_builder.spec.load import Draft
from resnet_builder.spec.positions import Positions
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import ModelSpec, WeightsSpec

_FREEZE = ("train", "freeze")
_RECOMPUTE = ("train", "activation_checkpointing")


def fine_tuning_problems(draft: Draft) -> Iterator[Problem]:
    """Check the recipe's keys for fine-tuning, and for saving memory, against the network."""
    model, train, positions = draft.model, draft.train, draft.positions
    if model is None or train is None:
        return
    sections = _section_names(model)
    yield from _name_problems(_FREEZE, "", train.freeze, sections, positions)
    if train.activation_checkpointing != "all":
        stages = sections[1:-1]
        yield from _name_problems(
            _RECOMPUTE, "stage ", train.activation_checkpointing, stages, positions
        )
    yield from _sense_problems(model, train, positions)
    if "head" in train.freeze and train.head_lr_multiplier != 1:
        yield positions.problem(
            "no-effect",
            ("train", "head_lr_multiplier"),
            "has no effect on a head that is frozen",
            at="key",
        )


def _name_problems(
    path: tuple[str, str],
    kind: str,
    names: Sequence[str],
    allowed: Sequence[str],
    positions: Positions,
) -> Iterator[Problem]:
    for number, name in enumerate(names):
        if name not in allowed:
            yield positions.problem(
                "unknown-name",
                (*path, number),
                f"the network has no {kind}'{name}'",
                allowed=allowed,
                suggestion=nearest(name, allowed),
            )
        elif name in names[:number]:
            yield positions.problem("no-effect", (*path, number), f"'{name}' is named before")


def _sense_problems(model: ModelSpec, train: TrainSpec, positions: Positions) -> Iterator[Problem]:
    if not train.freeze:
        return
    what = ""
    if set(train.freeze) >= set(_section_names(model)):
        what = "this leaves nothing to train"
    elif model.weights is None:
        what = (
            "layers that were never trained would stay random: give `model.weights` too "
            "(a file of random weights, if that is meant)"
        )
    elif model.weights.new_head and "head" in train.freeze:
        what = "a new head would stay random: do not freeze `head`, or take back `new_head`"
    if what:
        yield positions.problem("exclusive", _FREEZE, what, at="key")


def _section_names(model: ModelSpec) -> tuple[str, ...]:
    stages = (f"layer{number + 1}" for number in range(len(model.stages)))
    return ("stem", *stages, "head")


def weights_problems(weights: WeightsSpec, positions: Positions) -> Iterator[Problem]:
    """Check that the weights to start from are there; nothing of them is read or downloaded.

    Raises:
        StorageError: The file may not be read.
    """
    path = ("model", "weights")
    if weights.published_name is not None:
        published = published_weights()
        if weights.published_name not in published:
            yield positions.problem(
                "unknown-name",
                path,
                f"torchvision has no weights of a ResNet named '{weights.published_name}'",
                at="name",
                allowed=published,
                suggestion=nearest(weights.published_name, published),
            )
        return
    refusal = _refusal(Path(weights.path))
    if refusal is not None:
        yield positions.problem(refusal[0], path, f"{weights.path}: {refusal[1]}", at="name")


def _refusal(path: Path) -> tuple[str, str] | None:
    """Tell why a path is not that of a file: a code and a message."""
    with storage_errors("read", path):
        if not path.exists():
            return "unknown-name", "there is no such file"
        if path.is_dir():
            return "wrong-type", "this is a directory; a run's weights are its best.safetensors"
        with path.open("rb"):
            return None
