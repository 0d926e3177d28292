"""The training loops that people use today, as opponents: *stock* and *tuned stock*.

Both augment picture by picture through PIL in a ``DataLoader``, as the usual scripts for CIFAR do.
Stock computes in fp32 as PyTorch does by default; tuned stock has channels-last memory, bf16
autocast and ``torch.compile``. The network is ours, so that only the training differs.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Image.Image], Tensor]

IMAGES = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures in memory as pixels, each changed through PIL when it is asked for."""

    def __init__(self, pixels: Pixels, labels: Sequence[int], change: Change) -> None:
        self._pixels = pixels
        self._labels = labels
        self._change = change

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._change(Image.fromarray(self._pixels[index])), self._labels[index]


def random_pictures(size: int) -> Pictures:
    """Make as many pictures as CIFAR-10 has for training, to be augmented as it is."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    augment = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return Pictures(pixels, generator.integers(0, 10, IMAGES).tolist(), augment)


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
    pictures = random_pictures(size)
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


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
) -> float:
    """Evaluate in fp32, picture by picture through PIL; return the fraction answered right.

    Args:
        network: What is evaluated.
        images: ``(N, 3, H, W)`` uint8.
        labels: ``(N,)`` int64.
        mean: Of each channel, in units where white is 1.
        std: Of each channel, in units where white is 1.
        batch_size: Images at a time.
    """
    change = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    loader = DataLoader(Pictures(pixels, labels.tolist(), change), batch_size)
    network.eval()
    right = sum(int((network(batch).argmax(1) == answers).sum()) for batch, answers in loader)
    return right / len(images)


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
