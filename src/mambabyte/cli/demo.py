"""`mambabyte demo`: from nothing to a trained byte model in minutes, on text that every machine with Python has."""

import gzip
import hashlib
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from mambabyte.cli.console import print_table

if TYPE_CHECKING:
    from mambabyte.evaluation import Report
    from mambabyte.models import ByteLM

PRESET = "mambabyte-2m"
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
HELD_OUT_SIZES = range(8_000, 60_000)  # bytes; smaller files say little, larger ones take long to evaluate
HELD_OUT_FILES = 12
PROMPT = b'    def __init__(self, name):\n        """'
SAMPLE_BYTES = 500


def demo(
    *,
    out: Path = Path("mambabyte-demo"),
    minutes: Annotated[float, Parameter(validator=Number(gt=0))] = 3.0,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train a small byte model on Python's standard library, evaluate it on files it has not seen, write code with it.

    Nothing is downloaded: the text is the source code of the Python that runs this.

    Parameters
    ----------
    out
        Folder of the run; an earlier run in it is moved aside.
    minutes
        How long to train.
    seed
        Of the weights, the order of the text and the sample.
    json
        Print one JSON object with the figures last.
    """
    from mambabyte.cli.console import print_json
    from mambabyte.evaluation import evaluate
    from mambabyte.training import TrainConfig, display, train

    began = time.monotonic()
    training, held_out = library()
    size = sum(path.stat().st_size for path in training)
    print(
        f"Training on {len(training)} files of Python's standard library, {size / 1e6:.1f} MB, no tokenizer.",
        flush=True,
    )
    data = tuple(str(path) for path in training)
    config = TrainConfig(preset=PRESET, data=data, out=str(out), minutes=minutes, seed=seed)
    result = train(config, listener=display(), resume="never")
    if not result.finished:
        print(f"Stopped early, and saved: go on with {_program()} train --config {out / 'train.json'}")
        return

    print(f"\nReading {len(held_out)} files that it has never seen:\n", flush=True)
    report = evaluate(result.model, held_out)
    gzips = {str(path): 8 * len(gzip.compress(path.read_bytes(), 9)) / path.stat().st_size for path in held_out}
    _show_files(report, gzips)

    print("\nWriting code, byte by byte:\n", flush=True)
    speed = _show_sample(result.model, seed)

    gzip_total = sum(gzips[file.name] * file.bytes for file in report.files) / report.bytes
    figures = {
        "bits_per_byte": report.bits_per_byte,
        "gzip_bits_per_byte": gzip_total,
        "xz_bits_per_byte": report.xz_bits_per_byte,
        "trained_bytes": result.bytes,
        "train_bytes_per_second": result.bytes / result.seconds,
        "generate_bytes_per_second": speed,
        "seconds": time.monotonic() - began,
        "out": str(out),
    }
    _close(result.model, report, gzips, figures, out)
    if json:
        print_json(figures)


def library() -> tuple[list[Path], list[Path]]:
    """Source files of the running Python's standard library to train on, and a few to hold out, the same every time."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED & set(path.relative_to(root).parts)]
    by_hash = sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    held_out = [path for path in by_hash if path.stat().st_size in HELD_OUT_SIZES][:HELD_OUT_FILES]
    return [path for path in files if path not in set(held_out)], held_out


def _show_files(report: "Report", gzips: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("file", "bytes", "bits per byte", "gzip -9", "xz -9"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in report.files:
        rates = (file.bits_per_byte, gzips[file.name], file.xz_bits_per_byte or 0.0)
        table.add_row(Path(file.name).name, f"{file.bytes:,}", *(f"{rate:.3f}" for rate in rates))
    Console().print(table)


def _show_sample(model: "ByteLM", seed: int) -> float:
    """Stream a continuation of `PROMPT`; returns bytes per second."""
    from mambabyte.generation import stream
    from mambabyte.generation.text import IncrementalText, visible

    decoder = IncrementalText()
    print(PROMPT.decode(), end="", flush=True)
    began = time.monotonic()
    for piece in stream(model, PROMPT, max_bytes=SAMPLE_BYTES, temperature=0.7, seed=seed):
        print(visible(decoder.push(piece)), end="", flush=True)
    print(visible(decoder.finish()), flush=True)
    return SAMPLE_BYTES / (time.monotonic() - began)


def _close(
    model: "ByteLM", report: "Report", gzips: dict[str, float], figures: dict[str, float | str | None], out: Path
) -> None:
    """One table: what was done, and what to try next."""
    better = {
        "gzip": sum(file.bits_per_byte < gzips[file.name] for file in report.files),
        "xz": sum(file.bits_per_byte < (file.xz_bits_per_byte or 0.0) for file in report.files),
    }
    files = len(report.files)
    rows = {
        "model": f"{sum(p.numel() for p in model.parameters()):,} parameters, in {out}",
        "read": f"{figures['trained_bytes']:,} bytes at {figures['train_bytes_per_second']:,.0f} bytes/s",
        "held-out text": f"{report.bits_per_byte:.3f} bits per byte",
        "gzip -9, each file": f"{figures['gzip_bits_per_byte']:.3f}, beaten on {better['gzip']} of {files} files",
        "xz -9, each file": f"{figures['xz_bits_per_byte']:.3f}, beaten on {better['xz']} of {files} files",
        "wrote": f"{SAMPLE_BYTES} bytes at {figures['generate_bytes_per_second']:,.0f} bytes/s",
        "time": f"{figures['seconds']:.0f} s",
        "write more": f"{_program()} generate {out} --prompt 'import ' --temperature 0.7",
        "measure any file": f"{_program()} evaluate {out} --data FILE",
        "see what surprises it": f"{_program()} surprisal {out} FILE",
        "train on your own": f"{_program()} train --preset mambabyte-5m --data FOLDER --out run --minutes 30",
    }
    print()
    print_table("What happened, and what to try next", rows)


def _program() -> str:
    """What to type for `mambabyte` here: the environment of `make` is not on the path."""
    if shutil.which("mambabyte"):
        return "mambabyte"
    beside = Path(sys.executable).parent / "mambabyte"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
