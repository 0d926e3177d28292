"""The weights' gradients of convolutions in bf16: our operation beside torch's.

    python benchmarks/gradients.py resnet20 resnet18_cifar resnet50

writes ``benchmarks/results/KIND/gradients.json``. For every distinct convolution of them that our
operation is used for: the median time of its weight's gradient, by either in turns, on inputs that
are cut in turn from at least 64 MiB.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter

import torch
from machine import describe, own_results
from torch import Tensor, nn

from resnet_builder.builder import build, read_spec
from resnet_builder.kernels.gradient import PairedConv2d, has_faster_gradient
from resnet_builder.training.process import configure

TURNS = 21
IMAGES = 64
MEMORY = 64 * 2**20

Case = tuple[nn.Conv2d, torch.Size]


def main() -> None:
    """Measure each convolution once, however many networks have it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="+")
    given = parser.parse_args()
    configure(threads=None)
    each = {}
    for spec in given.specs:
        for layer, shape in convolutions(spec):
            name = f"{layer.in_channels} to {layer.out_channels}, "
            name += "x".join(map(str, layer.kernel_size)) + f", stride {layer.stride[0]}, "
            name += f"{shape[2]}x{shape[3]} pixels"
            if name not in each:
                each[name] = compared(layer, shape)
    ratios = [one["times faster"] for one in each.values()]
    result = {
        "what": f"milliseconds of a weight's gradient, {IMAGES} images, bf16, channels-last",
        "machine": describe(),
        "times faster": {
            "least": min(ratios),
            "median": round(statistics.median(ratios), 2),
            "most": max(ratios),
        },
        "each": each,
    }
    path = own_results() / "gradients.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path.read_text())


def convolutions(spec: str) -> Iterator[Case]:
    """Yield a network's convolutions that our operation is used for, and what they are given."""
    read = read_spec(spec)
    network = build(read, seed=0).eval()
    seen: list[Case] = []

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(layer, nn.Conv2d) and has_faster_gradient(layer):
            seen.append((layer, inputs[0].shape))

    for layer in network.modules():
        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, *read.model.image_shape))
    yield from seen


def compared(layer: nn.Conv2d, shape: torch.Size) -> dict[str, float]:
    """Time both ways in turns."""
    ours, torch_s = gradient(PairedConv2d(layer), shape), gradient(layer, shape)
    times = [(timed(ours), timed(torch_s)) for _ in range(TURNS)]
    medians = [1000 * statistics.median(column) for column in zip(*times, strict=True)]
    return {
        "ours": round(medians[0], 3),
        "torch's": round(medians[1], 3),
        "times faster": round(medians[1] / medians[0], 2),
    }


def gradient(layer: nn.Module, shape: torch.Size) -> Callable[[], object]:
    """Return what computes the weight's gradient of the next batch."""
    (weight,) = layer.to(memory_format=torch.channels_last).parameters()
    bytes_each = 2 * IMAGES * shape[1:].numel()
    outputs = []
    for _ in range(max(2, -(-MEMORY // bytes_each))):
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.randn(IMAGES, *shape[1:], dtype=torch.bfloat16)
            y = layer(x.contiguous(memory_format=torch.channels_last))
        outputs.append((y, torch.randn_like(y)))
    turns = cycle(outputs)

    def compute() -> object:
        y, dy = next(turns)
        return torch.autograd.grad(y, weight, dy, retain_graph=True)

    compute()
    return compute


def timed(compute: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    started = perf_counter()
    compute()
    return perf_counter() - started


if __name__ == "__main__":
    main()
