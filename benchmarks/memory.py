"""Peak memory of training steps: ours against *stock*.

    python benchmarks/memory.py resnet110

writes ``benchmarks/results/KIND/memory_SPEC.json``: each contender is a process of its own that
takes a few steps; what it held before the first, once freed memory is given back, is told apart.
Linux only: the system's own mark of the most memory held is set back before the first step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import opponents
import torch
from machine import describe
from results import own_results, write
from throughput import spec_of

from resnet_builder.bench.memory import PeakMeter
from resnet_builder.builder import build
from resnet_builder.data.splits import load_data
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.fit import fit
from resnet_builder.training.runtime import set_backend_flags

STEPS = 4


def main() -> None:
    """Measure both, and write the peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--work", choices=["ours", "stock"], help="be this contender")
    given = parser.parse_args()
    if given.work is not None:
        print(json.dumps(measured(given.work, given.spec)))
        return
    found = {name: peaks(name, given.spec) for name in ("ours", "stock")}
    report = {
        "what": f"MiB of memory at the peak of {STEPS} training steps of {given.spec}",
        "machine": describe(),
        "mib": found,
        "ratio of what the steps add": round(
            found["ours"]["added by steps"] / found["stock"]["added by steps"], 3
        ),
        "ratio of the peaks": round(found["ours"]["peak"] / found["stock"]["peak"], 3),
    }
    write(own_results() / f"memory_{given.spec}.json", report)


def peaks(name: str, spec: str) -> dict[str, float]:
    """Measure a contender in a process of its own."""
    command = [sys.executable, __file__, spec, "--work", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(name: str, spec_name: str) -> dict[str, float]:
    """Be a contender; return the peak of its process, before the steps and after them."""
    spec = spec_of("ours, eager" if name == "ours" else name, spec_name)
    assert spec.train is not None
    assert spec.model.image_size is not None
    network = build(spec, seed=0)
    meters: list[PeakMeter] = []

    def stop() -> bool:
        meters.append(meters[0] if meters else PeakMeter(torch.device("cpu")))
        return len(meters) > STEPS

    if name == "ours":
        set_backend_flags(threads=None)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory.create(Path(folder, "run"))
            with suppress(Stopped):
                fit(network, load_data(spec), spec, run, stop=stop)
    else:
        batch_size = spec.train.batch_size
        opponents.train(
            network, size=spec.model.image_size, batch_size=batch_size, tuned=False, stop=stop
        )
    peak = meters[0].peak()
    assert peak is not None
    return {
        "before": round(peak.before / 2**20, 1),
        "peak": round(peak.bytes / 2**20, 1),
        "added by steps": round((peak.bytes - peak.before) / 2**20, 1),
    }


if __name__ == "__main__":
    main()
