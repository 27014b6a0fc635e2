"""Decoding greedily, byte by byte: the engine that `generate` uses, a step being one byte of every row."""

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from mambabyte.benchmarking import floors, peers
from mambabyte.benchmarking.floors import Work
from mambabyte.benchmarking.operators import PEER_ERRORS, expect, sentence
from mambabyte.benchmarking.report import OURS, Report
from mambabyte.benchmarking.timing import Times, on_host
from mambabyte.benchmarking.train import random_bytes
from mambabyte.generation import Engine, open_engine
from mambabyte.models import ByteLM, model_cost

if TYPE_CHECKING:
    from mambabyte.generation.native_step import Weights

CHECKED = 48  # bytes
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2, "int8": 5e-2}
BYTES_A_WEIGHT = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
START = 10  # a newline


def bench(device: torch.device, weights: str, *, preset: str, batch: int, length: int, rounds: int) -> Report:
    """Milliseconds a step, over stretches of `length`, with weights in that dtype ("int8" on a CPU only).

    Raises RuntimeError if the engine's logits are not those of the parallel form in float32. A peer that does not run
    has a sentence instead of times.
    """
    model = ByteLM.from_preset(preset, seed=0).to(device).eval()
    engine = make_engine(model, weights)
    error = deviation(engine, model)
    expect(error, TOLERANCE[weights], f"the engine with {weights} weights")
    decoders, failed = {OURS: decoder(engine, batch)}, {}
    for name, make in peers.models(model).items():
        try:
            decode_theirs = peer_decoder(_as_they_decode(make(), weights), batch)
            decode_theirs(1)
        except PEER_ERRORS as why:
            failed[name] = sentence(why)
        else:
            decoders[name if device.type == "cuda" else f"{name}, float32"] = decode_theirs
    times = on_host({name: functools.partial(decode, length) for name, decode in decoders.items()}, rounds)
    cost = model_cost(model.config)
    moved = Work(cost.parameters * BYTES_A_WEIGHT[weights] + 2 * batch * cost.state_bytes)
    return Report(
        op="decode",
        device=device,
        shape={"preset": preset, "batch": batch, "length": length},
        dtype=weights,
        times={name: {"step": _each(found, length)} for name, found in times.items()},
        floor={"step": floors.milliseconds(moved, device)},
        error=error,
        bytes=batch,
        failed_peers=failed,
    )


def make_engine(model: ByteLM, weights: str) -> Engine:
    """The engine that serves the model with such weights where it is; `model` itself stays float32."""
    if weights == "float16":
        return open_engine(copy.deepcopy(model).half())
    return open_engine(model, weights=cast("Weights", weights))


@torch.no_grad()
def deviation(engine: Engine, model: ByteLM) -> float:
    """Norm of the error of the engine's logits over the norm of those of the model's parallel form."""
    (ids,) = random_bytes(1, CHECKED, model.embedding.weight.device)
    row = engine.join(model.init_state())
    (logits,) = engine.read([row], [ids.tolist()])
    found = torch.tensor(logits)
    engine.leave(row)
    truth = model(ids[None])[0][0].float().cpu()
    return float((found - truth).norm() / truth.norm())


def decoder(engine: Engine, batch: int) -> Callable[[int], None]:
    """A function that decodes so many more bytes of every row."""
    rows = [engine.join(engine.model.init_state()) for _ in range(batch)]
    last = [START] * batch

    def decode(count: int) -> None:
        for _ in range(count):
            logits = engine.read(rows, [[byte] for byte in last])
            last[:] = np.concatenate(logits).argmax(1).tolist()

    return decode


def _as_they_decode(peer: nn.Module, weights: str) -> nn.Module:
    """The peer with such weights on a GPU; on a CPU in float32, since transformers' scan multiplies nothing else."""
    on_gpu = next(peer.parameters()).device.type == "cuda"
    return peer.eval().to(getattr(torch, weights)) if on_gpu else peer.eval()


def peer_decoder(model: nn.Module, batch: int) -> Callable[[int], None]:
    """The same with a peer's model: its cached step, or mamba-ssm's generation on CUDA graphs."""
    start = torch.full((batch, 1), START, device=next(model.parameters()).device)
    if start.device.type == "cuda":
        generate: Any = model.generate
        return lambda count: generate(start, max_length=count + 1, top_k=1, cg=True)
    with torch.no_grad():
        output = model(start, use_cache=True)

    @torch.no_grad()
    def decode(count: int) -> None:
        nonlocal output
        for _ in range(count):
            ids = output.logits[:, -1:].argmax(-1)
            output = model(ids, cache_params=output.cache_params, use_cache=True)

    return decode


def _each(times: Times, count: int) -> Times:
    """Of one step instead of a stretch."""
    assert times.cpu_milliseconds is not None, "decoding is timed by the clock"
    return Times(
        times.milliseconds / count, times.fastest / count, times.spread_percent, times.cpu_milliseconds / count
    )
