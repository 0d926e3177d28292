"""Train a spec with some seeds through the command line, and write what came of it.

    python benchmarks/train.py digits --seeds 5 -- resnet20_digits

writes ``benchmarks/results/digits.json``; each finished seed is written as it ends.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from machine import describe
from results import RESULTS, write


def main() -> None:
    """Train, and write the file anew after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--note", default="")
    parser.add_argument("train", nargs="+", help="what follows `resnet-build train`")
    given = parser.parse_args()
    path = RESULTS / f"{given.name}.json"
    runs = []
    for seed in range(given.seeds):
        runs.append(train(given.train, seed))
        write(path, report(given.train, given.note, runs))


def train(arguments: list[str], seed: int) -> dict[str, Any]:
    """Train once and return the result's record, with the wall time of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "resnet_builder", "train", *arguments]
        command += ["--set", f"train.seed={seed}", "--out", f"{folder}/run", "--json"]
        started = time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        record = json.loads(done.stdout)
    kept = ("seed", "steps", "selected_on", "val.top1", "test.top1", "seconds", "precision")
    record["wall_seconds"] = round(time.monotonic() - started, 1)
    return {key: record.get(key) for key in (*kept, "images_per_second", "wall_seconds")}


def report(arguments: list[str], note: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum runs up."""
    return {
        "command": f"resnet-build train {' '.join(arguments)}",
        "note": note,
        "machine": describe(),
        **accuracy(runs),
        "seconds.median": statistics.median(run["seconds"] for run in runs),
        "runs": runs,
    }


def accuracy(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return number, mean and deviation of the test accuracies of some runs."""
    top1 = [run["test.top1"] for run in runs]
    return {
        "n": len(top1),
        "test.top1.mean": round(statistics.mean(top1), 5),
        "test.top1.deviation": round(statistics.stdev(top1), 5) if len(top1) > 1 else None,
    }


if __name__ == "__main__":
    main()
