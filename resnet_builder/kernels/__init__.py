"""Operations of our own for a CPU, where torch's take several times what is needed.

:mod:`.norm` is a batch norm with what follows it, :mod:`.convolution` a convolution whose weights'
gradient is computed in tiles, :mod:`.shortcut` a shortcut that pads channels as one copy, and
:mod:`.splitting` a convolution in fp32 for evaluation, in tiles. Each is computed by the C++ file
of its name, which :mod:`.compiled` compiles on the machine that it runs on; ``tiles.h`` and
:mod:`.tiles` are what those in tiles have in common. :mod:`.network` puts them in the places of
what they compute.
"""

from resnet_builder.kernels.compiled import no_kernels
from resnet_builder.kernels.network import with_kernels, with_split_convolutions

__all__ = ["no_kernels", "with_kernels", "with_split_convolutions"]
