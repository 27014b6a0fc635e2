"""What the verbs share: usage errors, one line of complaint, and results as JSON or as a table."""

import json
import sys
from collections.abc import Mapping
from typing import Any


class UsageError(ValueError):
    """The command line asks for something that cannot be: exit code 2."""


def complain(sentence: str) -> None:
    """One line on stderr."""
    print(f"mambabyte: {sentence}", file=sys.stderr)


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own, the last thing on stdout."""
    print(json.dumps(result, allow_nan=False), flush=True)


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """A two-column table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    Console().print(table)


def printable(text: str) -> str:
    """A name on one line: what does not print as one character is an escape.

    Text that is read for itself keeps its lines, tabs and odd spaces: see `mambabyte.generation.text.visible`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
