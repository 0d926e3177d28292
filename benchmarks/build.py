"""Time ``build_from_spec`` against building with default initialisation and initialising again.

    python benchmarks/build.py [SPEC]

writes ``benchmarks/results/build_SPEC.json``; the two are alternated in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from machine import describe
from results import RESULTS, write
from torch import nn

from resnet_builder import build_from_spec
from resnet_builder.builder import read_spec
from resnet_builder.builder.construct import construct_ordinarily

PAIRS = 9


def main() -> None:
    """Alternate, and write medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", nargs="?", default="resnet1202")
    name = parser.parse_args().spec
    model = read_spec(name).model

    def twice() -> None:
        network = construct_ordinarily(model)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    times: dict[str, list[float]] = {"ours": [], "initialised twice": []}
    for _ in range(PAIRS):
        times["initialised twice"].append(timed(twice))
        times["ours"].append(timed(lambda: build_from_spec(name, seed=0)))
    medians = {key: round(statistics.median(values), 4) for key, values in times.items()}
    report = {
        "what": f"seconds to build {name}, median of {PAIRS}, alternated",
        "machine": describe(),
        "seconds": medians,
        "ratio": round(medians["ours"] / medians["initialised twice"], 3),
    }
    write(RESULTS / f"build_{name}.json", report)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
