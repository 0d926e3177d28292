"""The most memory that is held."""

import sys

import pytest
import torch

from resnet_builder.bench.memory import PeakMeter

CPU = torch.device("cpu")
MIB = 1024 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot be asked")
def test_peak_is_what_was_held_at_once_since_the_meter_was_made() -> None:
    torch.ones(64 * MIB // 4)
    meter = PeakMeter(CPU)
    for _ in range(3):
        torch.ones(32 * MIB // 4)
    peak = meter.peak()
    assert peak is not None
    assert 30 * MIB < peak.bytes - peak.before < 60 * MIB


def test_device_that_counts_nothing_has_no_peak() -> None:
    assert PeakMeter(torch.device("mps")).peak() is None
