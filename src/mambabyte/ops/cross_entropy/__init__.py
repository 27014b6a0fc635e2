"""The cross-entropy of byte logits without a float32 copy of them, as a contract with several backends."""

from mambabyte.ops.cross_entropy.contract import cross_entropy as cross_entropy
