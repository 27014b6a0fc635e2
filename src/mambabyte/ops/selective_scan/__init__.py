"""The selective scan: Mamba's recurrence with input-dependent steps, as a contract with several backends."""

from mambabyte.ops.selective_scan.contract import selective_scan as selective_scan
from mambabyte.ops.selective_scan.contract import selective_scan_step as selective_scan_step
