"""Fine-tune a network of ten digits for five, from few pictures, and write what came of it.

    python benchmarks/fine_tune.py

trains the bundled ``resnet20_digits``, writes 20 pictures of each digit below five as PNG files,
and trains networks for them through the command line: from the file of weights with more and less
of it frozen, and from random weights. They are tested on pictures that none of them, nor the first
network, was trained on. The file is ``benchmarks/results/fine_tune.json``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from common import RESULTS, describe_machine, write
from PIL import Image

from resnet_builder.builder import build, read_spec
from resnet_builder.data.interfaces import ImageSource
from resnet_builder.data.loader import evaluation_batches
from resnet_builder.data.splits import load_data
from resnet_builder.model import sections
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.finetune import freeze
from resnet_builder.weights.file import read_tensors

BODY = "resnet20_digits"
CLASSES = 5
PICTURES = 20

SPEC = """\
extends: resnet20_digits
model: {num_classes: 5, image_size: 8, weights: {path: body/best.safetensors, new_head: true}}
data: {dataset: {type: image_folder, path: pictures, channels: 1}, validation: 0}
train: {epochs: 20, batch_size: 20, optimizer: {lr: 0.02}}
"""
WAYS: dict[str, tuple[str, ...]] = {
    "random weights": ("model.weights=null", "train.optimizer.lr=0.1"),
    "all trained": (),
    "stem to layer2 frozen": ("train.freeze=[stem, layer1, layer2]",),
    "all but the head frozen": ("train.freeze=[stem, layer1, layer2, layer3]",),
    "head ten times as fast": ("train.head_lr_multiplier=10.0",),
}


def main() -> None:
    """Train everything, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    # Other seeds than the body's, whose first head would begin with the same numbers.
    seeds = range(1, given.seeds + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = train(folder, BODY, folder / "body")
        counts = write_pictures(folder / "pictures")
        (folder / "five.yaml").write_text(SPEC)
        report = {
            "what": f"{BODY}, fine-tuned for the digits below five",
            "note": given.note,
            "machine": describe_machine(),
            "threads": torch.get_num_threads(),
            "pictures": counts,
            "body": {key: body[key] for key in ("test.top1", "seconds")},
            "seeds": list(seeds),
            "before.test.top1": [test_before_training(folder, seed) for seed in seeds],
            "ways": {way: fine_tune(folder, way, seeds) for way in WAYS},
            "passes": pass_seconds(),
        }
    write(RESULTS / "fine_tune.json", report)


def train(folder: Path, spec: str, out: Path, *overrides: str) -> dict[str, float]:
    """Train once through the command line, and return the result's record."""
    command = [sys.executable, "-m", "resnet_builder", "train", spec, "--out", str(out), "--json"]
    command += ["--data-dir", str(folder)]
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    record: dict[str, float] = json.loads(done.stdout)
    return record


def write_pictures(root: Path) -> dict[str, int]:
    """Write the few pictures to train on and all to test on, as the body's data are divided."""
    splits = load_data(read_spec(BODY))
    assert splits.test is not None
    return {
        "train": _write(splits.train, root / "train", most=PICTURES),
        "test": _write(splits.test, root / "test"),
    }


def _write(source: ImageSource, folder: Path, most: int | None = None) -> int:
    count = 0
    for label in range(CLASSES):
        indices = (source.labels == label).nonzero().flatten()[:most]
        place = folder / str(label)
        place.mkdir(parents=True)
        [images] = source.read([indices])
        for number, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(place / f"{number:03d}.png")
        count += len(images)
    return count


def test_before_training(folder: Path, seed: int) -> float:
    """Return the test top-1 of the body under a head that has learnt nothing."""
    spec = read_spec(folder / "five.yaml")
    splits = load_data(spec, data_dir=folder)
    assert splits.test is not None
    batches = evaluation_batches(
        splits.test,
        batch_size=128,
        mean=splits.mean,
        std=splits.std,
        device=torch.device("cpu"),
    )
    return round(evaluate(build(spec, seed=seed), batches).top1, 5)


def fine_tune(folder: Path, way: str, seeds: Iterable[int]) -> dict[str, object]:
    """Train in one way, with some seeds, and compare what should be frozen with the body."""
    records = []
    for seed in seeds:
        out = folder / f"{way} {seed}"
        overrides = (*WAYS[way], f"train.seed={seed}")
        records.append(train(folder, "./five.yaml", out, *overrides))
    top1 = [record["test.top1"] for record in records]
    return {
        "set": WAYS[way],
        "test.top1": [round(value, 5) for value in top1],
        "test.top1.mean": round(statistics.mean(top1), 5),
        "seconds.median": round(statistics.median(record["seconds"] for record in records), 2),
        "tensors": compare(folder, way),
    }


def compare(folder: Path, way: str) -> dict[str, int]:
    """Count the tensors of the first seed's weights that are the body's, bit for bit."""
    body, _ = read_tensors(folder / "body" / "best.safetensors")
    tuned, _ = read_tensors(folder / f"{way} 1" / "best.safetensors")
    spec = read_spec(folder / "five.yaml", overrides=WAYS[way])
    assert spec.train is not None
    layers = sections(build(spec, pretrained=False))
    frozen = tuple(f"{layer}." for name in spec.train.freeze for layer in layers[name])
    equal = {name for name in body if body[name].numpy().tobytes() == tuned[name].numpy().tobytes()}
    should = {name for name in body if name.startswith(frozen)}
    return {"all": len(body), "frozen": len(should), "frozen and bit-equal": len(should & equal)}


def pass_seconds() -> dict[str, object]:
    """Time forward and backward passes with and without frozen layers, alternating."""
    ways = {"all trained": [], "stem to layer2 frozen": ["stem", "layer1", "layer2"]}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(5):
        for way, names in ways.items():
            times[way].append(_passes(names))
    medians = {way: round(statistics.median(values), 4) for way, values in times.items()}
    return {
        "what": "processor seconds, forward and backward, resnet20, 64 images, fp32, median of 5",
        **medians,
        "ratio": round(medians["stem to layer2 frozen"] / medians["all trained"], 3),
    }


def _passes(names: list[str], count: int = 4) -> float:
    """Return the processor seconds of a pass there and back, the first one left out."""
    model = build(read_spec("resnet20"), seed=0).train()
    freeze(model, names)
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    started = 0.0
    for number in range(count + 1):
        if number == 1:
            started = time.process_time()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    return (time.process_time() - started) / count


if __name__ == "__main__":
    main()
