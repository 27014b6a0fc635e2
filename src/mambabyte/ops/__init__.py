"""Ops: contracts with several backends. `reference` says what is computed; `cpu`, `cuda`, `triton` compute it fast."""

from mambabyte.ops.causal_conv import causal_conv as causal_conv
from mambabyte.ops.causal_conv import causal_conv_step as causal_conv_step
from mambabyte.ops.cross_entropy import cross_entropy as cross_entropy
from mambabyte.ops.mixer import mixer as mixer
from mambabyte.ops.norm import norm as norm
from mambabyte.ops.selective_scan import selective_scan as selective_scan
from mambabyte.ops.selective_scan import selective_scan_step as selective_scan_step
