"""Evaluation rates: ours, in fp32 with folded norms and in bf16, against the usual script's.

    python benchmarks/evaluation.py RUN [--data-dir DIR]

takes a finished run and its test images, and writes
``benchmarks/results/KIND/evaluation_SPEC.json``: images per second, medians of alternating turns,
and how many images are answered otherwise than by the usual script.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from baselines import evaluate as evaluate_as_usual
from common import describe_machine, open_finished_run, own_results, write
from torch import Tensor, nn

from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.inference import TrainedModel
from resnet_builder.training.evaluation import evaluate, prepare_for_inference

BATCH_SIZE = 128
TURNS = 7
CPU = torch.device("cpu")


def main() -> None:
    """Take turns, and write each way's rate and its ratio to the usual one."""
    trained, splits = open_finished_run(__doc__)
    assert isinstance(splits.test, InMemoryImages)
    ways = ways_of(trained, splits, splits.test)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(splits.test) / statistics.median(each) for name, each in seconds.items()}
    report = {
        "what": f"images per second of evaluating {trained.spec.name}, median of {TURNS} turns",
        "machine": describe_machine(),
        "images": len(splits.test),
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "over the usual": {name: round(rate / rates["usual"], 2) for name, rate in rates.items()},
        "answered otherwise": flips(trained, splits, splits.test),
    }
    write(own_results() / f"evaluation_{trained.spec.name}.json", report)


def ways_of(
    trained: TrainedModel, splits: DataSplits, test: InMemoryImages
) -> dict[str, Callable[[], object]]:
    """Return what evaluates the test images, by name."""

    def ours(*, bf16: bool) -> object:
        return evaluate(
            trained.network, batches_of(splits, test), precision="bf16" if bf16 else "fp32"
        )

    return {
        "usual": lambda: evaluate_as_usual(
            trained.network, test.images, test.labels, splits.mean, splits.std, BATCH_SIZE
        ),
        "ours, fp32": lambda: ours(bf16=False),
        "ours, bf16": lambda: ours(bf16=True),
    }


@torch.inference_mode()
def flips(trained: TrainedModel, splits: DataSplits, test: InMemoryImages) -> dict[str, int]:
    """Count the images whose likeliest class is another than the network's as it stands."""

    def answers(
        network: nn.Module, layout: torch.memory_format = torch.contiguous_format, *, bf16: bool
    ) -> Tensor:
        found = []
        for images, _ in batches_of(splits, test):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                found.append(network(images.contiguous(memory_format=layout)).argmax(1))
        return torch.cat(found)

    network = trained.network.eval()
    plain = answers(network, bf16=False)

    def changed(*, bf16: bool) -> int:
        twin, layout = prepare_for_inference(network, precision="bf16" if bf16 else "fp32")
        return int((answers(twin, layout, bf16=bf16) != plain).sum())

    return {"ours, fp32": changed(bf16=False), "ours, bf16": changed(bf16=True)}


def batches_of(splits: DataSplits, test: InMemoryImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the test images in batches."""
    return evaluation_batches(
        test, batch_size=BATCH_SIZE, mean=splits.mean, std=splits.std, device=CPU
    )


if __name__ == "__main__":
    main()
