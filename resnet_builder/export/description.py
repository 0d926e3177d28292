"""What an exported file says of itself: text by name, which any program can read."""

import json

from resnet_builder.runs.records import package_version
from resnet_builder.trained import TrainedModel


def describe(trained: TrainedModel) -> dict[str, str]:
    """Return all that one must know to use a network; lists are JSON.

    Left out is what the weights do not say: the classes and the statistics, if another program
    made them.
    """
    header = trained.header
    values = {
        "classes": header.classes,
        "mean": header.mean,
        "std": header.std,
        "preprocess": [step.model_dump(mode="json") for step in header.preprocess],
        "image_size": trained.spec.model.image_shape[-1],
    }
    return {
        **{name: json.dumps(value) for name, value in values.items() if value is not None},
        "input": input_text(trained),
        "spec": header.spec,
        "exported_by": f"resnet-builder {package_version()}",
    }


def input_text(trained: TrainedModel) -> str:
    """Say what the network is fed."""
    shape = ", ".join(map(str, trained.spec.model.image_shape))
    if trained.header.mean is None:
        return f"float32 (batch, {shape}), normalised as for training; its weights do not say how"
    return f"float32 (batch, {shape}): pixels from 0 to 1, minus mean, divided by std"
