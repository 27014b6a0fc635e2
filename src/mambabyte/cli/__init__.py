"""The command line: one thin file per verb, imported only when the verb runs, so that `--help` does not import torch."""

from mambabyte.cli.app import main as main
