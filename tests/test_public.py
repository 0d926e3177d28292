"""The package's public names, and what importing them costs."""

import inspect
import subprocess
import sys
from typing import Any

import pytest

import resnet_builder


def test_all_is_every_public_name() -> None:
    for name in resnet_builder.__all__:
        assert getattr(resnet_builder, name) is not None
    public = {
        name
        for name, value in vars(resnet_builder).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public <= set(resnet_builder.__all__)
    assert set(resnet_builder.__all__) <= set(dir(resnet_builder))
    assert list(resnet_builder.__all__) == sorted(resnet_builder.__all__)


def test_public_names_work_together() -> None:
    package: Any = resnet_builder
    spec = package.load_spec("resnet20", overrides=["model.num_classes=7"])
    assert isinstance(spec, package.Spec)
    network = package.build(spec)
    assert isinstance(network, package.ResNet)
    assert issubclass(package.SpecError, package.ResnetBuilderError)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = resnet_builder.nothing


def test_reading_a_spec_imports_no_torch() -> None:
    code = (
        "import sys, resnet_builder as r; r.load_spec('resnet20');"
        "print([m for m in ('torch', 'numpy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
