"""The training loops that people use today, as opponents: *stock* and *tuned stock*.

Both augment picture by picture through PIL in a ``DataLoader``, as the usual scripts for CIFAR do.
Stock computes in fp32 as PyTorch does by default; tuned stock has channels-last memory, bf16
autocast and ``torch.compile``. The network is ours, so that only the training differs.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

IMAGES = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Pictures(Dataset[tuple[Tensor, int]]):
    """As many pictures as CIFAR-10 has for training, of its size, in memory as pixels."""

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(0)
        self._pixels = generator.integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
        self._labels = generator.integers(0, 10, IMAGES)
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self._pixels[index])
        return self._transform(picture), int(self._labels[index])


def train(
    network: nn.Module, *, size: int, batch_size: int, tuned: bool, stop: Callable[[], bool]
) -> None:
    """Train until ``stop`` says so; it is asked before every step.

    Args:
        network: What is trained.
        size: Pixels a side.
        batch_size: Images a step.
        tuned: Whether with channels-last, bf16 and a compiler.
        stop: Tells whether to end.
    """
    pictures = Pictures(size)
    forward: Callable[[Tensor], Tensor] = network.train()
    if tuned:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forward = torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for images, labels in _batches(pictures, batch_size, _workers(pictures, batch_size)):
        if stop():
            return
        if tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            logits = forward(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # printed or averaged by every such script


def _batches(pictures: Pictures, size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        pictures,
        size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def _workers(pictures: Pictures, batch_size: int) -> int:
    """Return the number of worker processes, none or two, that gives batches faster."""
    rates = {}
    for workers in (0, 2):
        batches = _batches(pictures, batch_size, workers)
        next(batches)
        started = time.perf_counter()
        for _ in itertools.islice(batches, 40):
            pass
        rates[workers] = time.perf_counter() - started
    return min(rates, key=lambda workers: rates[workers])
