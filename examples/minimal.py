"""Train a network from a spec with a loop of your own.

    python examples/minimal.py [SPEC]

Network and dataset come from the spec; the loop is plain PyTorch. Copy this file and change it.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.builder import build, load_experiment
from resnet_builder.data.splits import DataSplits, load_data

EPOCHS, BATCH_SIZE, SEED = 3, 64, 0


def main() -> None:
    """Train, and print the test accuracy after each epoch."""
    experiment = load_experiment(sys.argv[1] if len(sys.argv) > 1 else "resnet20_digits")
    model = build(experiment, seed=SEED)
    data = load_data(experiment)
    images, labels = tensors(data, "train")
    steps = EPOCHS * (len(labels) // BATCH_SIZE)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(SEED)
    for epoch in range(EPOCHS):
        model.train()
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = evaluate(model, *tensors(data, "test"))
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test accuracy {accuracy:.2%}")


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images whose class is predicted."""
    predictions = [model.eval()(part).argmax(1) for part in images.split(512)]
    return (torch.cat(predictions) == labels).float().mean().item()


def tensors(data: DataSplits, split: str) -> tuple[Tensor, Tensor]:
    """Return the images of a split, normalised, and their labels."""
    source = getattr(data, split)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    [images] = source.read([torch.arange(len(source))])
    return (images.float() / 255 - mean) / std, source.labels


if __name__ == "__main__":
    main()
