"""The finished run that some benchmarks are given, and the data it was trained on."""

import argparse
from pathlib import Path

from resnet_builder.data.splits import DataSplits
from resnet_builder.trained import TrainedModel, load_model
from resnet_builder.training.inference import load_own_splits
from resnet_builder.training.runtime import set_backend_flags


def open_finished(description: str | None) -> tuple[TrainedModel, DataSplits]:
    """Read the command line, set the process up as training does, and load run and data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    set_backend_flags(threads=None)
    trained = load_model(given.run)
    return trained, load_own_splits(trained, data_dir=given.data_dir)
