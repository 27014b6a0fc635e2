"""Benchmarks: ours against a floor and against peers in one run, and no figures where anything is wrong."""

from mambabyte.benchmarking.report import Report as Report
