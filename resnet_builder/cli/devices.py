"""Where to compute with weights that may have been trained elsewhere."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from resnet_builder.spec.schema import Spec


def device_for(spec: "Spec", *, warn: Callable[[str], None]) -> "torch.device":
    """Return the device that a spec asks for, or the best there is where that one is missing.

    Args:
        spec: What the weights were trained by.
        warn: Told if it is another.
    """
    from resnet_builder.device import pick_device
    from resnet_builder.errors import UsageError

    try:
        return pick_device(spec.run.device)
    except UsageError as error:
        device = pick_device("auto")
        warn(f"{error}; computing on {device}")
        return device
