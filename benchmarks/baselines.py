"""Baselines: the training and evaluation loops of the usual CIFAR scripts.

Both training loops augment image by image through PIL in a ``DataLoader``. *Stock* computes in
fp32 as PyTorch does by default; *tuned stock* has channels-last memory, bf16 autocast and
``torch.compile``. The network is this package's, so that only the loop differs.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resnet_builder.spec.section import height_and_width

Pixels = npt.NDArray[np.uint8]
Transform = Callable[[Image.Image], Tensor]

IMAGES = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images in memory as pixels, each transformed through PIL when it is asked for."""

    def __init__(self, pixels: Pixels, labels: Sequence[int], transform: Transform) -> None:
        self._pixels = pixels
        self._labels = labels
        self._transform = transform

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._pixels[index].squeeze())  # grey ones have no axis of channels
        return self._transform(image), self._labels[index]


def random_images(size: int | tuple[int, int]) -> PilImages:
    """Return as many random images as CIFAR-10 has for training, augmented as it usually is."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, *height_and_width(size), 3), dtype=np.uint8)
    augment = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return PilImages(pixels, generator.integers(0, 10, IMAGES).tolist(), augment)


def train(
    network: nn.Module, *, size: int | tuple[int, int], batch_size: int, tuned: bool
) -> NoReturn:
    """Train without end; a hook of the optimizer counts the steps.

    Args:
        network: Network to train.
        size: Height and width of an image, as `model.image_size`.
        batch_size: Images of a step.
        tuned: Whether to use channels-last memory, bf16 and a compiler.
    """
    dataset = random_images(size)
    forward: Callable[[Tensor], Tensor] = network.train()
    if tuned:
        network.to(memory_format=torch.channels_last)
        forward = torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for images, labels in _batches(dataset, batch_size, _workers(dataset, batch_size)):
        if tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            logits = forward(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # printed or averaged by every such script
    raise AssertionError("the batches never end")


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
) -> float:
    """Return the top-1 accuracy in fp32, with images transformed one by one through PIL.

    Args:
        network: Network to evaluate.
        images: ``(N, 3, H, W)`` uint8.
        labels: ``(N,)`` int64.
        mean: Mean of each channel, in units where white is 1.
        std: Standard deviation of each channel, in the same units.
        batch_size: Images of a batch.
    """
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    loader = DataLoader(PilImages(pixels, labels.tolist(), transform), batch_size)
    network.eval()
    num_correct = sum(int((network(batch).argmax(1) == targets).sum()) for batch, targets in loader)
    return num_correct / len(images)


def _batches(dataset: PilImages, size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        dataset,
        size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def _workers(dataset: PilImages, batch_size: int) -> int:
    """Return the faster number of worker processes, none or two."""
    rates = {}
    for workers in (0, 2):
        batches = _batches(dataset, batch_size, workers)
        next(batches)
        started = time.perf_counter()
        for _ in itertools.islice(batches, 40):
            pass
        rates[workers] = time.perf_counter() - started
    return min(rates, key=lambda workers: rates[workers])
