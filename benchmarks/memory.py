"""Peak memory of training steps: ours against *stock*.

    python benchmarks/memory.py resnet110

writes ``benchmarks/results/memory_SPEC.json``: each contender is a process of its own that takes a
few steps; what it held before the first is told apart. Linux only: the system's own mark of the
most memory held is set back before the first step.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import opponents
from machine import describe
from throughput import spec_of

from resnet_builder.builder import build
from resnet_builder.data.splits import load_splits
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.fit import fit
from resnet_builder.training.process import configure

RESULTS = Path(__file__).parent / "results"
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
    path = RESULTS / f"memory_{given.spec}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path.read_text())


def peaks(name: str, spec: str) -> dict[str, float]:
    """Measure a contender in a process of its own."""
    command = [sys.executable, __file__, spec, "--work", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(name: str, spec_name: str) -> dict[str, float]:
    """Be a contender; return the peak of its process, before the steps and after them."""
    spec = spec_of(name, spec_name)
    assert spec.train is not None
    assert spec.model.image_size is not None
    network = build(spec, seed=0)
    peaks: list[float] = []

    def stop() -> bool:
        if not peaks:
            Path("/proc/self/clear_refs").write_text("5")
        peaks.append(peak())
        return len(peaks) > STEPS

    if name == "ours":
        configure(threads=None)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory.create(Path(folder, "run"))
            with suppress(Stopped):
                fit(network, load_splits(spec), spec, run, stop=stop)
    else:
        batch_size = spec.train.batch_size
        opponents.train(
            network, size=spec.model.image_size, batch_size=batch_size, tuned=False, stop=stop
        )
    return {
        "before": round(peaks[0], 1),
        "peak": round(peaks[-1], 1),
        "added by steps": round(peaks[-1] - peaks[0], 1),
    }


def peak() -> float:
    """Return the most memory that the process has held since the mark was set back, in MiB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
