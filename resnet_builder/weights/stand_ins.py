"""What training scripts save beside the weights, and what is put in its place on reading.

None of it is needed here. The classes themselves are neither imported nor called: whatever one
of them would do, an object without behaviour takes its place.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class ForeignObject:
    """An object of another program; takes any arguments and any state, and keeps none."""

    def __new__(cls, *arguments: object) -> "ForeignObject":
        """Make one, whatever the class would have been given."""
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        """Drop the arguments."""

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


def mapping(*arguments: object) -> OrderedDict[Any, Any]:
    """Make an empty mapping, to be filled by what follows in the file."""
    return OrderedDict()


STAND_INS: dict[str, Callable[..., Any]] = {
    # The options of a command line: torchvision's and timm's training scripts save their "args".
    "argparse.Namespace": ForeignObject,
    # Scores: a mean of numpy numbers is one, and "best_prec1" or "metric" is often such a mean.
    # numpy's own would not do: what a file says about a dtype reaches its memory unchecked.
    "numpy.core.multiarray.scalar": ForeignObject,
    "numpy._core.multiarray.scalar": ForeignObject,  # numpy 2
    "numpy.dtype": ForeignObject,
    # Curves, and the random generators' state beside a checkpoint.
    "numpy.core.multiarray._reconstruct": ForeignObject,
    "numpy._core.multiarray._reconstruct": ForeignObject,
    "numpy.ndarray": ForeignObject,
    # mmengine's training checkpoints keep every curve in one.
    "mmengine.logging.history_buffer.HistoryBuffer": ForeignObject,
    # Output directories among the options; a POSIX one could not even be made on Windows.
    "pathlib.PosixPath": ForeignObject,
    "pathlib.WindowsPath": ForeignObject,
    "pathlib._local.PosixPath": ForeignObject,  # Python 3.13
    "pathlib._local.WindowsPath": ForeignObject,
    # Configurations of the detectron2 family (Swin Transformer's scripts, for one).
    "yacs.config.CfgNode": OrderedDict,
    # Logs by name; the factory is one of the built-in types.
    "collections.defaultdict": mapping,
    "builtins.list": ForeignObject,
    "builtins.dict": ForeignObject,
    "builtins.int": ForeignObject,
    "builtins.float": ForeignObject,
}
"""By the full name that stands in the file."""
