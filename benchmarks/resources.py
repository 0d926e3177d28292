"""What training steps add to a process's memory, against what was estimated before.

    python benchmarks/resources.py

writes ``benchmarks/results/resources.json``. Each training is a process of its own, set up as
``resnet-build train`` sets itself up, on one thread, without ``torch.compile``. Measured is the
most memory that it held in its first five steps (``VmHWM``) less what it held before the first
(``VmRSS``). Linux with glibc only: memory that loading has freed is given back before, or the
steps would be measured without what they find there.
"""

import argparse
import ctypes
import json
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import cast

from machine import describe
from results import RESULTS, write

from resnet_builder.builder import build, read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.device import Precision
from resnet_builder.errors import Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.schema import Spec
from resnet_builder.training.fit import fit
from resnet_builder.training.resources import estimate_training
from resnet_builder.training.runtime import set_backend_flags

SPECS = ("resnet20", "resnet56", "resnet110", "resnet18_cifar")
BATCH_SIZES = (32, 128)
PRECISIONS = ("fp32", "bf16")
STEPS = 5


def main() -> None:
    """Measure every training, and write what was measured beside what was estimated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs=3, help="be this training: spec, batch size, precision")
    given = parser.parse_args()
    if given.work is not None:
        print(json.dumps(measured(spec_of(*given.work))))
        return
    rows = [
        row(name, str(batch_size), precision)
        for name in SPECS
        for batch_size in BATCH_SIZES
        for precision in PRECISIONS
    ]
    report = {
        "what": f"MiB that {STEPS} training steps add to a process",
        "machine": describe(),
        "largest deviation": max(round(abs(one["estimated over measured"] - 1), 3) for one in rows),
        "trainings": rows,
    }
    write(RESULTS / "resources.json", report)


def row(name: str, batch_size: str, precision: str) -> dict[str, float]:
    """Measure a training in a process of its own, and estimate it here."""
    command = [sys.executable, __file__, "--work", name, batch_size, precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    steps = json.loads(done.stdout)
    estimate = estimate_training(spec_of(name, batch_size, precision), cast(Precision, precision))
    estimated = estimate.steps / 2**20
    return {
        **{"spec": name, "batch size": int(batch_size), "precision": precision},
        "estimated": round(estimated, 1),
        "measured after each step": steps,
        "estimated over measured": round(estimated / steps[-1], 3),
    }


def spec_of(name: str, batch_size: str, precision: str) -> Spec:
    """Return a spec with made-up images, of which there are just enough."""
    values = {
        "data.dataset": "{type: synthetic, num_classes: 10, train: 128, test: 10}",
        "data.validation": "0",
        "train.batch_size": batch_size,
        "run": f"{{device: cpu, precision: {precision}, threads: 1, compile: false}}",
    }
    return read_spec(name, overrides=[f"{key}={value}" for key, value in values.items()])


def measured(spec: Spec) -> list[float]:
    """Be a training; return the peak after each step over what was there before, in MiB."""
    splits = load_data(spec)
    set_backend_flags(threads=1)
    network = build(spec, seed=0)
    before: list[float] = []
    peaks: list[float] = []

    def stop() -> bool:
        if not before:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before.append(held("VmRSS"))
        else:
            peaks.append(round(held("VmHWM") - before[0], 1))
        return len(peaks) == STEPS

    with tempfile.TemporaryDirectory() as folder, suppress(Stopped):
        fit(network, splits, spec, RunDirectory.create(Path(folder, "run")), stop=stop)
    return peaks


def held(what: str) -> float:
    """Return what the system says that this process holds, in MiB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
