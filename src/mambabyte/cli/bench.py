"""`mambabyte bench`: ours against the floor of this machine, and against the peers that are installed."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mambabyte.cli.console import UsageError, print_json, print_table
from mambabyte.cli.device import pick_device

if TYPE_CHECKING:
    from mambabyte.benchmarking import Report

Op = Literal["scan", "conv", "train", "decode"]
Dtype = Literal["float32", "bfloat16", "float16", "int8"]

ON_CPU: dict[Op, dict[str, Any]] = {
    "scan": {"batch": 1, "length": 4096, "channels": 512, "dtype": "float32", "rounds": 5},
    "conv": {"batch": 1, "length": 4096, "channels": 512, "dtype": "float32", "rounds": 20},
    "train": {"batch": 4, "length": 1024, "preset": "mambabyte-5m", "dtype": "float32", "rounds": 5},
    "decode": {"batch": 1, "length": 64, "preset": "mambabyte-14m", "dtype": "float32", "rounds": 5},
}
ON_GPU: dict[Op, dict[str, Any]] = {
    "scan": {"batch": 8, "length": 8192, "channels": 2048, "dtype": "bfloat16", "rounds": 30},
    "conv": {"batch": 8, "length": 8192, "channels": 2048, "dtype": "bfloat16", "rounds": 30},
    "train": {"batch": 8, "length": 8192, "preset": "mambabyte-353m", "dtype": "bfloat16", "rounds": 10},
    "decode": {"batch": 1, "length": 128, "preset": "mambabyte-353m", "dtype": "bfloat16", "rounds": 10},
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
    json
        Print one JSON object, last.
    """
    where = pick_device(device)
    given = {"batch": batch, "length": length, "channels": channels, "preset": preset, "dtype": dtype, "rounds": rounds}
    options = (ON_GPU if where.type == "cuda" else ON_CPU)[op] | {k: v for k, v in given.items() if v is not None}
    _check(op, options, where.type)
    report = _run(op, where, **options)
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

    if device.type == "cuda":  # events are recorded, and kernels launched, on the current one
        torch.cuda.set_device(device)
    if op == "decode":
        return decode.bench(device, dtype, **options)
    activations = getattr(torch, dtype)
    if op == "train":
        return train.bench(device, activations, **options)
    return operators.bench(scan.SCAN if op == "scan" else conv.CONV, device, activations, **options)
