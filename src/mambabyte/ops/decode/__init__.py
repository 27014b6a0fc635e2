"""A whole stack of Mamba layers reads bytes on an NVIDIA GPU: few in one launch, many by a graph of kernels."""
