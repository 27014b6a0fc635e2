"""Bits per byte of any files: every byte of every document is scored exactly once."""

from mambabyte.evaluation.bits_per_byte import evaluate as evaluate
from mambabyte.evaluation.bits_per_byte import evaluator as evaluator
from mambabyte.evaluation.report import FileReport as FileReport
from mambabyte.evaluation.report import Report as Report
from mambabyte.evaluation.surprisal import Surprisal as Surprisal
from mambabyte.evaluation.surprisal import surprisal as surprisal
