"""The mixer with the CUDA kernels."""

from mambabyte.ops.causal_conv import cuda as conv
from mambabyte.ops.mixer.fused import Kernels
from mambabyte.ops.selective_scan import cuda as scan

kernels = Kernels(conv, scan)
why_not = kernels.why_not
