"""Operations of our own for training on a CPU, where torch's take several times what is needed.

:mod:`.norm` is a batch norm with what follows it, computed by ``norm.cpp``, which :mod:`.compiled`
compiles on the machine that it runs on. :mod:`.convolution` is another way to the same gradient.
:mod:`.network` puts both in the places of what they compute.
"""

from resnet_builder.kernels.compiled import no_kernels
from resnet_builder.kernels.network import with_kernels

__all__ = ["no_kernels", "with_kernels"]
