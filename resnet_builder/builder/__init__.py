"""From a spec to a network; only this package knows both specs and parts."""

import resnet_builder.blocks
import resnet_builder.data  # noqa: F401 (importing the rooms registers the built-in parts)
from resnet_builder.builder.building import (
    build,
    build_from_spec,
    check_source,
    load_experiment,
    read_spec,
)
from resnet_builder.builder.checking import CheckedSpec, check
from resnet_builder.builder.pretrained import pretrained_digest
from resnet_builder.builder.resolving import resolve
from resnet_builder.experiment import Experiment

__all__ = [
    "CheckedSpec",
    "Experiment",
    "build",
    "build_from_spec",
    "check",
    "check_source",
    "load_experiment",
    "pretrained_digest",
    "read_spec",
    "resolve",
]
