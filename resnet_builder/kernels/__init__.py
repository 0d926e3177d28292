"""Operations of our own for a CPU, where torch's take several times what is needed.

:mod:`.norm` is a batch norm with what follows it, :mod:`.shortcut` a shortcut that pads channels as
one copy, :mod:`.training` a convolution for training in bf16, and :mod:`.inference` one for
evaluation. They are computed by C++ files, which :mod:`.compiled` compiles on the machine that it
runs on; :mod:`.rows` is what the convolutions have in common, :mod:`.gradient_memory` what
parameters' gradients are written into. :mod:`.network` puts them in the places of what they
compute.
"""

from resnet_builder.kernels.compiled import no_kernels, unused_instructions
from resnet_builder.kernels.network import with_inference_kernels, with_kernels

__all__ = ["no_kernels", "unused_instructions", "with_inference_kernels", "with_kernels"]
