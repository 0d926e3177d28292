"""What is measured in a spec's place: its steps, on made-up images, without end."""

from resnet_builder.parts import input_info
from resnet_builder.spec.recipe import ConstantSchedule, ConstantWarmup, Interval
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part

_ENDLESS = 2**31 - 1
_MADE_BYTES = 64 * 1024 * 1024
_MADE_IMAGES = 4096
_NEARLY_STILL = ConstantWarmup(type="constant", lr=1e-6, steps=_ENDLESS - 1)
"""Weights hardly move: what a step costs does not depend on them, and nothing diverges."""


def endless(spec: Spec, *, batch_size: int, accumulate: int) -> Spec:
    """Return an experiment that takes a spec's steps until it is stopped.

    Its images are synthetic, of the spec's size and classes, and in memory; they are augmented and
    normalised as the spec says. Nothing is evaluated, no checkpoint falls due.

    Args:
        spec: The experiment, resolved, with data and a recipe.
        batch_size: Images a step.
        accumulate: Parts that a step is computed in.
    """
    assert spec.data is not None, "a spec to train has data"
    assert spec.train is not None, "a spec to train has a recipe"
    data = spec.data.model_copy(
        update={
            "dataset": _synthetic(spec, batch_size),
            "validation": 0,
            "split_seed": 0,
            "preprocess": (),
        }
    )
    train = spec.train.model_copy(
        update={
            "steps": _ENDLESS,
            "epochs": None,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "schedule": ConstantSchedule(type="constant", warmup=_NEARLY_STILL),
            "evaluate_every": Interval(steps=_ENDLESS),
            "checkpoint_every": Interval(steps=_ENDLESS),
            "early_stop": None,
            "progressive_resizing": (),
        }
    )
    return spec.model_copy(update={"data": data, "train": train})


def recipe_steps(spec: Spec) -> int | None:
    """Return the steps of a spec's recipe; ``None`` where that depends on images not yet read."""
    assert spec.data is not None, "a spec to train has data"
    assert spec.train is not None, "a spec to train has a recipe"
    if spec.train.steps is not None:
        return spec.train.steps
    assert spec.train.epochs is not None, "a length is given in one unit"
    images = _training_images(spec)
    return None if images is None else spec.train.epochs * (images // spec.train.batch_size)


def _synthetic(spec: Spec, batch_size: int) -> Part:
    channels, size, _ = spec.model.image_shape
    affordable = min(_MADE_IMAGES, _MADE_BYTES // (channels * size * size))
    return Part.model_validate(
        {
            "type": "synthetic",
            "num_classes": spec.model.num_classes,
            "channels": channels,
            "image_size": size,
            "train": max(batch_size, affordable),
            "test": 1,
        }
    )


def _training_images(spec: Spec) -> int | None:
    """Return how many images are trained on; ``None`` where only reading the data set tells."""
    assert spec.data is not None, "a spec to train has data"
    count = input_info(spec.data).training_images
    return None if count is None else count - spec.data.set_aside(count)
