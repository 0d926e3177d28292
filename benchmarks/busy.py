"""Training throughput beside busy processes, which this script starts and ends.

    python benchmarks/busy.py [resnet20 resnet20_digits] [--before PATH] [--turns 3] [--seconds 6]

Contenders take turns at each load: ``resnet-build train`` of this checkout, with threads that spin
while they wait (``GOMP_SPINCOUNT``, as GNU OpenMP has it by default), with threads that sleep
(``OMP_WAIT_POLICY=PASSIVE``), with one thread, and a plain loop; and, with ``--before``, that of
another checkout. Writes ``benchmarks/results/KIND/busy.json``. It also trains the digits on a quiet
and on a busy machine, and compares the weights.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from common import describe_machine, own_results, write
from interleaved import HERE, Contender, answer_turns, train_command
from safetensors.torch import load_file

from resnet_builder import load_spec
from resnet_builder.builder import build, load_experiment

LOADS = (0, 1, 2, 3)
SPIN = {"GOMP_SPINCOUNT": "300000"}
SLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
FIXED = ("spinning threads", "sleeping threads", "one thread")
DIGITS = (
    "data.dataset=digits",
    "data.validation=0",
    "train.steps=10000000",
    "train.schedule=constant",
    "train.checkpoint_every={seconds: 1e9}",
)


def main() -> None:
    """Take turns at each load, and write each contender's rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", default=["resnet20", "resnet20_digits"])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        train_plainly(given.specs[0])
        return
    report = {
        "what": "median images per second of training, beside busy processes",
        "turns": given.turns,
        "seconds": given.seconds,
        "machine": describe_machine(),
        "same_weights_on_a_busy_machine": same_weights(given.before),
        "specs": {name: measure(name, given) for name in given.specs},
    }
    write(own_results() / "busy.json", report)


def measure(name: str, given: argparse.Namespace) -> dict[str, object]:
    """Return the rates of all contenders by load, and this program's share of the best fixed."""
    by_load: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        contenders = list(start(name, given.before, Path(folder)))
        for load in LOADS:
            for each in contenders:
                each.rates.clear()
            with busy_processes(load):
                for turn in range(given.turns):
                    for each in contenders:
                        each.take_turn(given.seconds)
                        place = f"{name}, {load} busy, turn {turn + 1}"
                        print(f"{place}, {each.name}: {each.rates[-1]:.0f}", file=sys.stderr)
            rates = {each.name: round(statistics.median(each.rates), 1) for each in contenders}
            shares = {
                "share_of_best_fixed": rates["ours"] / max(rates[each] for each in FIXED),
                **({"over_before": rates["ours"] / rates["before"]} if given.before else {}),
            }
            by_load[f"{load} busy"] = {
                "images_per_second": rates,
                **{key: round(share, 3) for key, share in shares.items()},
            }
        for each in contenders:
            each.end()
    return by_load


def start(name: str, before: Path | None, folder: Path) -> Iterator[Contender]:
    """Start the contenders, one after the other."""
    spec = load_spec(name)
    command = train_command(spec, name, DIGITS if name == "resnet20_digits" else ())
    plain = [__file__, name, "--plain"]
    root = HERE.parent
    all_of_them = [
        ("ours", command, root, {}),
        ("spinning threads", command, root, SPIN),
        ("sleeping threads", command, root, SLEEP),
        ("one thread", [*command, "--set", "run.threads=1"], root, {}),
        ("plain loop", plain, root, {}),
        *([("before", command, before, {})] if before else []),
    ]
    for title, arguments, checkout, variables in all_of_them:
        own = folder / title.replace(" ", "_")
        own.mkdir()
        yield Contender(title, arguments, checkout, own, variables)
        print(f"{title} is warm", file=sys.stderr)


def train_plainly(name: str) -> NoReturn:
    """Be a contender: a plain loop in fp32, with one batch that is in memory."""
    experiment = load_experiment(name)
    batch_size = experiment.train.batch_size
    network = build(experiment, seed=0).train()
    images = torch.randn(batch_size, *experiment.input_shape)
    labels = torch.arange(batch_size) % experiment.spec.model.num_classes
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    answer_turns(batch_size)
    while True:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Context in which as many processes compute without end."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def same_weights(before: Path | None) -> dict[str, str]:
    """Return digests of the digits' last weights: quiet, beside two busy processes, and before."""
    with tempfile.TemporaryDirectory() as folder:
        digests = {"quiet": weights_digest(HERE.parent, Path(folder) / "quiet")}
        with busy_processes(2):
            digests["2 busy"] = weights_digest(HERE.parent, Path(folder) / "busy")
        if before:
            digests["before, quiet"] = weights_digest(before, Path(folder) / "before")
    if len(set(digests.values())) > 1:
        raise SystemExit(f"the weights differ: {digests}")
    return digests


def weights_digest(checkout: Path, run: Path) -> str:
    """Train three epochs of the digits, and return a digest of the last weights' bytes."""
    settings = ("train.epochs=3", "run.threads=2")
    options = [option for setting in settings for option in ("--set", setting)]
    command = ["-m", "resnet_builder", "train", "resnet20_digits", "--out", str(run), *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, check=True
    )
    weights = load_file(run / "last.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
