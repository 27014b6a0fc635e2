"""Registered ops import nothing on their first call and stay whole under torch.compile's tracer."""

import subprocess
import sys

import torch

from mambabyte.ops.selective_scan import autograd

from .scan_cases import scan_inputs

FIRST_CALL = """
import sys, torch
from mambabyte.models import ByteLM
model = ByteLM.from_preset("mambabyte-tiny", seed=0)
model(torch.zeros(1, 3, dtype=torch.long))[0].sum().backward()
with torch.device("meta"):
    ByteLM(model.config)
print([name for name in ("torch._dynamo", "sympy", "torch._inductor") if name in sys.modules])
"""


def test_a_first_call_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fake_has_the_shapes_of_the_real_op() -> None:
    case = scan_inputs(2, 33, 20)
    tensors = [case[k].requires_grad_(case[k].is_floating_point()) for k in case]
    torch.library.opcheck(
        autograd._forward._call,
        (*tensors, True, True, "cpu"),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
