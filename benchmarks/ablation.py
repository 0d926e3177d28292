"""What each ingredient of training's speed gives: from *stock*'s loop to ours, one at a time.

    python benchmarks/ablation.py resnet20 [--turns 7] [--seconds 20] [--compile]

writes ``benchmarks/results/KIND/ablation_SPEC.json`` and prints it as a table. Each row is the loop
of the row above with one ingredient more; each is a process of its own that trains only in its
turns.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from machine import describe
from results import own_results, write
from tables import ablation
from throughput import Turns, Worker, spec_of, sums, take_turns
from throughput import work as compete
from torch import Tensor, nn

from resnet_builder.builder import build
from resnet_builder.cpu import accelerate
from resnet_builder.data.batches import TrainBatches
from resnet_builder.data.interfaces import AUGMENTATIONS, Batch
from resnet_builder.data.pipeline import Pipeline
from resnet_builder.data.splits import load_data
from resnet_builder.spec.schema import Spec
from resnet_builder.training.runtime import set_backend_flags

CPU = torch.device("cpu")

STOCK = "stock"
INGREDIENTS = {
    "batches augmented in memory": "uint8 tensors, changed batch by batch, in place of PIL",
    "channels-last memory": "all channels of a pixel side by side",
    "bf16": "autocast, in place of fp32",
    "fused optimizer": "one kernel updates all weights",
    "freed memory kept": "glibc does not give it back to the system",
    "no waiting": "the loss is not read after every step",
}
COMPILED = {"compiled": "kernels made for this network by torch.compile"}
OWN = {"own operations": "this package's, for the CPU, in place of torch's or compiled ones"}
TRAIN = "train"
"""Ours with all that it does besides: rates, counting, a check that all is finite."""


def main() -> None:
    """Take turns, and write each row's rate, and what its ingredient gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--compile", action="store_true", help="with a row for torch.compile")
    parser.add_argument("--work", help="be this row")
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.spec)
        return
    rows = {STOCK: "per-sample PIL, fp32", **INGREDIENTS, **(COMPILED if given.compile else {})}
    rows |= OWN
    rows[TRAIN] = "as `resnet-build train` does it by default"
    workers = {name: Worker(name, given.spec, __file__) for name in rows}
    rates = take_turns(workers, given.turns, given.seconds)
    report = {
        "what": f"images per second of training {given.spec}; each row has one ingredient more",
        "turns": given.turns,
        "seconds": given.seconds,
        "machine": describe(),
        "rows": {name: {"what": rows[name], **sums(rates[name], workers[name])} for name in rows},
        **gains({name: statistics.median(values) for name, values in rates.items()}),
    }
    write(own_results() / f"ablation_{given.spec}.json", report)
    print(ablation(report))


def gains(medians: dict[str, float]) -> dict[str, dict[str, float]]:
    """Set each row beside the one above it, and beside stock."""
    names = list(medians)
    above = dict(zip(names[1:], names, strict=False))
    return {
        "over the row above": {
            name: round(medians[name] / medians[other], 3) for name, other in above.items()
        },
        "over stock": {name: round(medians[name] / medians[STOCK], 3) for name in names},
    }


def work(name: str, spec_name: str) -> None:
    """Be a row."""
    if name in {STOCK, TRAIN}:
        compete({STOCK: "stock", TRAIN: "ours"}[name], spec_name)
        return
    spec = spec_of("stock", spec_name)
    names = [*INGREDIENTS, *COMPILED, *OWN]
    train(spec, frozenset(names[: names.index(name) + 1]))


def train(spec: Spec, ingredients: frozenset[str]) -> None:
    """Train as stock does but for some ingredients; see :func:`opponents.train`."""
    assert spec.train is not None
    if "freed memory kept" in ingredients:
        set_backend_flags(threads=None)
    network = build(spec, seed=0).train()
    layout = torch.contiguous_format
    if "channels-last memory" in ingredients:
        layout = torch.channels_last
        network.to(memory_format=layout)  # type: ignore[call-overload]
    forward: Callable[[Tensor], Tensor] = network
    if "own operations" in ingredients:
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
    stop = Turns(spec.train.batch_size)
    for batch in batches_of(spec):
        if stop():
            return
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in ingredients):
            logits = forward(batch.images.contiguous(memory_format=layout))
        loss = nn.functional.cross_entropy(logits.float(), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if "no waiting" not in ingredients:
            loss.item()


def batches_of(spec: Spec) -> Iterator[Batch]:
    """Yield training batches as ours trains on them, for ever."""
    assert spec.data is not None
    assert spec.train is not None
    splits = load_data(spec)
    augmentations = [AUGMENTATIONS.get(part.type)(**part.options) for part in spec.data.augment]
    pipeline = Pipeline(augmentations, splits.mean, splits.std, len(splits.classes), seed=0)
    batch_size = spec.train.batch_size
    return TrainBatches(
        splits.train, batch_size=batch_size, seed=0, pipeline=pipeline, device=CPU
    ).starting_at(0)


if __name__ == "__main__":
    main()
