"""The mixer with the Triton kernels."""

from mambabyte.ops.causal_conv import triton as conv
from mambabyte.ops.mixer.fused import Kernels
from mambabyte.ops.selective_scan import triton as scan

kernels = Kernels(conv, scan)
why_not = kernels.why_not
