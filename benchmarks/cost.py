"""What a training step costs against depth, width, batch and image size.

    python benchmarks/cost.py [--seconds 20] [--draw]

writes ``benchmarks/results/KIND/cost.json`` and draws ``docs/cost.svg``; ``--draw`` draws what was
measured before. Each point is a process of its own that trains ResNet-20, changed in one way, as
``resnet-build train`` does. Linux only: elsewhere a process does not know the most memory it held.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import describe_machine, own_results, write
from resnet_builder.bench.endless import endless
from resnet_builder.bench.turns import train_in_turns

from resnet_builder.builder import read_spec
from resnet_builder.data.interfaces import never
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.training.runtime import set_backend_flags

DRAWING = Path(__file__).parent.parent / "docs" / "cost.svg"
ROUNDS = 3
BASE = "resnet20"

AXES: dict[str, tuple[int, ...]] = {
    "depth": (20, 32, 44, 56, 110),
    "width": (1, 2, 4),
    "batch": (32, 64, 128, 256, 512, 1024),
    "image size": (16, 32, 48, 64),
}
LABELS = {
    "depth": "layers",
    "width": "times ResNet-20's channels",
    "batch": "images a step",
    "image size": "pixels a side",
}


def main() -> None:
    """Measure every point, write them, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for each point")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--point", nargs=2, metavar=("AXIS", "VALUE"), help="be this point")
    given = parser.parse_args()
    path = own_results() / "cost.json"
    if given.point is not None:
        axis, value = given.point
        print(json.dumps(measured(axis, int(value), given.seconds)))
        return
    if not given.draw:
        report = {
            "what": f"seconds and MiB of training steps of {BASE}, changed in one way at a time",
            "machine": describe_machine(),
            "seconds": given.seconds,
            "axes": {
                axis: [point(axis, value, given.seconds) for value in AXES[axis]]
                for axis in given.axes
            },
        }
        write(path, report)
    draw(json.loads(path.read_text()), DRAWING)


def point(axis: str, value: int, seconds: float) -> dict[str, float]:
    """Measure a point in a process of its own."""
    command = [sys.executable, __file__, "--point", axis, str(value), "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return {"value": value, **found}


def measured(axis: str, value: int, seconds: float) -> dict[str, float]:
    """Be a point."""
    set_backend_flags(threads=None)
    name, overrides = changed(axis, value)
    spec = read_spec(name, overrides=overrides)
    assert spec.train is not None
    turns = train_in_turns(
        endless(spec, batch_size=spec.train.batch_size, accumulate=1),
        rounds=ROUNDS,
        seconds=seconds / ROUNDS,
        interlude=alone,
        warn=lambda _message: None,
        stop=never,
    )
    assert turns.peak is not None
    step = statistics.median(turns.seconds_per_step)
    return {
        "seconds_per_step": round(step, 4),
        "images_per_second": round(spec.train.batch_size / step, 1),
        "mib_added_by_steps": round((turns.peak.bytes - turns.peak.before) / 2**20, 1),
    }


def changed(axis: str, value: int) -> tuple[str, list[str]]:
    """Return a bundled spec and what to change of it."""
    if axis == "depth":
        return f"resnet{value}", []
    if axis == "batch":
        return BASE, [f"train.batch_size={value}"]
    if axis == "image size":
        data = f"data.dataset={{type: synthetic, image_size: {value}, train: 6000}}"
        return BASE, [data, f"model.image_size={value}"]
    widths = [f"model.stages.{stage}.channels={16 * 2**stage * value}" for stage in range(3)]
    return BASE, [f"model.stem.channels={16 * value}", *widths]


def alone(_choices: RuntimeConfig) -> Any:
    """Let nothing happen between turns."""
    return lambda: None


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the points: time on the left axis, memory on the right."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cost"  # or every drawing would have ids of its own
    from matplotlib import pyplot

    axes = report["axes"]
    figure, panels = pyplot.subplots(
        1, len(axes), figsize=(3.2 * len(axes), 2.8), squeeze=False, layout="constrained"
    )
    for panel, (axis, points) in zip(panels[0], axes.items(), strict=True):
        values = [point["value"] for point in points]
        panel.plot(values, [1000 * point["seconds_per_step"] for point in points], "o-")
        panel.set(xlabel=LABELS[axis], ylabel="ms a step", title=axis, ylim=(0, None))
        right = panel.twinx()
        right.plot(values, [point["mib_added_by_steps"] for point in points], "s--", color="C1")
        right.set(ylim=(0, None))
        right.set_ylabel("MiB added by steps", color="C1")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
