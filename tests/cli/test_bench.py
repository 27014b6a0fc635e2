"""`mambabyte bench`: what is reported, and that nothing wrong is timed."""

import dataclasses
import json

import pytest
import torch

from mambabyte.benchmarking import operators
from mambabyte.benchmarking.conv import CONV
from mambabyte.benchmarking.floors import Work
from mambabyte.benchmarking.operators import Contestant
from mambabyte.benchmarking.scan import SCAN, work
from mambabyte.cli.app import run
from mambabyte.cli.bench import TABLES, each
from mambabyte.models import PRESETS

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--batch", "2", "--rounds", "2"]
OPERATOR = [*TINY, "--length", "24", "--channels", "16"]
MODEL = [*TINY, "--preset", "mambabyte-tiny"]
COMMANDS = {
    "scan": ([*OPERATOR], ["forward", "forward_backward"]),
    "conv": ([*OPERATOR, "--dtype", "bfloat16"], ["forward", "forward_backward"]),
    "train": ([*MODEL, "--length", "16"], ["step"]),
    "decode": ([*MODEL, "--length", "4", "--dtype", "int8"], ["step"]),
}


@pytest.mark.parametrize("op", COMMANDS)
def test_ours_the_floor_and_their_ratio(op, capsys):
    arguments, directions = COMMANDS[op]
    assert run(["bench", op, *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["op"] == op
    assert {"device", "shape", "dtype", "milliseconds", "floor", "ratio", "peers", "error"} <= set(found)
    for direction in directions:
        ours, floor = found["milliseconds"][direction], found["floor"][direction]
        assert ours > 0 < floor
        assert found["ratio"][direction] == pytest.approx(ours / floor, rel=1e-2)
        if op in ("train", "decode"):
            speed = found["shape"]["batch"] * (found["shape"]["length"] if op == "train" else 1) / ours * 1e3
            assert found["bytes_per_second"][direction] == pytest.approx(speed, rel=1e-2)
        for peer in found["peers"].values():
            if direction in peer["milliseconds"]:
                assert peer["ratio"][direction] == pytest.approx(peer["milliseconds"][direction] / ours, rel=1e-2)


def test_a_table_for_people(capsys):
    assert run(["bench", "conv", *OPERATOR]) == 0
    shown = capsys.readouterr().out
    assert "forward + backward" in shown
    assert "times the floor" in shown


@pytest.mark.parametrize("op", [SCAN, CONV], ids=lambda op: op.name)
def test_no_figures_for_what_is_wrong(op):
    case = op.inputs(1, 8, 16, device=CPU, dtype=torch.float32)
    wrong = Contestant(lambda **tensors: 1.001 * op.ours.run(**tensors))
    assert operators.check("mambabyte", op.ours, op.reference, case, torch.float32) < 1e-5
    with pytest.raises(RuntimeError, match="no figures: y of mambabyte deviates"):
        operators.check("mambabyte", wrong, op.reference, case, torch.float32)


def test_a_peer_that_fails_costs_no_figures_of_ours():
    wrong = Contestant(lambda **case: 2 * CONV.reference.run(**case))
    other = Contestant(lambda **case: torch.no_such_function(**case))
    op = dataclasses.replace(CONV, peers=lambda device: {"right": CONV.reference, "wrong": wrong, "other": other})
    report = operators.bench(op, CPU, torch.float32, batch=1, length=9, channels=8, rounds=2)
    assert set(report.times) == {"mambabyte", "right"}
    assert "no figures: y of wrong deviates" in report.failed_peers["wrong"]
    assert "AttributeError: module 'torch' has no attribute" in report.to_dict()["failed_peers"]["other"]
    assert "no_such_function" in report.rows()["other"]


def test_a_row_that_fails_costs_no_other_row(capsys):
    row = {"batch": 1, "length": 8, "channels": 8, "dtype": "float32", "rounds": 2}
    with pytest.raises(RuntimeError, match="1 of 3 shapes failed"):
        each("conv", CPU, [row, row | {"batch": 1 << 44}, row | {"length": 9}], json=True)
    first, failing, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["shape"]["length"], last["shape"]["length"]) == (8, 9)
    assert failing["shape"] == {"batch": 1 << 44, "length": 8, "channels": 8}
    assert "memory" in failing["failed"]


def test_the_tables_are_shapes_of_their_ops():
    assert {"batch": 8, "length": 8191, "channels": 2048} in TABLES["scan"] == TABLES["conv"]
    assert {row["preset"] for op in ("train", "decode") for row in TABLES[op]} <= set(PRESETS)


@pytest.mark.parametrize("op", [SCAN, CONV], ids=lambda op: op.name)
def test_peers_compute_the_same_in_every_dtype(op):
    for dtype in (torch.float32, torch.bfloat16):
        case = op.inputs(2, 9, 16, device=CPU, dtype=dtype)
        for peer in op.peers(CPU).values():
            errors = operators.deviation(peer, op.reference, case)
            assert set(errors) == ({"y", *case} if peer.backward else {"y"})
            assert max(errors.values()) < operators.TOLERANCE[dtype]


def test_the_counts_are_those_of_docs_kernels():
    """A (position, channel) of 16 states in bfloat16: 8 and 14 bytes, 1.25 and 2.3 exponentials a state."""
    assert work(1, torch.bfloat16) == (Work(8, 20), Work(14, 37))
    assert CONV.work(1, torch.bfloat16) == (Work(4), Work(6))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", "--preset", "mambabyte-tiny"], "takes no --preset"),
        (["decode", "--channels", "16"], "takes no --channels"),
        (["train", "--preset", "mambabyte-tinny"], "did you mean 'mambabyte-tiny'?"),
        (["scan", "--rounds", "1"], "at least 2"),
        (["conv", "--dtype", "int8"], "int8 is for bench decode"),
        (["conv", "--device", "gpu"], "'gpu'"),
        (["scan", "--table", "--batch", "2"], "leave out --batch or --table"),
        (["dance"], "dance"),
    ],
)
def test_what_cannot_be_is_a_sentence(arguments, said, capsys):
    assert run(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err
