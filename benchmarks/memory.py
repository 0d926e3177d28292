"""Peak memory of training steps: ``resnet-build train`` against the stock loop.

    python benchmarks/memory.py resnet110

writes ``benchmarks/results/KIND/memory_SPEC.json``. Each contender is a process of its own that
takes a few steps; what it held before the first, once freed memory is given back, is told apart.
Linux only: the system's mark of the most memory held is set back before the first step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import baselines
import torch
from common import describe_machine, own_results, write
from interleaved import run_command, train_command
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from resnet_builder import build_from_spec, load_spec
from resnet_builder.bench import PeakMeter

STEPS = 4


def main() -> None:
    """Measure both, and write the peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--be", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be is not None:
        be(given.be, given.spec, given.set)
        return
    found = {name: peaks(name, given.spec) for name in ("ours", "stock")}
    report = {
        "what": f"MiB of memory at the peak of {STEPS} training steps of {given.spec}",
        "machine": describe_machine(),
        "mib": found,
        "ratio of what the steps add": round(
            found["ours"]["added by steps"] / found["stock"]["added by steps"], 3
        ),
        "ratio of the peaks": round(found["ours"]["peak"] / found["stock"]["peak"], 3),
    }
    write(own_results() / f"memory_{given.spec}.json", report)


def peaks(name: str, spec: str, settings: Sequence[str] = ()) -> dict[str, float]:
    """Measure a contender in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, spec, "--be", name]
        command += [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def be(name: str, spec_name: str, settings: Sequence[str]) -> None:
    """Be a contender: train until a hook has seen enough steps."""
    spec = load_spec(spec_name, overrides=settings)
    assert spec.train is not None
    _Meter()
    if name == "ours":
        run_command("train", *train_command(spec, spec_name, settings)[2:])
    size, batch_size = spec.model.image_size or 32, spec.train.batch_size
    baselines.train(
        build_from_spec(spec.name, seed=0), size=size, batch_size=batch_size, tuned=False
    )


class _Meter:
    """Hooks that set the mark back at the first forward pass, and print the peak of some steps."""

    def __init__(self) -> None:
        self._meter: PeakMeter | None = None
        self._steps = 0
        register_module_forward_pre_hook(self._before_forward)
        register_optimizer_step_pre_hook(self._before_update)

    def _before_forward(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        real = all(isinstance(each, Tensor) and not each.is_meta for each in inputs)
        if self._meter is None and real and module.training and torch.is_grad_enabled():
            self._meter = PeakMeter(torch.device("cpu"))

    def _before_update(self, *_: object) -> None:
        self._steps += 1
        if self._steps < STEPS or self._meter is None:
            return
        memory = self._meter.read()
        assert memory is not None
        before, peak = memory.before_bytes, memory.peak_bytes
        found = {"before": before, "peak": peak, "added by steps": peak - before}
        print(json.dumps({name: round(each / 2**20, 1) for name, each in found.items()}))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
