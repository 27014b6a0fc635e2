"""The depthwise causal convolution of the Mamba layer, as a contract with several backends."""

from mambabyte.ops.causal_conv.contract import causal_conv as causal_conv
from mambabyte.ops.causal_conv.contract import causal_conv_step as causal_conv_step
