"""What the convolutions of a training step take alone, by torch's operations, over the step.

    python benchmarks/floor.py resnet20 [--seconds 150]

writes ``benchmarks/results/KIND/floor_SPEC.json``. For every distinct convolution of the network:
the median time of its forward pass, of its weight's gradient and of its input's gradient alone (the
gradients by two calls of ``torch.ops.aten.convolution_backward``, the first convolution without the
input's), in the precision and memory format of training, on inputs that are cut in turn from at
least 64 MiB, with the same threads and allocator. Each times how often it occurs, summed up, over
the time of our step: one measured in turns with them, in one process, and one measured right
afterwards as throughput.py does, in a process that only trains. It may exceed 1: a step has faster
gradients than torch's of some convolutions.
"""

import argparse
import statistics

from machine import describe
from results import own_results, write
from throughput import Worker

from resnet_builder.bench import Bench, measure
from resnet_builder.builder import read_spec
from resnet_builder.training.runtime import set_backend_flags

TURNS = 3
TURN_SECONDS = 20.0


def main() -> None:
    """Measure, and write the share and what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--seconds", type=float, default=150)
    given = parser.parse_args()
    set_backend_flags(threads=None)
    found = measure(read_spec(given.spec), seconds=given.seconds, warn=print)
    worker = Worker("ours", given.spec)
    alone = statistics.median(worker.turn(TURN_SECONDS) for _ in range(TURNS))
    worker.end()
    write(own_results() / f"floor_{given.spec}.json", report(found, alone))


def report(found: Bench, alone: float) -> dict[str, object]:
    """Sum up what was measured; ``alone`` is the images per second of only training."""
    floor = found.floor
    step_alone = found.size.batch_size / alone
    return {
        "what": f"milliseconds of the convolutions of a step of {found.name}, and of the step",
        "machine": describe(),
        "settings": {setting.name: setting.value for setting in found.settings},
        "images": found.size.batch_size,
        "share of the step": round(floor.seconds() / found.ours.seconds_per_step, 3),
        "share of a step where nothing else is measured": round(floor.seconds() / step_alone, 3),
        "step": milliseconds(found.ours.seconds_per_step),
        "images_per_second": {
            "only training": round(alone, 1),
            "ours": round(found.ours.images_per_second, 1),
            "quartiles": [round(found.ours.low, 1), round(found.ours.high, 1)],
            "plain loop": round(found.plain.images_per_second, 1),
        },
        "convolutions": {
            "all": milliseconds(floor.seconds()),
            "forward": milliseconds(floor.seconds("forward")),
            "gradients of weights": milliseconds(floor.seconds("weight_gradient")),
            "gradients of inputs": milliseconds(floor.seconds("input_gradient")),
        },
        "each": [
            {
                "convolution": str(work.convolution),
                "kind": work.kind,
                "times": work.count,
                "milliseconds": milliseconds(seconds),
            }
            for work, seconds in floor.work
        ],
    }


def milliseconds(seconds: float) -> float:
    """Return a time as it is written down."""
    return round(1000 * seconds, 3)


if __name__ == "__main__":
    main()
