"""`mambabyte bench`: ours against the floor of this machine, and against the peers that are installed."""

import contextlib
import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mambabyte.cli.console import UsageError, complain, print_json, print_table
from mambabyte.cli.device import pick_device

if TYPE_CHECKING:
    from mambabyte.benchmarking import Report

Op = Literal["scan", "conv", "train", "decode"]
Dtype = Literal["float32", "bfloat16", "float16", "int8"]
Options = dict[str, Any]

ON_CPU: dict[Op, Options] = {
    "scan": {"batch": 1, "length": 4096, "channels": 512, "dtype": "float32", "rounds": 5},
    "conv": {"batch": 1, "length": 4096, "channels": 512, "dtype": "float32", "rounds": 20},
    "train": {"batch": 4, "length": 1024, "preset": "mambabyte-5m", "dtype": "float32", "rounds": 5},
    "decode": {"batch": 1, "length": 64, "preset": "mambabyte-14m", "dtype": "float32", "rounds": 5},
}
ON_GPU: dict[Op, Options] = {
    "scan": {"batch": 8, "length": 8192, "channels": 2048, "dtype": "bfloat16", "rounds": 30},
    "conv": {"batch": 8, "length": 8192, "channels": 2048, "dtype": "bfloat16", "rounds": 30},
    "train": {"batch": 8, "length": 8192, "preset": "mambabyte-353m", "dtype": "bfloat16", "rounds": 10},
    "decode": {"batch": 1, "length": 128, "preset": "mambabyte-353m", "dtype": "bfloat16", "rounds": 10},
}
OPERATORS = [(8, 8192, 2048), (1, 8192, 2048), (1, 65536, 2048), (4, 8192, 3584)]
OPERATORS += [(16, 2048, 2048), (32, 2048, 2048), (8, 8191, 2048)]
MODELS = [("mambabyte-353m", 8, 8192), ("mambabyte-353m", 4, 8192), ("mambabyte-972m", 2, 8192)]
MODELS += [("mambabyte-27m", 16, 8192)]
DECODED = [(f"mambabyte-{size}", batch) for size in ("353m", "972m", "27m") for batch in (1, 8, 64, 256)]
# The shapes of docs/kernels.md.
TABLES: dict[Op, list[Options]] = {
    "scan": [{"batch": b, "length": length, "channels": c} for b, length, c in OPERATORS],
    "conv": [{"batch": b, "length": length, "channels": c} for b, length, c in OPERATORS],
    "train": [{"preset": preset, "batch": b, "length": length} for preset, b, length in MODELS],
    "decode": [{"preset": preset, "batch": b, "length": 128} for preset, b in DECODED],
}


def bench(
    op: Op,
    /,
    *,
    device: str = "auto",
    batch: int | None = None,
    length: int | None = None,
    channels: int | None = None,
    preset: str | None = None,
    dtype: Dtype | None = None,
    rounds: int | None = None,
    table: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Time ours against the floor of this machine, and against mamba-ssm or transformers where they are installed.

    Nothing is timed before it agrees with the reference. Contestants take turns; a time is the median of all rounds.

    Parameters
    ----------
    op
        scan, conv (forward, and forward + backward), train (a whole step) or decode (a byte of every row).
    device
        auto, cpu, cuda or cuda:N.
    batch
        Sequences at once.
    length
        Positions; of decode, bytes in one timed stretch.
    channels
        Of scan and conv.
    preset
        The model of train and decode.
    dtype
        Of the activations; of decode, of the weights, where a CPU also has int8.
    rounds
        How often each contestant is timed, at least twice.
    table
        Every shape of docs/kernels.md instead of one. Where one fails the others still run.
    json
        Print one JSON object a shape.
    """
    where = pick_device(device)
    given = {"batch": batch, "length": length, "channels": channels, "preset": preset, "dtype": dtype, "rounds": rounds}
    given = {name: value for name, value in given.items() if value is not None}
    rows = _rows(op, given) if table else [given]
    rows = [(ON_GPU if where.type == "cuda" else ON_CPU)[op] | row for row in rows]
    for row in rows:
        _check(op, row, where.type)
    if table:
        each(op, where, rows, json)
    else:
        _print(op, _run(op, where, **rows[0]), json)


def _rows(op: Op, given: Options) -> list[Options]:
    for name in ("batch", "length", "channels", "preset"):
        if name in given:
            raise UsageError(f"--table brings its own shapes: leave out --{name} or --table")
    return [row | given for row in TABLES[op]]


def each(op: Op, device: Any, rows: Sequence[Options], json: bool) -> None:
    """Run and print row after row; one that fails is printed with its reason. RuntimeError, last, if any failed."""
    failed = 0
    for row in rows:
        try:
            _print(op, _run(op, device, **row), json)
        except (RuntimeError, ValueError, MemoryError) as error:
            failed += 1
            shape = {name: value for name, value in row.items() if name not in ("dtype", "rounds")}
            reason = str(error) or type(error).__name__
            if json:
                print_json({"op": op, "shape": shape, "dtype": row["dtype"], "failed": reason})
            else:
                complain(f"{', '.join(f'{name} {value}' for name, value in shape.items())}: {reason}")
        _forget(device)
    if failed:
        raise RuntimeError(f"{failed} of {len(rows)} shapes failed")


def _forget(device: Any) -> None:
    """Give back the memory of a row, so that the next finds what it would find alone."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _print(op: Op, report: "Report", json: bool) -> None:
    if json:
        print_json(report.to_dict())
    else:
        print_table(f"mambabyte bench {op}", report.rows())


def _check(op: Op, options: dict[str, Any], device: str) -> None:
    """Raises UsageError for what no benchmark takes."""
    from mambabyte.config import unknown
    from mambabyte.models import PRESETS

    foreign = "preset" if op in ("scan", "conv") else "channels"
    if foreign in options:
        raise UsageError(f"bench {op} takes no --{foreign}")
    for name, least in (("batch", 1), ("length", 1), ("channels", 1), ("rounds", 2)):
        if options.get(name, least) < least:
            raise UsageError(f"--{name} is {options[name]}; it must be at least {least}")
    if "preset" in options and options["preset"] not in PRESETS:
        raise UsageError(unknown("preset", options["preset"], PRESETS))
    if options["dtype"] == "int8" and (op, device) != ("decode", "cpu"):
        raise UsageError("--dtype int8 is for bench decode on a CPU")
    if options["dtype"] == "float16" and (op, device) == ("decode", "cpu"):
        raise UsageError("--dtype float16 is not one of bench decode on a CPU: float32, bfloat16, int8")


def _run(op: Op, device: Any, *, dtype: Dtype, **options: Any) -> "Report":
    import torch

    from mambabyte.benchmarking import conv, decode, operators, scan, train

    # events are recorded, and kernels launched, on the current device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if op == "decode":
            return decode.bench(device, dtype, **options)
        activations = getattr(torch, dtype)
        if op == "train":
            return train.bench(device, activations, **options)
        return operators.bench(scan.SCAN if op == "scan" else conv.CONV, device, activations, **options)
