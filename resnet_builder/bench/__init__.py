"""What a spec costs on this machine: throughput, the floor that convolutions set, and memory."""

from resnet_builder.bench.measuring import Bench, measure

__all__ = ["Bench", "measure"]
