"""Operations of our own for the CPU, where torch's take several times what memory needs.

``norm.cpp`` is what they compute; :mod:`.library` compiles it on the machine that it runs on, and
:mod:`.norm` is what the rest of the package sees.
"""

from resnet_builder.kernels.library import no_kernels
from resnet_builder.kernels.norm import FusedNorm, fusible

__all__ = ["FusedNorm", "fusible", "no_kernels"]
