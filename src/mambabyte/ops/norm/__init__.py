"""Normalisation fused with the residual addition before it, as a contract with several backends."""

from mambabyte.ops.norm.contract import norm as norm
