"""Pictures of README and docs that a training gives; ``python docs/pictures.py`` makes them again.

The runs stay in ``build/pictures``, so a second call trains nothing. The photograph of a report
needs Chromium.
"""

import contextlib
import re
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
SEEDS = range(5)
WIDTH, HEIGHT = 1040, 1005
NETWORKS = (
    ("plain, 56 layers", "small56.yaml", "none"),
    ("plain, 20 layers", "small20.yaml", "none"),
    ("residual, 56 layers", "small56.yaml", "pad"),
    ("residual, 20 layers", "small20.yaml", "pad"),
)


def draw_plain_and_residual() -> None:
    """Draw the validation error of the networks of why-residual.md: mean and deviation of seeds."""
    page = (DOCS / "tutorials" / "why-residual.md").read_text(encoding="utf-8")
    specs = re.findall(r"^```yaml\n(name: (\w+)\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    WORK.mkdir(parents=True, exist_ok=True)
    for text, name in specs:
        (WORK / f"{name}.yaml").write_text(text, encoding="utf-8")
    series = []
    for name, spec, shortcut in NETWORKS:
        errors = []
        for seed in SEEDS:
            out = WORK / f"{Path(spec).stem}-{shortcut}-{seed}"
            overrides = [f"model.shortcut={shortcut}", f"train.seed={seed}", "run.threads=1"]
            run = train(WORK / spec, out, overrides=overrides, resume=True)
            rows = [row for row in run.history if row.val_top1 is not None]
            errors.append([100 - 100 * row.val_top1 for row in rows])
        mean, deviation = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1)
        epochs = [row.epoch for row in rows]
        series.append(Series(name, epochs, mean, mean - deviation, mean + deviation))
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
