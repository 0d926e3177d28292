"""What a run is computed with."""

import importlib.metadata
import platform

import pytest
import torch

from resnet_builder.runs.records import describe_environment, package_version, versions
from tests.runs.test_records import CHOICES


def test_versions_are_those_of_what_computes() -> None:
    found = versions()
    assert list(found) == ["python", "resnet-builder", "torch", "torchvision", "numpy"]
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["torch"])


def test_package_that_is_not_installed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert package_version() == "unknown"


def test_environment_holds_what_is_repeated() -> None:
    found = describe_environment("a CPU", CHOICES)
    assert found.device == "a CPU"
    assert found.choices == CHOICES
    assert found.versions == versions()
    assert found.platform == platform.platform()
