"""The 1,797 handwritten digits inside scikit-learn: real images that need no network."""

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from resnet_builder.data.interfaces import DATASETS, DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.memory import InMemoryImages, fingerprint, preprocessed

TEST_LIST = "digits_test.txt"
"""360 indices, one a line: scikit-learn's ``train_test_split(range(1797), test_size=360,
stratify=target, random_state=0)``, sorted, stored so that no release of it can change them."""

BRIGHTEST = 16


@DATASETS.register("digits")
class Digits:
    """8x8 grey digits (Alpaydin and Kaynak 1998, UCI), 1,437 for training and 360 for the test."""

    facts = DatasetInfo(10, channels=1, image_size=8, own_validation=False, training_images=1437)

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read the digits from scikit-learn's own files."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.round(bunch.images * (255 / BRIGHTEST)).astype(np.uint8)
        images = preprocessed(torch.from_numpy(pixels)[:, None], context.preprocess)
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        test = _test_indices()
        train = torch.ones(len(labels), dtype=torch.bool).index_fill(0, test, value=False)
        return LoadedDataset(
            train=InMemoryImages(images[train], labels[train]),
            validation=None,
            test=InMemoryImages(images[test], labels[test]),
            classes=tuple(str(digit) for digit in range(10)),
            fingerprint=fingerprint(torch.from_numpy(pixels), labels, test),
        )


def _test_indices() -> Tensor:
    text = (files("resnet_builder.data") / TEST_LIST).read_text(encoding="utf-8")
    return torch.tensor([int(line) for line in text.split()])
