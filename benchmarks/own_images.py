"""Few images of one's own: the recipe ``small_data`` beside torchvision's reference recipe.

    python benchmarks/own_images.py DATA [--classes cat dog] [--images 200] [--epochs 30]

DATA holds ``train/CLASS/...`` and ``test/CLASS/...``. The first images of two classes are trained
on, all of their test images are tested, with the same network, in as many epochs. Writes
``benchmarks/results/KIND/own_images.json``.

torchvision's recipe is that of ``references/classification/train.py`` with its defaults, at the
size of the network's images: SGD at 0.1, momentum 0.9, weight decay 1e-4, batches of 32, a tenth of
the rate after 30 epochs; random resized crops and flips; ImageNet's mean and deviation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from common import describe_machine, own_results, write
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnet_builder import build_from_spec
from resnet_builder.model import ResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 32


def main() -> None:
    """Train by both recipes with each seed, and write the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--classes", nargs="+", default=["cat", "dog"])
    parser.add_argument("--images", type=int, default=200, help="training images of each class")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", default="resnet20")
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"small_data": [], "torchvision": []}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "my_images")
        counts = link_images(given.data, images, given.classes, given.images)
        for seed in range(given.seeds):
            out = Path(folder, f"run-{seed}")
            runs["small_data"].append(train_ours(given.network, images, given.epochs, seed, out))
            runs["torchvision"].append(
                train_reference(given.network, images, given.epochs, seed, len(given.classes))
            )
    write(
        own_results() / "own_images.json",
        {
            "what": "top-1 on the test images, after training on few images of two classes",
            "network": given.network,
            "classes": given.classes,
            "images": counts,
            "epochs": given.epochs,
            "machine": describe_machine(),
            "recipes": {name: summarized(each) for name, each in runs.items()},
        },
    )


def link_images(data: Path, folder: Path, classes: list[str], count: int) -> dict[str, int]:
    """Link the first training images of some classes, and all their test images."""
    counts = {}
    for split, most in (("train", count), ("test", None)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for image in sorted((data / split / name).iterdir())[:most]:
                os.symlink(image.resolve(), folder / split / name / image.name)
        counts[split] = len(list((folder / split).glob("*/*")))
    return counts


def train_ours(network: str, images: Path, epochs: int, seed: int, out: Path) -> dict[str, float]:
    """Train with the line of the documentation; a tenth of the images is set aside."""
    command = [sys.executable, "-m", "resnet_builder", "train", network, "--data", str(images)]
    command += ["--with", "small_data", "--set", f"train.epochs={epochs}", "--json"]
    command += ["--set", f"train.seed={seed}", "--out", str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    return {"test_top1": result["test.top1"], "seconds": round(result["seconds"], 1)}


def train_reference(
    network: str, images: Path, epochs: int, seed: int, classes: int
) -> dict[str, float]:
    """Train with torchvision's reference recipe in a plain loop."""
    torch.manual_seed(seed)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augment = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    # 256 and 224 pixels of the reference, at the network's size
    prepare = [v2.Resize(SIZE * 256 // 224, antialias=True), v2.CenterCrop(SIZE)]
    train = ImageFolder(images / "train", v2.Compose([*augment, *to_tensor]))
    test = ImageFolder(images / "test", v2.Compose([*prepare, *to_tensor]))
    changes = ["data=null", f"model.num_classes={classes}"]
    model = build_from_spec(network, seed=seed, overrides=changes)
    assert isinstance(model, ResNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    loss_of = nn.CrossEntropyLoss()
    started = perf_counter()
    for _ in range(epochs):
        model.train()
        for batch, labels in DataLoader(train, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss = loss_of(model(batch), labels)
            loss.backward()
            optimizer.step()
        schedule.step()
    seconds = perf_counter() - started
    model.eval()
    correct = 0
    with torch.inference_mode():
        for batch, labels in DataLoader(test, batch_size=128):
            correct += int((model(batch).argmax(1) == labels).sum())
    return {"test_top1": correct / len(test), "seconds": round(seconds, 1)}


def summarized(runs: list[dict[str, float]]) -> dict[str, object]:
    """Add mean and standard deviation to the results of each seed."""
    accuracies = [run["test_top1"] for run in runs]
    return {
        "runs": runs,
        "test_top1.mean": round(statistics.mean(accuracies), 4),
        "test_top1.std": round(statistics.stdev(accuracies), 4) if len(runs) > 1 else 0.0,
        "seconds.median": statistics.median(run["seconds"] for run in runs),
    }


if __name__ == "__main__":
    main()
