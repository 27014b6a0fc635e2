"""The command line: one thin file per verb, imported only when that verb runs, so `--help` never imports torch."""

from mambabyte.cli.app import main as main
