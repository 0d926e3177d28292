"""Pictures of README and docs that a training gives; ``python docs/pictures.py`` makes them again.

The curves are of ``benchmarks/shortcuts.py``. The photograph of a report needs Chromium; its run
stays in ``build/pictures``, so a second call trains nothing.
"""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_builder import train
from resnet_builder.reports.charts import Axis, Series, line_chart, standalone
from resnet_builder.reports.page import write_report

DOCS = Path(__file__).resolve().parent
WORK = DOCS.parent / "build" / "pictures"
PICTURES = DOCS / "images"
WIDTH, HEIGHT = 1040, 1005


def draw_plain_and_residual() -> None:
    """Draw the curves of benchmarks/shortcuts.py: mean and standard deviation over seeds."""
    [result] = (DOCS.parent / "benchmarks" / "results").glob("*/shortcuts.json")
    networks = json.loads(result.read_text(encoding="utf-8"))["networks"]
    series = []
    for name in (
        "plain, 56 layers",
        "plain, 20 layers",
        "residual, 56 layers",
        "residual, 20 layers",
    ):
        mean, std = (
            100 * np.array(networks[name][f"val_error.{which}"]) for which in ("mean", "std")
        )
        series.append(Series(name, networks[name]["epochs"], mean, mean - std, mean + std))
    chart = line_chart(
        series,
        title="Handwritten digits: plain and residual networks",
        x=Axis("epoch"),
        y=Axis("validation error", unit="%", limits=(0, 100)),
        width=640,
        height=320,
    )
    text = standalone(chart)
    (PICTURES / "plain_and_residual.svg").write_text(text, encoding="utf-8")


def photograph_report() -> None:
    """Photograph the top of a report, as a browser shows it in light and in dark."""
    run = Path("runs", "digits")
    WORK.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(WORK):  # the page names its run as the current folder sees it
        train("resnet20_digits", run, resume=True)
        write_report([run], WORK / "report.html")
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chrome"
    for theme, number in (("light", 1), ("dark", 0)):
        picture = WORK / f"{theme}.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += [
            f"--blink-settings=preferredColorScheme={number}",
            "--force-device-scale-factor=2",
        ]
        flags += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}"]
        page = (WORK / "report.html").as_uri()
        subprocess.run([browser, *flags, page], check=True, capture_output=True)
        with Image.open(picture) as image:
            small = image.convert("RGB").resize((WIDTH * 3 // 2, HEIGHT * 3 // 2), Image.LANCZOS)
            small.save(PICTURES / f"report_{theme}.webp", quality=80, method=6)


if __name__ == "__main__":
    draw_plain_and_residual()
    photograph_report()
