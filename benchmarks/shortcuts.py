"""Plain and residual networks, and options A, B and C, on the digits: the tutorial's figures.

    python benchmarks/shortcuts.py [--seeds 5]

Trains the networks of docs/tutorials/why-residual.md, by the specs of that page, and writes
``benchmarks/results/KIND/shortcuts.json``: accuracies of each seed, and curves of the validation
error. ``docs/pictures.py`` draws the curves. The runs stay in ``runs/shortcuts``, so that the same
line continues after a stop.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import describe_machine, own_results, write

from resnet_builder import Run, train
from resnet_builder.runs.records import curve_rows
from resnet_builder.runs.seeds import mean_and_std

PAGE = Path(__file__).parent.parent / "docs" / "tutorials" / "why-residual.md"
WORK = Path("runs", "shortcuts")
NETWORKS = {
    "plain, 20 layers": ("small20", "none"),
    "plain, 56 layers": ("small56", "none"),
    "residual, 20 layers": ("small20", "pad"),
    "residual, 56 layers": ("small56", "pad"),
    "projection, 20 layers": ("small20", "projection"),
    "projection_all, 20 layers": ("small20", "projection_all"),
}


def main() -> None:
    """Train each network with each seed, and write accuracies and curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    specs = r"^```yaml\n(name: (\w+)\n.*?)^```"
    for text, name in re.findall(specs, PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        (WORK / f"{name}.yaml").write_text(text, encoding="utf-8")
    networks = {
        name: summarized([train_one(spec, shortcut, seed) for seed in range(given.seeds)])
        for name, (spec, shortcut) in NETWORKS.items()
    }
    write(
        own_results() / "shortcuts.json",
        {
            "what": "accuracy on the digits, trained by the specs of why-residual.md",
            "seeds": given.seeds,
            "machine": describe_machine(),
            "networks": networks,
        },
    )


def train_one(spec: str, shortcut: str, seed: int) -> Run:
    """Train on one thread, since small networks are faster on one."""
    overrides = [f"model.shortcut={shortcut}", f"train.seed={seed}", "run.threads=1"]
    overrides.append("run.report=false")
    out = WORK / f"{spec}-{shortcut}-{seed}"
    return train(WORK / f"{spec}.yaml", out, overrides=overrides, resume=True)


def summarized(runs: Sequence[Run]) -> dict[str, object]:
    """Return the accuracies of each seed, and mean and deviation of them and of the curve."""
    tests = [run.result.test_top1 or 0.0 for run in runs]
    trained = [
        next(row.train_top1 for row in reversed(run.history) if row.train_top1 is not None)
        for run in runs
    ]
    curves = [[row for row in curve_rows(run.history) if row.event == "validation"] for run in runs]
    errors = np.array([[1 - (row.val_top1 or 0.0) for row in rows] for rows in curves])
    return {
        **spread("test_top1", tests),
        **spread("train_top1", trained),
        "epochs": [row.epoch for row in curves[0]],
        "val_error.mean": errors.mean(0).round(4).tolist(),
        "val_error.std": errors.std(0, ddof=1).round(4).tolist() if len(runs) > 1 else None,
    }


def spread(name: str, values: Sequence[float]) -> dict[str, object]:
    """Return the values of all seeds, with their mean and sample standard deviation."""
    mean, std = mean_and_std(values)
    return {name: [round(one, 4) for one in values], f"{name}.mean": mean, f"{name}.std": std}


if __name__ == "__main__":
    main()
