"""Evaluation speed: with and without CPU kernels, and in bf16, against the usual script.

    python benchmarks/evaluation.py RUN [--data-dir DIR]
    python benchmarks/evaluation.py --checkout before=../old --checkout after=. [--turns 7]

The first form takes a finished run and its test images, and writes
``benchmarks/results/KIND/evaluation_SPEC.json``: images per second, medians of alternating turns,
and the predictions that differ from the usual script's. The second compares ``resnet-build
evaluate`` of commits, on 10,000 synthetic images, and prints the result only.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import baselines
import torch
from common import describe_machine, open_finished_run, own_results, write
from interleaved import HERE, Contender, speed_ups, take_turns
from torch import Tensor

from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.training.evaluation import evaluate, prepare_for_inference

BATCH_SIZE = 128
TURNS = 7
IMAGES = 10_000


def main() -> None:
    """Take turns, and write each way's rate and its speed-up."""
    if "--checkout" in sys.argv:
        compare_checkouts()
        return
    trained, data = open_finished_run(__doc__)
    assert isinstance(data.test, InMemoryImages)
    network, test = trained.network.eval(), data.test
    ways: dict[str, Callable[[], object]] = {
        "baseline": lambda: baselines.evaluate(
            network, test.images, test.labels, data.mean, data.std, BATCH_SIZE
        ),
        "torch, fp32": lambda: evaluate(network, batches_of(data, test), cpu_kernels=False),
        "ours, fp32": lambda: evaluate(network, batches_of(data, test)),
        "ours, bf16": lambda: evaluate(network, batches_of(data, test), precision="bf16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(test) / statistics.median(each) for name, each in seconds.items()}
    plain = predictions(network, torch.contiguous_format, data, test, bf16=False)
    changed = {}
    for precision in ("fp32", "bf16"):
        fast, layout = prepare_for_inference(network, precision=precision)
        found = predictions(fast, layout, data, test, bf16=precision == "bf16")
        changed[f"ours, {precision}"] = int((found != plain).sum())
    report = {
        "what": f"images per second of evaluating {trained.spec.name}, median of {TURNS} turns",
        "machine": describe_machine(),
        "images": len(test),
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "speed-up": {name: round(rate / rates["baseline"], 2) for name, rate in rates.items()},
        "changed predictions": changed,
    }
    write(own_results() / f"evaluation_{trained.spec.name}.json", report)


@torch.inference_mode()
def predictions(
    network: torch.nn.Module,
    layout: torch.memory_format,
    data: DataSplits,
    test: InMemoryImages,
    *,
    bf16: bool,
) -> Tensor:
    """Return the network's predictions of the test images."""
    found = []
    for images, _ in batches_of(data, test):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(network(images.contiguous(memory_format=layout)).argmax(1))
    return torch.cat(found)


def batches_of(data: DataSplits, test: InMemoryImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the test images in batches."""
    device = torch.device("cpu")
    return evaluation_batches(
        test, batch_size=BATCH_SIZE, mean=data.mean, std=data.std, device=device
    )


def compare_checkouts() -> None:
    """Let ``resnet-build evaluate`` of each checkout take turns."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--spec", default="resnet20")
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args()
    command = [str(HERE / "interleaved.py"), "evaluate", given.spec, str(IMAGES)]
    contenders = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in (each.split("=", 1) for each in given.checkout):
            own = Path(folder, name)
            own.mkdir()
            contenders.append(Contender(name, command, Path(path), own))
        take_turns(contenders, given.turns, seconds=0)
    report = {
        "what": f"images per second of `resnet-build evaluate` of {given.spec}",
        "machine": describe_machine(),
        "contenders": {each.name: each.summary() for each in contenders},
        f"speed_up_of_{contenders[-1].name}": speed_ups(contenders[::-1]),
    }
    write(None, report)


if __name__ == "__main__":
    main()
