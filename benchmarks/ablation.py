"""Ablation of training's speed: from the stock loop to ``resnet-build train``, step by step.

    python benchmarks/ablation.py resnet20 [--turns 7] [--seconds 20] [--compile]

writes ``benchmarks/results/KIND/ablation_SPEC.json`` and prints it as a table. Each row is the loop
of the row above with one ingredient more. Turns alternate; see ``interleaved.py``.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import baselines
import torch
from common import describe_machine, own_results, write
from interleaved import HERE, Contender, answer_turns, take_turns, train_command
from tables import ablation
from torch import Tensor, nn

from resnet_builder import Spec, build_from_spec, load_spec
from resnet_builder.builder import read_spec
from resnet_builder.cpu import accelerate
from resnet_builder.data.interfaces import AUGMENTATIONS, Batch
from resnet_builder.data.loader import Pipeline, TrainLoader
from resnet_builder.data.splits import load_data
from resnet_builder.spec.dump import dump_value

CPU = torch.device("cpu")

STOCK = "stock"
INGREDIENTS = {
    "batches augmented in memory": "uint8 tensors, transformed batch by batch, in place of PIL",
    "channels-last memory": "all channels of a pixel side by side",
    "bf16": "autocast, in place of fp32",
    "fused optimizer": "one kernel updates all weights",
    "no waiting": "the loss is not read after every step",
}
COMPILED = {"compiled": "kernels made for this network by torch.compile"}
KERNELS = {"CPU kernels": "this package's, in place of torch's or compiled ones"}
TRAIN = "train"
"""The whole command: besides, it counts, logs and checks that all is finite."""


def main() -> None:
    """Take turns, and write each row's rate, and what its ingredient gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--compile", action="store_true", help="with a row for torch.compile")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    given = parser.parse_args()
    spec = load_spec(given.spec)
    if given.be is not None:
        be(given.be, spec)
        return
    rows = {STOCK: "per-sample PIL, fp32", **INGREDIENTS, **(COMPILED if given.compile else {})}
    rows |= {**KERNELS, TRAIN: "as `resnet-build train` does it by default"}
    with tempfile.TemporaryDirectory() as folder:
        contenders = []
        for name in rows:
            own = Path(folder, name.replace(" ", "_"))
            own.mkdir()
            command = [str(Path(__file__)), given.spec, "--be", name]
            if name == TRAIN:
                command = train_command(spec, given.spec)
            contenders.append(Contender(name, command, HERE.parent, own))
        take_turns(contenders, given.turns, given.seconds)
    report = {
        "what": f"images per second of training {given.spec}; each row has one ingredient more",
        "turns": given.turns,
        "seconds": given.seconds,
        "machine": describe_machine(),
        "rows": {each.name: {"what": rows[each.name], **each.summary()} for each in contenders},
        **gains({each.name: statistics.median(each.rates) for each in contenders}),
    }
    write(own_results() / f"ablation_{given.spec}.json", report)
    print(ablation(report))


def gains(medians: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return each row's speed-up over the one above it, and over stock."""
    names = list(medians)
    above = dict(zip(names[1:], names, strict=False))
    return {
        "speed-up over the row above": {
            name: round(medians[name] / medians[other], 3) for name, other in above.items()
        },
        "speed-up over stock": {name: round(medians[name] / medians[STOCK], 3) for name in names},
    }


def be(name: str, spec: Spec) -> None:
    """Be a row."""
    assert spec.train is not None
    batch_size = spec.train.batch_size
    answer_turns(batch_size)
    network = build_from_spec(spec.name, seed=0)
    if name == STOCK:
        size = spec.model.image_size or 32
        baselines.train(network, size=size, batch_size=batch_size, tuned=False)
    names = [*INGREDIENTS, *COMPILED, *KERNELS]
    train(network.train(), spec, frozenset(names[: names.index(name) + 1]))


def train(network: nn.Module, spec: Spec, ingredients: frozenset[str]) -> None:
    """Train as stock does but for some ingredients; see :func:`baselines.train`."""
    layout = torch.contiguous_format
    if "channels-last memory" in ingredients:
        layout = torch.channels_last
        network.to(memory_format=layout)
    forward: Callable[[Tensor], Tensor] = network
    if "CPU kernels" in ingredients:
        forward = accelerate(network, training=True, precision="bf16")
    elif "compiled" in ingredients:
        forward = torch.compile(network, dynamic=False)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        fused="fused optimizer" in ingredients,
    )
    for batch in batches_of(spec):
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in ingredients):
            logits = forward(batch.images.contiguous(memory_format=layout))
        loss = nn.functional.cross_entropy(logits.float(), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if "no waiting" not in ingredients:
            loss.item()


def batches_of(spec: Spec) -> Iterator[Batch]:
    """Yield a spec's training batches, of synthetic images, without end."""
    model = spec.model
    shape = f"num_classes: {model.num_classes}, image_size: {dump_value(model.image_size or 32)}"
    dataset = f"data.dataset={{type: synthetic, train: {baselines.IMAGES}, test: 1, {shape}}}"
    spec = read_spec(spec.name, overrides=[dataset, "data.validation=0"])
    assert spec.data is not None
    assert spec.train is not None
    splits = load_data(spec)
    augmentations = [AUGMENTATIONS.get(part.type)(**part.options) for part in spec.data.augment]
    pipeline = Pipeline(augmentations, splits.mean, splits.std, len(splits.classes), seed=0)
    batch_size = spec.train.batch_size
    return TrainLoader(
        splits.train, batch_size=batch_size, seed=0, pipeline=pipeline, device=CPU
    ).batches(0)


if __name__ == "__main__":
    main()
