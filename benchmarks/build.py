"""Time ``build_from_spec`` against building with default initialisation and initialising again.

python benchmarks/build.py [SPEC]

writes ``benchmarks/results/build_SPEC.json``; the two are alternated in one process.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from machine import describe
from torch import nn

from resnet_builder import build_from_spec
from resnet_builder.builder import read_spec
from resnet_builder.builder.construct import construct_ordinarily

RESULTS = Path(__file__).parent / "results"
PAIRS = 9


def main() -> None:
    """Alternate, and write medians and their ratio."""
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet1202"
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
    path = RESULTS / f"build_{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path.read_text())


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
