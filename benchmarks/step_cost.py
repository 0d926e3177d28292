"""Cost of a training step against depth, width, batch size and image size.

    python benchmarks/step_cost.py [--seconds 20] [--draw]

writes ``benchmarks/results/KIND/step_cost.json`` and draws ``docs/reference/cost.svg``; ``--draw``
draws what was measured before. Each point is ``resnet-build train`` of ResNet-20, changed in one
way, in a process of its own. Linux only, as ``memory.py``.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import describe_machine, own_results, write
from interleaved import HERE, Contender, train_command
from memory import peaks

from resnet_builder import load_spec

DRAWING = HERE.parent / "docs" / "reference" / "cost.svg"
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
    "batch": "images per step",
    "image size": "pixels per side",
}


def main() -> None:
    """Measure every point, write them, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for each point")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    given = parser.parse_args()
    path = own_results() / "step_cost.json"
    if not given.draw:
        report = {
            "what": f"seconds and MiB of training steps of {BASE}, changed in one way at a time",
            "machine": describe_machine(),
            "seconds": given.seconds,
            "axes": {
                axis: [measure(axis, value, given.seconds) for value in AXES[axis]]
                for axis in given.axes
            },
        }
        write(path, report)
    draw(json.loads(path.read_text()), DRAWING)


def measure(axis: str, value: int, seconds: float) -> dict[str, float]:
    """Measure a point: the speed, and then the memory."""
    name, settings = changed(axis, value)
    spec = load_spec(name, overrides=settings)
    assert spec.train is not None
    with tempfile.TemporaryDirectory() as folder:
        command = train_command(spec, name, settings)
        contender = Contender(f"{axis} {value}", command, HERE.parent, Path(folder))
        contender.take_turn(seconds)
        contender.end()
    rate = contender.rates[0]
    return {
        "value": value,
        "seconds_per_step": round(spec.train.batch_size / rate, 4),
        "images_per_second": round(rate, 1),
        "mib_added_by_steps": peaks("ours", name, settings)["added by steps"],
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
        panel.set(xlabel=LABELS[axis], ylabel="ms per step", title=axis, ylim=(0, None))
        right = panel.twinx()
        right.plot(values, [point["mib_added_by_steps"] for point in points], "s--", color="C1")
        right.set(ylim=(0, None))
        right.set_ylabel("MiB added by steps", color="C1")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
