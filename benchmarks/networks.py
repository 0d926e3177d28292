"""Networks beside each other: one short recipe, several seeds, CIFAR-10 as JPEG files.

    python benchmarks/networks.py --data DIR [--only NAME ...] [--seeds 3] [--epochs 4]

trains each network with each seed on ``DIR/train/CLASS/*.jpg``, seed 0 of all networks first. A run
has one thread: start the command once for each core, as it leaves out the runs that another process
trains. Whatever ends it, the same command goes on from the last checkpoint, as the state is in the
run directories (``runs/networks``) alone. ``--status`` prints how far they are.

``benchmarks/results/networks.json`` is written again after each run. ``--page`` writes
``docs/results.md`` and its pictures from that file, and trains nothing. Training is in fp32, so
that the processor does not decide a result.
"""

import argparse
import json
import math
import signal
import statistics
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, describe_machine

from resnet_builder.api import load_run, train
from resnet_builder.errors import BusyError, ResnetBuilderError, Stopped
from resnet_builder.reports.charts import Bar, Series, bar_chart, line_chart, standalone
from resnet_builder.reports.scale import Axis
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, MetricsRow, ResultRecord
from resnet_builder.runs.seeds import mean_and_std
from resnet_builder.runs.status import run_status
from resnet_builder.training.callbacks import Callback
from resnet_builder.training.metrics import Metrics

ROOT = Path(__file__).parent.parent
JSON = RESULTS / "networks.json"
PAGE = ROOT / "docs" / "results.md"

RECIPE = "one_cycle10"
EPOCHS, DEEP_EPOCHS = 4, 3
"""Lengths of the recipe: ResNet-20 takes seven minutes on one core without fast bf16."""

DEEP_LR = 0.1  # at the recipe's 0.4, a plain network of 56 layers may diverge

SHARED = (
    "data.augment=[{type: random_crop, padding: 4}, horizontal_flip]",
    "run.precision=fp32",
    "run.threads=1",
)
"""Changes of all specs: what may differ is the network."""

PAPER = (
    "He et al. 2015 (table 3) found B better than A by 0.51 points and C by 0.84: ResNet-34 on "
    "ImageNet, after a training many times as long."
)

Result = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A network of the comparison.

    Attributes:
        name: Name in files and tables.
        spec: Bundled spec.
        what: Difference from the others, in words.
        changes: Changes of the spec.
        is_deep: Whether it has the shorter recipe.
    """

    name: str
    spec: str
    what: str
    changes: tuple[str, ...] = ()
    is_deep: bool = False


_THREE_BLOCKS = tuple(f"model.stages.{stage}.blocks=3" for stage in range(3))
_WIDTH_2 = tuple(
    f"model.stages.{stage}.channels={width}" for stage, width in enumerate((32, 64, 128))
)

NETWORKS = (
    Network("resnet20", "resnet20", "option A: pad with zeros"),
    Network(
        "resnet20_projection",
        "resnet20",
        "option B: project where the shape changes",
        ("model.shortcut=projection",),
    ),
    Network(
        "resnet20_projection_all",
        "resnet20",
        "option C: project everywhere",
        ("model.shortcut=projection_all",),
    ),
    Network(
        "resnet20_average",
        "resnet20",
        "option A, but average where it subsamples",
        ("model.shortcut={type: pad, subsample: average}",),
    ),
    Network("plain20", "plain20", "no shortcuts"),
    Network("kj20", "kj20", "option A with the zeros at the end"),
    Network("preact20", "preact110", "pre-activated blocks, option B", _THREE_BLOCKS),
    Network("wrn16_2", "wrn16_8", "pre-activated blocks twice as wide, option B", _WIDTH_2),
    Network("plain56", "plain56", "no shortcuts, 56 layers", is_deep=True),
    Network("resnet56", "resnet56", "option A, 56 layers", is_deep=True),
)


def main() -> None:
    """Train, tell the status, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--runs", type=Path, default=Path("runs/networks"))
    parser.add_argument("--only", nargs="+", choices=[one.name for one in NETWORKS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--deep-epochs", type=int, default=DEEP_EPOCHS)
    parser.add_argument("--validation", type=int, default=5000, help="images set aside")
    parser.add_argument("--json", type=Path, default=JSON, help="file of the results")
    parser.add_argument("--status", action="store_true", help="print how far the runs are")
    parser.add_argument("--page", action="store_true", help="write docs/results.md from the JSON")
    given = parser.parse_args()
    networks = [one for one in NETWORKS if given.only is None or one.name in given.only]
    lengths = {False: given.epochs, True: given.deep_epochs}
    if given.page:
        write_page(json.loads(given.json.read_text(encoding="utf-8")), PAGE)
    elif given.status:
        show_status(given.runs, networks, lengths, given.seeds)
    elif given.data is None:
        parser.error("--data is needed to train")
    else:
        shared = (*SHARED, f"data.validation={given.validation}")
        train_all(
            given.data.resolve(), given.runs, networks, lengths, given.seeds, shared, given.json
        )


def run_directory(runs: Path, network: Network, epochs: int, seed: int) -> Path:
    """Return the directory of a run; those of another length do not count."""
    return runs / f"{network.name}-{epochs}-epochs-seed-{seed}"


def train_all(
    data: Path,
    runs: Path,
    networks: Sequence[Network],
    lengths: dict[bool, int],
    seeds: int,
    shared: Sequence[str],
    out: Path,
) -> None:
    """Train what is not trained yet, and write the JSON after each run."""
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    for seed in range(seeds):
        for network in networks:
            epochs = lengths[network.is_deep]
            path = run_directory(runs, network, epochs, seed)
            if RunDirectory(path).is_finished:
                continue
            overrides = [*network.changes, *shared, f"--epochs {epochs}", f"--seed {seed}"]
            overrides += [f"--lr {DEEP_LR}"] if network.is_deep else []
            overrides += [f"name={network.name}"]
            print(f"{network.name}, seed {seed}", flush=True)
            try:
                train(
                    network.spec,
                    path,
                    resume=True,
                    fragments=[RECIPE],
                    overrides=overrides,
                    data=data,
                    callbacks=[_Lines()],
                    should_stop=lambda: bool(signals),
                )
            except BusyError:
                print("  in use by another process", flush=True)
                continue
            except Stopped as error:
                sys.exit(f"{error}; the same command goes on from here")
            except ResnetBuilderError as error:
                sys.exit(f"{network.name}, seed {seed}: {error}")
            write_json(sum_up(runs, lengths, seeds), out)


class _Lines(Callback):
    """A line for each evaluation."""

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Print the accuracy."""
        print(f"  step {step:,}: {split} {100 * metrics.top1:.2f} %", flush=True)

    def on_warning(self, message: str) -> None:
        """Print it."""
        print(f"  {message}", flush=True)


def show_status(
    runs: Path, networks: Sequence[Network], lengths: dict[bool, int], seeds: int
) -> None:
    """Print the state of each run, in the order of the trainings."""
    for seed in range(seeds):
        for network in networks:
            path = run_directory(runs, network, lengths[network.is_deep], seed)
            told = "not begun"
            if RunDirectory(path).is_published:
                found = run_status(RunDirectory(path))
                told = f"{found.state}, step {found.step or 0:,} of {found.total_steps or 0:,}"
                if found.test_top1 is not None:
                    told = f"{found.state}, test {100 * found.test_top1:.2f} %"
            print(f"{network.name}, seed {seed}: {told}")


def sum_up(runs: Path, lengths: dict[bool, int], seeds: int) -> Result:
    """Return the results of all runs of these lengths that are finished."""
    networks = {}
    for network in NETWORKS:
        paths = [
            run_directory(runs, network, lengths[network.is_deep], seed) for seed in range(seeds)
        ]
        records = [run_record(path) for path in paths if RunDirectory(path).is_finished]
        if records:
            networks[network.name] = {
                "what": network.what,
                "epochs": lengths[network.is_deep],
                "lr": DEEP_LR if network.is_deep else None,
                **size_and_images(next(path for path in paths if RunDirectory(path).is_finished)),
                **spread("test_top1", records),
                **spread("train_top1", records),
                "seconds.median": statistics.median(one["seconds"] for one in records),
                "runs": records,
            }
    return {
        "what": "test top-1 on CIFAR-10 as JPEG files of quality 75, by one short recipe",
        "recipe": RECIPE,
        "changes": list(SHARED),
        "machine": describe_machine(),
        "networks": networks,
    }


def run_record(path: Path) -> Result:
    """Return the result of a run and its curve, from its directory."""
    run = load_run(path)
    result = run.result
    assert result is not None, "the run is finished"
    training = [row for row in run.history if row.event == "train"]
    return {
        "seed": result.seed,
        "test_top1": result.test_top1,
        "train_top1": round(training[-1].train_top1 or math.nan, 5),
        "selected_step": result.selected_step,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "device": result.device,
        "precision": result.precision,
        "versions": result.versions,
        "curve": [point(row, run.history) for row in training],
    }


def size_and_images(path: Path) -> Result:
    """Return parameters, multiply-adds and numbers of images of a run."""
    record, data = ResultRecord.read(path / "result.json"), DataRecord.read(path / "data.json")
    return {"parameters": record.parameters, "macs": record.macs, "images": data.images}


def point(row: MetricsRow, history: Sequence[MetricsRow]) -> Result:
    """Return training and validation accuracy at a step."""
    validated = (
        one.val_top1 for one in history if one.event == "validation" and one.step == row.step
    )
    return {"step": row.step, "train_top1": row.train_top1, "val_top1": next(validated, None)}


def spread(key: str, records: Sequence[Result]) -> Result:
    """Return number, mean and sample standard deviation of a value."""
    values = [one[key] for one in records]
    mean, std = mean_and_std(values)
    return {
        "n": len(values),
        f"{key}.mean": round(mean, 5),
        f"{key}.std": None if std is None else round(std, 5),
    }


def write_json(results: Result, path: Path) -> None:
    """Write the results, to be committed."""
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write_page(results: Result, path: Path) -> None:
    """Write the page of the results, and its pictures beside it."""
    path.write_text(page(results), encoding="utf-8")
    for name, picture in pictures(results).items():
        (path.parent / "images" / name).write_text(picture, encoding="utf-8")


def page(results: Result) -> str:
    """Return the page of the results, in Markdown."""
    networks = results["networks"]
    first = next(iter(networks.values()))
    images = first["images"]
    devices = sorted({run["device"] for one in networks.values() for run in one["runs"]})
    lengths = sorted({one["epochs"] for one in networks.values() if one["lr"] is None})
    deep = {name: one for name, one in networks.items() if one["lr"] is not None}
    lines = [
        "# Results: one short recipe, several networks",
        "",
        "<!-- written by: python benchmarks/networks.py --page -->",
        "",
        paragraph(
            "These accuracies can be compared with each other, and **not with those of papers**: "
            "the images are CIFAR-10 as JPEG files of quality 75, which lose detail, and the "
            "trainings are short."
        ),
        "",
        paragraph(
            f"Each network is trained by the recipe `{results['recipe']}` for "
            f"{' and '.join(map(str, lengths))} epochs on {images['train']:,} images, and "
            f"{images['val']:,} others choose the weights. The {images['test']:,} test images are "
            "read once, at the end. Data, batch size, augmentation and precision (fp32) are the "
            "same for all. The number behind ± is the standard deviation over the seeds."
        ),
        "",
        *table([one for one in networks.items() if one[0] not in deep]),
        "",
        "![Test accuracy of each network, with standard deviations](images/results.svg)",
    ]
    if told := options(networks):
        lines += ["", "## Options A, B and C", "", paragraph(told)]
    if deep:
        shorter = next(iter(deep.values()))
        lines += [
            "",
            "## Plain against residual",
            "",
            paragraph(
                "The point of [He et al. 2015](https://arxiv.org/abs/1512.03385), in "
                f"{shorter['epochs']} epochs at a learning rate of {shorter['lr']:g}. The training "
                "accuracy is that of the last epoch."
            ),
            "",
            *table(deep.items(), with_train=True),
        ]
        if told := against(networks, "resnet56", "plain56"):
            lines += ["", paragraph(told)]
        lines += ["", "![Training error of 56 layers, plain and residual](images/plain56.svg)"]
    lines += [
        "",
        "## How it was measured",
        "",
        paragraph(
            f"On {'; '.join(devices)}. The seeds, times, curves and versions of each run are in "
            "`benchmarks/results/networks.json`. To repeat it:"
        ),
        "",
        "```text",
        "python benchmarks/networks.py --data DIR",
        "python benchmarks/networks.py --page",
        "```",
        "",
    ]
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """Break a paragraph into lines."""
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def table(networks: Iterable[tuple[str, Result]], *, with_train: bool = False) -> Iterator[str]:
    """Yield the lines of a table of networks."""
    extra = " training top-1 |" if with_train else ""
    yield f"| network | what | parameters | multiply-adds | test top-1 |{extra} seeds |"
    yield f"|---|---|--:|--:|--:|{'--:|' if with_train else ''}--:|"
    for name, one in networks:
        extra = f" {percent(one, 'train_top1')} |" if with_train else ""
        yield (
            f"| `{name}` | {one['what']} | {one['parameters']:,} | {one['macs']:,} | "
            f"{percent(one, 'test_top1')} |{extra} {one['n']} |"
        )


def percent(one: Result, key: str) -> str:
    """Write a mean and its standard deviation."""
    std = one[f"{key}.std"]
    return f"{100 * one[f'{key}.mean']:.2f}{'' if std is None else f' ± {100 * std:.2f}'} %"


def options(networks: Result) -> str:
    """Write two sentences about the shortcuts that the seeds support, and what the paper found."""
    names = ("resnet20", "resnet20_projection", "resnet20_projection_all")
    if not all(name in networks and networks[name]["n"] > 1 for name in names):
        return ""
    b, c = (difference(networks, name, "resnet20") for name in names[1:])
    first = f"Beside option A, option B has {b.told} and option C has {c.told} on the test images."
    if b.is_clear and c.is_clear:
        second = "Both differences are larger than the spread over the seeds explains."
    elif b.is_clear or c.is_clear:
        clear, other = ("B", "C") if b.is_clear else ("C", "B")
        second = (
            f"The difference of option {clear} is larger than the spread over the seeds explains; "
            f"that of option {other} is not."
        )
    else:
        second = "Neither difference is larger than the spread over the seeds explains."
    return f"{first} {second} {PAPER}"


def against(networks: Result, name: str, other: str) -> str:
    """Write one sentence about two networks."""
    if not all(one in networks and networks[one]["n"] > 1 for one in (name, other)):
        return ""
    found = difference(networks, name, other)
    clear = "larger" if found.is_clear else "not larger"
    return (
        f"`{name}` has {found.told} beside `{other}` on the test images, which is {clear} than "
        "the spread over the seeds explains."
    )


@dataclass(frozen=True)
class Difference:
    """Difference of two mean accuracies.

    Attributes:
        told: The difference and its standard error, in words.
        is_clear: Whether a t-test of 95 % tells the means apart.
    """

    told: str
    is_clear: bool


T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Student's t, two-sided, by degrees of freedom."""


def difference(networks: Result, name: str, other: str) -> Difference:
    """Compare two networks by Welch's t-test."""
    ours, theirs = networks[name], networks[other]
    points = 100 * (ours["test_top1.mean"] - theirs["test_top1.mean"])
    variances = [(100 * one["test_top1.std"]) ** 2 / one["n"] for one in (ours, theirs)]
    error = math.sqrt(sum(variances))
    terms = (
        variance**2 / (one["n"] - 1)
        for variance, one in zip(variances, (ours, theirs), strict=True)
    )
    freedom = sum(variances) ** 2 / (sum(terms) or 1)
    limit = T_95.get(max(1, math.floor(freedom)), 2.306)
    told = f"{points:+.2f} points (standard error {error:.2f})"
    return Difference(told, abs(points) > limit * error)


def pictures(results: Result) -> dict[str, str]:
    """Return the pictures of the page, by name."""
    networks = results["networks"]
    bars = [
        Bar(name, *interval(one), note=f"n = {one['n']}")
        for name, one in networks.items()
        if one["lr"] is None
    ]
    low = min((bar.low or bar.value or 0 for bar in bars), default=0)
    axis = Axis("test top-1, mean and standard deviation", unit="%", limits=(math.floor(low), None))
    found = {"results.svg": standalone(bar_chart(bars, title="CIFAR-10 as JPEG", x=axis))}
    deep = {name: one for name, one in networks.items() if one["lr"] is not None}
    if deep:
        series = [error_series(name, one) for name, one in deep.items()]
        chart = line_chart(
            series,
            title="56 layers, plain and residual",
            x=Axis("epoch"),
            y=Axis("training error", unit="%"),
        )
        found["plain56.svg"] = standalone(chart)
    return found


def interval(one: Result) -> tuple[float, float | None, float | None]:
    """Return the mean test accuracy in percent, and both ends of a standard deviation."""
    mean, std = 100 * one["test_top1.mean"], one["test_top1.std"]
    if std is None:
        return round(mean, 2), None, None
    return round(mean, 2), mean - 100 * std, mean + 100 * std


def error_series(name: str, one: Result) -> Series:
    """Return the training error by epoch: the mean over the seeds, and a standard deviation."""
    curves = [run["curve"] for run in one["runs"]]
    epochs = [one["epochs"] * at["step"] / one["runs"][0]["steps"] for at in curves[0]]
    errors = [[100 - 100 * at["train_top1"] for at in rows] for rows in zip(*curves, strict=True)]
    spreads = [mean_and_std(row) for row in errors]
    low = [mean - (std or 0.0) for mean, std in spreads]
    high = [mean + (std or 0.0) for mean, std in spreads]
    return Series(name, epochs, [mean for mean, _ in spreads], low, high)


if __name__ == "__main__":
    main()
