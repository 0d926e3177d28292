"""Tables of results in README and docs, from the files that the benchmarks write.

    python benchmarks/tables.py [FILE ...]

writes every table anew that stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` in these
files, or in README and the pages of docs that have one. With ``--show`` the tables are printed.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import PROCESSORS, RESULTS

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    ROOT / page
    for page in (
        *("README.md", "docs/reference/benchmarks.md", "docs/how-to/own-images.md"),
        "docs/tutorials/why-residual.md",
    )
)

Result = dict[str, Any]
Row = tuple[str, ...]

_BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the tables anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--show", action="store_true", help="print all tables, and write nothing")
    given = parser.parse_args()
    if given.show:
        for name in TABLES:
            with suppress(FileNotFoundError, KeyError):  # nothing was measured yet
                print(refreshed(f"<!-- table: {name} -->\n<!-- end -->\n"))
        return
    for path in given.files:
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")


def refreshed(text: str) -> str:
    """Return a text with its tables as the results are now.

    Raises:
        KeyError: It asks for a table that there is not.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}{found[3]}", text)


def table(header: Row, rows: Iterable[Row], *, left: int = 1) -> str:
    """Write a table in Markdown; the columns but the first few hold numbers."""
    rule = ["---" if column < left else "--:" for column in range(len(header))]
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|"]
    return "".join(f"{line}\n" for line in [*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def found(pattern: str) -> Iterator[tuple[str, Result]]:
    """Yield results whose files are called so, and what stands for the star, in natural order."""
    before = Path(pattern).name.partition("*")[0]

    def natural(path: Path) -> list[Any]:
        parts = re.split(r"(\d+)", path.stem)
        return [int(part) if part.isdigit() else part for part in parts]

    for path in sorted(RESULTS.glob(f"{pattern}.json"), key=natural):
        yield path.stem.removeprefix(before), json.loads(path.read_text(encoding="utf-8"))


def measured(pattern: str) -> Iterator[tuple[str, str, Result]]:
    """Yield what was measured on each kind of processor: the kind, the star, and the result."""
    for kind, folder in PROCESSORS.items():
        for name, result in found(f"{folder}/{pattern}"):
            yield kind, name, result


def recipes() -> str:
    """Time to accuracy of the bundled recipes, beside the paper's recipe in the stock loop."""
    header = (
        "recipe",
        "processor",
        "test top-1",
        "seeds",
        "points from the paper's recipe",
        "seconds",
        "speed-up over the paper's recipe in the stock loop",
    )
    results = [(kind, one) for kind, _, one in measured("*/summary")]
    rows = (
        (
            f"`{one['recipe']}`",
            kind,
            top1(one),
            f"{one['n']}",
            f"{one['points_above_the_paper']:+.2f}",
            f"{one['wall_seconds.median']:,.0f}",
            f"{one['speed_up.median']:.1f}",
        )
        for kind, one in sorted(results, key=lambda result: result[1]["recipe"])
    )
    return table(header, rows, left=2)


def training() -> str:
    """Training against the stock loops: images per second and speed-up."""
    header = (
        "processor",
        "network",
        "resnet-builder",
        "stock",
        "tuned stock",
        "speed-up over both",
    )
    return table(header, (_training(*one) for one in measured("throughput_*")), left=2)


def _training(kind: str, name: str, result: Result) -> Row:
    contenders = result["contenders"]
    rates = [
        rate(contenders[each]["images_per_second.median"]) if each in contenders else ""
        for each in ("ours", "stock", "tuned stock")
    ]
    over = ", ".join(
        f"{result['speed_up_of_ours'][each]:.2f}"
        for each in ("stock", "tuned stock")
        if each in result["speed_up_of_ours"]
    )
    return (kind, f"`{name}`", *rates, over)


def evaluation() -> str:
    """Evaluation against the usual script."""
    header = (
        "processor",
        "network",
        "usual script",
        "resnet-builder, fp32",
        "resnet-builder, bf16",
        "speed-up",
        "changed predictions",
    )
    return table(header, (_evaluation(*one) for one in measured("evaluation_*")), left=2)


def _evaluation(kind: str, name: str, result: Result) -> Row:
    ways = ("ours, fp32", "ours, bf16")
    rates = [rate(result["images_per_second"][way]) for way in ("baseline", *ways)]
    over = ", ".join(f"{result['speed-up'][way]:.2f}" for way in ways)
    changed = ", ".join(f"{result['changed predictions'][way]}" for way in ways)
    return (kind, f"`{name}`", *rates, over, f"{changed} of {result['images']:,}")


def own_images() -> str:
    """Few images of two classes: our recipe beside torchvision's."""
    header = ("processor", "network", "training images", "epochs", "recipe", "test top-1")
    rows = (row for kind, _, one in measured("own_images") for row in _own_images(kind, one))
    return table(header, rows, left=5)


def _own_images(kind: str, result: Result) -> Iterator[Row]:
    for name, figures in result["recipes"].items():
        accuracy = mean_and_std(figures, "test_top1")
        images, epochs = f"{result['images']['train']:,}", f"{result['epochs']}"
        yield (kind, f"`{result['network']}`", images, epochs, name, accuracy)


def plain_and_residual() -> str:
    """Plain and residual networks on the digits."""
    networks = _one("shortcuts")["networks"]
    header = ("network", "layers", "accuracy on the training images", "top-1 on the test images")
    return table(
        header,
        (
            (
                kind,
                layers,
                mean_and_std(networks[f"{kind}, {layers} layers"], "train_top1"),
                mean_and_std(networks[f"{kind}, {layers} layers"], "test_top1"),
            )
            for kind in ("plain", "residual")
            for layers in ("20", "56")
        ),
    )


def options() -> str:
    """Options A, B and C on the digits."""
    networks = _one("shortcuts")["networks"]
    shortcuts = {"A": "pad", "B": "projection", "C": "projection_all"}
    rows = (
        (
            option,
            f"`{name}`",
            mean_and_std(
                networks[f"{'residual' if name == 'pad' else name}, 20 layers"], "test_top1"
            ),
        )
        for option, name in shortcuts.items()
    )
    return table(("option", "shortcut", "top-1 on the test images"), rows, left=2)


def convolutions() -> str:
    """Convolution kernels of training against torch's."""
    header = (
        "processor",
        "part of a convolution",
        "speed-up: least",
        "median",
        "most",
        "error, median",
        "torch's error",
    )
    rows = (row for kind, _, one in measured("convolutions") for row in _convolutions(kind, one))
    return table(header, rows, left=2)


def _convolutions(kind: str, result: Result) -> Iterator[Row]:
    for part, faster in result["speed-up"].items():
        ratios = [f"{faster[which]:.2f}" for which in ("least", "median", "most")]
        each = [one[part] for one in result["each"].values() if part in one]
        errors = [
            f"{statistics.median(one[whose] for one in each):.1e}"
            for whose in ("kernel error", "torch error")
        ]
        yield (kind, part, *ratios, *errors)


def gradients() -> str:
    """Relative error of a step's gradient in bf16, and its distance from the next batch's."""
    header = ("processor", "network", "bf16, torch", "bf16, CPU kernels", "next batch")
    return table(header, (_gradients(*one) for one in measured("gradient_error_*")), left=2)


def _gradients(kind: str, name: str, result: Result) -> Row:
    return (kind, f"`{name}`", *(f"{one:.3f}" for one in result["distance"].values()))


def busy() -> str:
    """Training beside busy processes, against fixed ways to use the cores."""
    header = (
        "processor",
        "spec",
        "busy processes",
        "resnet-builder",
        "spinning threads",
        "sleeping threads",
        "one thread",
        "plain loop",
        "share of the best fixed",
    )
    rows = (row for kind, _, one in measured("busy") for row in _busy(kind, one))
    return table(header, rows, left=2)


def _busy(kind: str, result: Result) -> Iterator[Row]:
    for spec, loads in result["specs"].items():
        for load, figures in loads.items():
            rates = figures["images_per_second"]
            ways = ("ours", "spinning threads", "sleeping threads", "one thread", "plain loop")
            share = f"{figures['share_of_best_fixed']:.2f}"
            yield (kind, f"`{spec}`", load.split()[0], *(rate(rates[way]) for way in ways), share)


def memory() -> str:
    """Memory that training steps add to the process, against the stock loop."""
    header = ("processor", "network", "resnet-builder, MiB", "stock, MiB", "ratio")
    return table(header, (_memory(*one) for one in measured("memory_*")), left=2)


def _memory(kind: str, name: str, result: Result) -> Row:
    added = [f"{result['mib'][who]['added by steps']:,.0f}" for who in ("ours", "stock")]
    return (kind, f"`{name}`", *added, f"{result['ratio of what the steps add']:.2f}")


def ablation(result: Result | None = None) -> str:
    """Ablation of training's speed; that of ResNet-20 by default."""
    if result is None:
        result = _one("ablation_resnet20")
    header = (
        "",
        "ingredient",
        "images/s",
        "quartiles",
        "speed-up over the row above",
        "over stock",
    )
    return table(header, _ablation(result), left=2)


def _ablation(result: Result) -> Iterator[Row]:
    above, stock = result["speed-up over the row above"], result["speed-up over stock"]
    for name, row in result["rows"].items():
        low, high = map(rate, row["quartiles"])
        median = rate(row["images_per_second.median"])
        first = name not in above
        label = name if first or name == "train" else f"+ {name}"
        more = "" if first else f"{above[name]:.2f}"
        yield (label, row["what"], median, f"{low} to {high}", more, f"{stock[name]:.2f}")


def startup() -> str:
    """Start-up time, and the memory that the process holds at most."""
    rows = _one("startup")["starts"].items()
    return table(("", "seconds", "MiB"), (_timed(f"`{name}`", one) for name, one in rows))


def builds() -> str:
    """Time to build networks, and the memory that the process holds at most."""
    rows = _one("startup")["builds"].items()
    return table(("spec", "seconds", "MiB"), (_timed(f"`{name}`", one) for name, one in rows))


def _timed(name: str, figures: dict[str, float]) -> Row:
    return (name, f"{figures['seconds']:.2f}", f"{figures['mib']:,.0f}")


def cost() -> str:
    """Cost of a step of ResNet-20, changed in one way at a time."""
    header = ("changed", "value", "ms per step", "images/s", "MiB added by steps")
    return table(header, _cost(_one("step_cost")))


def _cost(result: Result) -> Iterator[Row]:
    for axis, points in result["axes"].items():
        for point in points:
            yield (
                axis,
                f"{point['value']:,}",
                f"{1000 * point['seconds_per_step']:,.0f}",
                rate(point["images_per_second"]),
                f"{point['mib_added_by_steps']:,.0f}",
            )


def _one(name: str) -> Result:
    """Return a result, of the first kind of processor that it was measured on if it hangs on it."""
    for folder in (".", *PROCESSORS.values()):
        for _, result in found(f"{folder}/{name}"):
            return result
    raise FileNotFoundError(name)


def top1(result: Result) -> str:
    """Write the mean of some seeds, and if there are several, their standard deviation."""
    std = result["test.top1.std"]
    spread = "" if std is None else f" ± {100 * std:.2f}"
    return f"{100 * result['test.top1.mean']:.2f}{spread} %"


def mean_and_std(figures: Result, name: str) -> str:
    """Write the mean of a fraction over seeds and its deviation, in percent."""
    mean, deviation = (100 * figures[f"{name}.{which}"] for which in ("mean", "std"))
    return f"{mean:.1f} ± {deviation:.1f} %"


def rate(images_per_second: float) -> str:
    """Write a rate in at least three figures."""
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.1f}"


TABLES: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (
        recipes,
        training,
        convolutions,
        gradients,
        evaluation,
        busy,
        memory,
        ablation,
        startup,
        builds,
        cost,
        own_images,
        plain_and_residual,
        options,
    )
}
"""What may stand in a file, by name."""


if __name__ == "__main__":
    main()
