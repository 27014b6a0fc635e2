"""The `mambabyte` command: verbs by name, errors as sentences, exit codes 0 (done), 1 (failed) and 2 (usage)."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter, Token, UnusedCliTokensError, convert

from mambabyte import __version__
from mambabyte.cli.console import UsageError, complain

VERBS = {
    "demo": "Train, evaluate and generate in a few minutes, with nothing to download.",
    "prepare": "Write any sources of bytes to a memory-mapped set.",
    "train": "Train a byte model on files, and resume it.",
    "evaluate": "Bits per byte of any files.",
    "surprisal": "Bits for every byte of one file, as a heat map, a page or numbers.",
    "generate": "Continue a prompt, byte by byte.",
    "bench": "Time ours against the machine's floor and against peers.",
    "convert": "The same weights in another layout, or on the Hub.",
    "info": "Size, cost and pattern of a model or preset.",
}
_READ_DATA = {"prepare", "train", "evaluate", "surprisal"}


def build_app() -> App:
    """The command tree; a verb's module is imported when the verb is called."""
    # plain text: rendering help as markdown would import a parser, a third of the time that --help takes
    app = App(
        name="mambabyte",
        help="Language models on raw bytes.",
        help_format="plaintext",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # `run` says so in our words
        default_parameter=Parameter(converter=_converted),
    )
    for verb, summary in VERBS.items():
        app.command(f"mambabyte.cli.{verb}:{verb}", name=verb, help=summary)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its code."""
    _open_streams()
    _speak()
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code instead of exiting."""
    app = build_app()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in _READ_DATA:
        # A lone hyphen names standard input, but to cyclopts it is an option that it does not know.
        argv = ["/dev/stdin" if argument == "-" else argument for argument in argv]
    try:
        app(argv, exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        words = " ".join(map(repr, error.unused_tokens))
        complain(f"no argument takes {words}; see --help, and quote text that has spaces: --prompt 'two words'")
        return 2
    except CycloptsError as error:
        complain(str(error).strip())
        return 2
    except UsageError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `mambabyte generate ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        complain(_os_sentence(error))
        return 1
    except (ValueError, RuntimeError, MemoryError) as error:
        complain(str(error) or type(error).__name__)
        return 1
    return 0


def _converted(hint: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option, as cyclopts has it, except that cyclopts would round 12.5 to an integer."""
    return _integer(tokens[0].value) if hint is int else convert(hint, tokens)


def _integer(text: str) -> int:
    for base in (10, 0):  # 0 is for those that say theirs, as 0xff does
        with suppress(ValueError):
            return int(text, base)
    raise ValueError(f'"{text}" is not a whole number; give one in digits, such as 300')


def _open_streams() -> None:
    """Let what is printed go nowhere where the shell has closed an output (`>&-`), which Python then has not at all."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _speak() -> None:
    """Let the package's warnings read like the command's complaints, whatever a library has done to the root logger."""
    logger = logging.getLogger("mambabyte")
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("mambabyte: %(message)s"))
        logger.addHandler(handler)


def _os_sentence(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename is not None else ""
    if error.errno == errno.ENOSPC:
        return f"{name}the disk is full; free some space and run the same command again"
    return f"{name}{error.strerror or error}"
