"""ResNets as data: one YAML file is a whole experiment, checked, built, trained and compared.

The public names are imported when they are first used, so that what needs no torch imports none.
"""

import importlib

# Not typing's: `python -m resnet_builder` imports this file while the current folder still is on
# sys.path, and a module that Python has not loaded yet would come from there.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from resnet_builder.api import Run, load_run, train
    from resnet_builder.builder import build, build_from_spec
    from resnet_builder.errors import ResnetBuilderError, SpecError
    from resnet_builder.model import Features, ResNet
    from resnet_builder.spec.load import load_spec
    from resnet_builder.spec.schema import Spec
    from resnet_builder.training.callbacks import Callback
    from resnet_builder.training.trainer import fit
    from resnet_builder.weights.convert import load_weights

    __version__: str
del TYPE_CHECKING

__all__ = [
    "Callback",
    "Features",
    "ResNet",
    "ResnetBuilderError",
    "Run",
    "Spec",
    "SpecError",
    "__version__",
    "build",
    "build_from_spec",
    "fit",
    "load_run",
    "load_spec",
    "load_weights",
    "train",
]

_HOMES = {
    "Callback": "resnet_builder.training.callbacks",
    "Features": "resnet_builder.model",
    "ResNet": "resnet_builder.model",
    "ResnetBuilderError": "resnet_builder.errors",
    "Run": "resnet_builder.api",
    "Spec": "resnet_builder.spec.schema",
    "SpecError": "resnet_builder.errors",
    "build": "resnet_builder.builder",
    "build_from_spec": "resnet_builder.builder",
    "fit": "resnet_builder.training.trainer",
    "load_run": "resnet_builder.api",
    "load_spec": "resnet_builder.spec.load",
    "load_weights": "resnet_builder.weights.convert",
    "train": "resnet_builder.api",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name == "__version__":
        environment = importlib.import_module("resnet_builder.runs.records")
        return environment.package_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List what is public, imported or not."""
    return sorted({*globals(), *__all__})
