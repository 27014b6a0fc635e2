"""Decoding one stream on a CPU: the native step, the torch step and Hugging Face, same weights, one run.

    python benchmarks/decode_cpu.py [--preset mambabyte-14m] [--bytes 200] [--rounds 3] [--json]

Every contestant decodes greedily from the same byte in a process of its own, and contestants take turns so that a busy
machine disturbs all of them; the fastest stretch of bytes counts. Before anything is timed, the native engine with
float32 weights and Hugging Face must give the same logits within 1e-4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

NATIVE = [(weights, threads) for weights in ("float32", "bfloat16", "int8") for threads in (1, 2)]
CONTESTANTS = [
    *(f"native {weights} {threads}" for weights, threads in NATIVE),
    "torch step 2",
    "hf forward 2",
    "hf generate 2",
]
STRETCHES = 5


def decoder(name: str, preset: str) -> Callable[[int], None]:
    """A function that decodes so many more bytes greedily."""
    import torch

    torch.set_num_threads(int(name.split()[-1]))
    if name.startswith("hf"):
        return hf_decoder(name, preset)
    from mambabyte.benchmarking.decode import decoder as decoder_of
    from mambabyte.generation.engine import TorchEngine
    from mambabyte.generation.native_step import NativeEngine
    from mambabyte.models import ByteLM

    model = ByteLM.from_preset(preset, seed=0)
    if name.startswith("native"):
        _, weights, threads = name.split()
        engine: Any = NativeEngine(model, weights=weights, threads=int(threads))
    else:
        engine = TorchEngine(model)
    return decoder_of(engine, 1)


def hf_decoder(name: str, preset: str) -> Callable[[int], None]:
    """transformers' generate, or its forward with a cache called byte by byte, whichever the name says."""
    import torch

    from mambabyte.benchmarking.decode import START, peer_decoder
    from mambabyte.benchmarking.peers import transformers
    from mambabyte.models import ByteLM

    model: Any = transformers(ByteLM.from_preset(preset, seed=0)).eval()
    if "generate" in name:
        start = torch.tensor([[START]])
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

        def generate(count: int) -> None:
            model.generate(start, max_new_tokens=count, min_new_tokens=count, **settings)

        return generate
    return peer_decoder(model, 1)


def measure(name: str, preset: str, count: int) -> dict[str, float]:
    """Bytes per second, and per second of CPU time, of the fastest stretch, and peak resident bytes of this process."""
    import torch

    with torch.no_grad():
        decode = decoder(name, preset)
        decode(8)
        wall = cpu = float("inf")
        for _ in range(STRETCHES):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            decode(count // STRETCHES)
            wall, cpu = min(wall, time.perf_counter() - begin), min(cpu, time.process_time() - begin_cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = count // STRETCHES
    return {"bytes_per_second": each / wall, "bytes_per_cpu_second": each / cpu, "peak_bytes": peak}


def disagreement(preset: str) -> float:
    """Largest difference between the native engine's logits and Hugging Face's over some bytes."""
    import torch

    from mambabyte.benchmarking.peers import transformers
    from mambabyte.generation.native_step import NativeEngine
    from mambabyte.models import ByteLM

    text = bytes(range(10, 74))
    model = ByteLM.from_preset(preset, seed=0)
    engine = NativeEngine(model)
    native = torch.tensor(engine.read([engine.join(model.init_state())], [text])[0])
    with torch.no_grad():
        return float((native - transformers(model).eval()(torch.tensor([list(text)])).logits[0]).abs().max())


def bits_per_byte(preset: str, weights: str) -> float:
    """Cross-entropy of a model with these weights on bytes drawn from the float32 model: what narrow weights cost."""
    import torch

    from mambabyte.generation.native_step import NativeEngine
    from mambabyte.models import ByteLM

    model = ByteLM.from_preset(preset, seed=0)
    full, narrow = NativeEngine(model), NativeEngine(model, weights=weights)
    g = torch.Generator().manual_seed(0)
    rows, byte, total = (full.join(model.init_state()), narrow.join(model.init_state())), 10, 0.0
    for _ in range(256):
        p = torch.tensor(full.read([rows[0]], [bytes([byte])])[0][0]).softmax(-1)
        q = torch.tensor(narrow.read([rows[1]], [bytes([byte])])[0][0]).log_softmax(-1)
        total -= float((p * (q - p.log())).sum())
        byte = int(torch.multinomial(p, 1, generator=g))
    return total / 256 / 0.6931471805599453


def main() -> None:
    """Check, compete, print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mambabyte-14m")
    parser.add_argument("--bytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print when they are imported
            found = measure(args.child, args.preset, args.bytes)
        print(json.dumps(found))
        return
    difference = disagreement(args.preset)
    if difference > 1e-4:
        sys.exit(f"no numbers: the native engine and Hugging Face disagree by {difference:.1e}")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            child = [sys.executable, __file__, "--child", name, "--preset", args.preset, "--bytes", str(args.bytes)]
            runs[name].append(json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout))
    rows = {name: max(found, key=lambda r: r["bytes_per_second"]) for name, found in runs.items()}
    cost = {weights: bits_per_byte(args.preset, weights) for weights in ("bfloat16", "int8")}
    if args.json:
        print(json.dumps({"logits_difference": difference, "rows": rows, "divergence_bits_per_byte": cost}))
        return
    base = rows["hf generate 2"]["bytes_per_second"]
    print("| engine, weights, threads | bytes/s | bytes per CPU second | times HF generate | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for name, r in rows.items():
        speed = r["bytes_per_second"]
        of_cpu = r["bytes_per_cpu_second"]
        print(f"| {name} | {speed:.0f} | {of_cpu:.0f} | {speed / base:.1f} | {r['peak_bytes'] / 1e6:.0f} |")
    print("; ".join(f"{weights}: {bits:.1e} bits per byte from float32" for weights, bits in cost.items()))


if __name__ == "__main__":
    main()
