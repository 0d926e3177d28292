"""Time to accuracy: a recipe's accuracy, and its speed-up over the paper's recipe in *stock*.

    python benchmarks/time_to_accuracy.py fast --data DIR --seeds 0 1 2 3 4

trains ResNet-20 by a bundled recipe on all 50,000 training images of CIFAR-10 as JPEG files
(``DIR/train/CLASS/*.jpg`` and ``DIR/test/CLASS/*.jpg``), takes the last weights, and reads the test
images once. Each seed writes ``benchmarks/results/KIND/RECIPE/seed-N.json`` as it ends, and
``summary.json`` beside it sums up those that there are. Before and after each training, *stock*
trains for a while: its images per second say how long the paper's 64,000 steps would take it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import describe_machine, own_results, write
from interleaved import HERE, Contender

PAPER_IMAGES = 64_000 * 128
PAPER_TOP1 = 0.8801
"""Of He et al.'s recipe on the same images, in bf16; one seed."""


def main() -> None:
    """Train with each seed, and sum up all that have been."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a bundled recipe, or a file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--stock-seconds", type=float, default=30)
    given = parser.parse_args()
    folder = own_results() / Path(given.recipe).stem
    folder.mkdir(exist_ok=True)
    for seed in given.seeds:
        record = one(given.recipe, given.data.resolve(), seed, given.stock_seconds)
        write(folder / f"seed-{seed}.json", record)
    write(folder / "summary.json", sum_up(given.recipe, folder))


def one(recipe: str, data: Path, seed: int, stock_seconds: float) -> dict[str, Any]:
    """Train with one seed, between two stretches of stock."""
    dataset = f"data.dataset={{type: image_folder, path: '{data}'}}"
    arguments = ["resnet20", "--with", recipe, "--set", dataset, "--set", "data.validation=0"]
    stock = [stock_rate(stock_seconds)]
    record = train(arguments, seed)
    stock.append(stock_rate(stock_seconds))
    paper_seconds = PAPER_IMAGES / statistics.mean(stock)
    return {
        "what": f"ResNet-20 by {Path(recipe).stem}: CIFAR-10 as JPEG files, 50,000 training images",
        "machine": describe_machine(),
        **record,
        "stock.images_per_second": [round(rate, 1) for rate in stock],
        "stock.seconds_for_64000_steps": round(paper_seconds),
        "speed_up": round(paper_seconds / record["wall_seconds"], 2),
    }


def stock_rate(seconds: float) -> float:
    """Return the images per second of the stock loop."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(HERE / "throughput.py"), "resnet20", "--be", "stock"]
        contender = Contender("stock", command, HERE.parent, Path(folder))
        contender.take_turn(seconds)
        contender.end()
    return contender.rates[0]


def train(arguments: list[str], seed: int) -> dict[str, Any]:
    """Train once through the command line; return the result with the seconds of all of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "resnet_builder", "train", *arguments]
        command += ["--set", f"train.seed={seed}", "--out", f"{folder}/run", "--json"]
        started = time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        record = json.loads(done.stdout)
    kept = ("seed", "steps", "selected_on", "val.top1", "test.top1", "seconds", "precision")
    record["wall_seconds"] = round(time.monotonic() - started, 1)
    return {key: record.get(key) for key in (*kept, "images_per_second", "wall_seconds")}


def sum_up(recipe: str, folder: Path) -> dict[str, Any]:
    """Sum up all seeds that have been trained on this kind of processor."""
    seeds = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]
    top1 = [seed["test.top1"] for seed in seeds]
    mean = statistics.mean(top1)
    return {
        "what": f"test top-1 of ResNet-20 by {Path(recipe).stem}, CIFAR-10 as JPEG files",
        "recipe": Path(recipe).stem,
        "processors": sorted({seed["machine"]["processor"] for seed in seeds}),
        "commits": sorted({seed["machine"]["commit"] for seed in seeds}),
        "paper.test.top1": PAPER_TOP1,
        "n": len(top1),
        "test.top1.mean": round(mean, 5),
        "test.top1.std": round(statistics.stdev(top1), 5) if len(top1) > 1 else None,
        "points_above_the_paper": round(100 * (mean - PAPER_TOP1), 2),
        "wall_seconds.median": round(statistics.median(seed["wall_seconds"] for seed in seeds), 1),
        "speed_up.median": round(statistics.median(seed["speed_up"] for seed in seeds), 2),
    }


if __name__ == "__main__":
    main()
