"""The experiment that is measured in tests: a step of it takes milliseconds."""

from typing import Any

from resnet_builder.builder import read_spec
from resnet_builder.spec.schema import Spec

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "num_classes": 4,
        "image_size": 8,
        "stem": {"type": "conv3x3", "channels": 4},
        "block": "basic",
        "shortcut": "pad",
        "stages": [{"channels": 4, "blocks": 1}, {"channels": 8, "blocks": 1, "stride": 2}],
    },
    "data": {
        "dataset": {"type": "image_folder", "path": "nowhere"},
        "augment": ["horizontal_flip"],
    },
    "train": {"steps": 1000, "batch_size": 16, "optimizer": {"type": "sgd", "lr": 0.1}},
    "run": {"device": "cpu", "precision": "fp32"},
}


def tiny(*overrides: str) -> Spec:
    """Return it, with changes as ``--set`` makes them."""
    return read_spec(TINY, overrides=overrides)
