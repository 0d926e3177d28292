"""CPU kernels: operations in C++ that train and evaluate a network faster than torch's own.

The package has one door: :func:`accelerate` returns a network whose layers call the kernels, and
:func:`kernel_support` says which this machine has. ``README.md`` in this folder says what each
file computes, and what it gains.
"""

from resnet_builder.cpu.graph import accelerate
from resnet_builder.cpu.library import KernelSupport, kernel_support

__all__ = ["KernelSupport", "accelerate", "kernel_support"]
