"""Convolutions in training, in bf16: what our algorithms compute, beside torch's.

    python benchmarks/convolutions.py resnet20 resnet18_cifar resnet50

writes ``benchmarks/results/KIND/convolutions.json``. For every distinct convolution of them, and
for each of its output and its two gradients that is ours: the median time of either in turns, on
images that are cut in turn from at least 64 MiB, and how far either is from what fp64 computes.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter

import torch
from common import describe_machine, own_results, write
from gradient_error import distance
from torch import Tensor, nn

from resnet_builder.builder import build, read_spec
from resnet_builder.cpu.convolution import TrainingConv2d, training_algorithms
from resnet_builder.training.runtime import set_backend_flags

TURNS = 21
IMAGES = 64
MEMORY = 64 * 2**20

Case = tuple[nn.Conv2d, torch.Size]
Images = tuple[Tensor, Tensor]
Part = Callable[[nn.Module, Tensor, Tensor], Callable[[], Tensor]]
"""Given a layer, images and the output's gradient, returns what computes a part of its step."""


def main() -> None:
    """Measure each convolution once, however many networks have it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="+")
    given = parser.parse_args()
    set_backend_flags(threads=None)
    each: dict[str, dict[str, dict[str, float]]] = {}
    for spec in given.specs:
        for layer, shape in convolutions(spec):
            name = f"{layer.in_channels} to {layer.out_channels}, "
            name += "x".join(map(str, layer.kernel_size)) + f", stride {layer.stride[0]}, "
            name += f"{shape[2]}x{shape[3]} pixels"
            if name not in each:
                each[name] = {part: compared(layer, shape, part) for part in ours_of(layer)}
    result = {
        "what": f"milliseconds of parts of a step, {IMAGES} images, bf16, channels-last",
        "machine": describe_machine(),
        "speed-up": {
            part: spread([one[part]["speed-up"] for one in each.values() if part in one])
            for part in PARTS
            if any(part in one for one in each.values())
        },
        "each": each,
    }
    write(own_results() / "convolutions.json", result)


def convolutions(spec: str) -> Iterator[Case]:
    """Yield a network's convolutions that we have algorithms for, and what they are given."""
    read = read_spec(spec)
    network = build(read, seed=0).eval()
    seen: list[Case] = []

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(layer, nn.Conv2d) and training_algorithms(layer) is not None:
            seen.append((layer, inputs[0].shape))

    for layer in network.modules():
        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, *read.model.image_shape))
    yield from seen


def ours_of(layer: nn.Conv2d) -> list[str]:
    """Return the parts of a layer's step that are ours."""
    algorithms = training_algorithms(layer)
    assert algorithms is not None
    return list(PARTS) if algorithms.winograd else ["gradient of weight"]


def output(layer: nn.Module, x: Tensor, _dy: Tensor) -> Callable[[], Tensor]:
    """Return what computes the output."""
    return lambda: applied(layer, x.detach()).detach()


def gradient_of_images(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Tensor]:
    """Return what computes the images' gradient, and nothing else."""
    layer.requires_grad_(False)
    y = applied(layer, x)
    layer.requires_grad_()
    return lambda: torch.autograd.grad(y, x, dy.to(y.dtype), retain_graph=True)[0]


def gradient_of_weights(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Tensor]:
    """Return what computes the weight's gradient, and nothing else."""
    y = applied(layer, x.detach())
    (weight,) = layer.parameters()
    return lambda: torch.autograd.grad(y, weight, dy.to(y.dtype), retain_graph=True)[0]


PARTS: dict[str, Part] = {
    "output": output,
    "gradient of input": gradient_of_images,
    "gradient of weight": gradient_of_weights,
}


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer, in bf16 unless it is one in fp64."""
    (weight,) = layer.parameters()
    with torch.autocast("cpu", torch.bfloat16, enabled=weight.dtype == torch.float32):
        y: Tensor = layer(x)
    return y


def compared(layer: nn.Conv2d, shape: torch.Size, part: str) -> dict[str, float]:
    """Time and check both ways in turns."""
    layer.to(memory_format=torch.channels_last)
    algorithms = training_algorithms(layer)
    assert algorithms is not None
    batches = list(batches_of(layer, shape))
    ways = (TrainingConv2d(layer, algorithms), layer)
    runs = [[PARTS[part](way, *batch) for batch in batches] for way in ways]
    times: list[list[float]] = [[], []]
    for turn in [*zip(*map(cycle, runs), range(TURNS + 1), strict=False)]:
        for number, compute in enumerate(turn[:2]):
            times[number].append(timed(compute))
    ours, torch_s = (1000 * statistics.median(column[1:]) for column in times)
    exact = PARTS[part](*in_fp64(layer, *batches[0]))()
    errors = [distance(run[0](), exact) for run in runs]
    return {
        "kernel": round(ours, 3),
        "torch": round(torch_s, 3),
        "speed-up": round(torch_s / ours, 2),
        "kernel error": float(f"{errors[0]:.2g}"),
        "torch error": float(f"{errors[1]:.2g}"),
    }


def batches_of(layer: nn.Conv2d, shape: torch.Size) -> Iterator[Images]:
    """Yield batches of images, as a ReLU leaves them, and gradients of their output."""
    bytes_each = 2 * IMAGES * shape[1:].numel()
    for _ in range(max(2, -(-MEMORY // bytes_each))):
        x = torch.randn(IMAGES, *shape[1:]).relu().bfloat16()
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        yield x, torch.randn_like(applied(layer, x.detach()))


def in_fp64(layer: nn.Conv2d, x: Tensor, dy: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the same in numbers that round next to nothing."""
    twin = copy.deepcopy(layer).double()
    return twin, x.detach().double().requires_grad_(), dy.double()


def timed(compute: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    started = perf_counter()
    compute()
    return perf_counter() - started


def spread(ratios: list[float]) -> dict[str, float]:
    """Return the least, the median and the most of some ratios."""
    return {
        "least": min(ratios),
        "median": round(statistics.median(ratios), 2),
        "most": max(ratios),
    }


if __name__ == "__main__":
    main()
