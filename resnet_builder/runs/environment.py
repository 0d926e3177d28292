"""What a run is computed with, as far as it can be asked without touching a device."""

import importlib.metadata
import platform

from resnet_builder.runs.records import CompileDecision, EnvRecord, RuntimeConfig

_PACKAGES = ("resnet-builder", "torch", "torchvision", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def package_version() -> str:
    """Return the version of this package."""
    return _version("resnet-builder")


def describe_environment(
    device: str, choices: RuntimeConfig, compile_decision: CompileDecision | None = None
) -> EnvRecord:
    """Record what a run is computed with.

    Args:
        device: The hardware's own name and number.
        choices: What was chosen before the first step.
        compile_decision: Why the network is compiled, or is not.
    """
    return EnvRecord(
        versions=versions(),
        platform=platform.platform(),
        device=device,
        choices=choices,
        compile_decision=compile_decision,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that is not installed
