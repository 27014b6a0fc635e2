"""Speculative decoding of a trained pair on held-out text, against the same engine's plain decoding, side by side.

    python benchmarks/speculation.py MODEL --text FILE... --drafter lookup --drafter FOLDER ...
        [--weights bfloat16] [--device auto] [--prompts 8] [--prompt-bytes 1000] [--max-bytes 400]
        [--temperature 0 1] [--rounds 3] [--shape mambabyte-353m mambabyte-972m]

MODEL and FOLDER are model folders or runs, of bytes or (the drafters) of subwords. Prompts are cut from the texts at
even distances. Plain decoding and every drafter continue each prompt in turns with the same seed, and the fastest of
the rounds counts; reading the prompt is not timed. Every output must be that of plain decoding, byte for byte, or
nothing is printed but what differs. Prints one JSON object.

With --shape, the time of a byte at these presets (random weights, the same engine) is worked out from the passes that
the trained pair made: each pass with its own guess, drafting and host time, and the time that a read of as many bytes
takes at the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mambabyte as mb
from mambabyte.generation import ByteDrafter, LookupDrafter, PrefixCache, SubwordDrafter, open_engine, stream
from mambabyte.generation.speculation import LONGEST, Statistics
from mambabyte.models import model_cost
from mambabyte.training.precision import choose_device

if TYPE_CHECKING:
    from mambabyte.generation import Drafter, Engine

PLAIN = "plain"
READS = (1, 2, 3, 5, 9, 17, 1 + LONGEST)  # bytes of the reads that are timed


@dataclasses.dataclass(frozen=True)
class Pass:
    """One read of the verifier and what came before it; times in seconds."""

    guessed: int
    taken: int
    seconds: float
    drafting: float


@dataclasses.dataclass
class Run:
    """One continuation: its bytes, time, and what decoding counted."""

    output: bytes
    seconds: float
    passes: list[Pass]
    statistics: Statistics


def main() -> None:
    """Open, compete, check, print."""
    args = parse()
    device = choose_device(args.device)
    model = mb.load(args.model).to(device).eval()
    engine = open_engine(model, weights=args.weights)
    drafters = {PLAIN: None} | {name: open_drafter(name, device) for name in args.drafter}
    prompts = cut_prompts(args.text, args.prompts, args.prompt_bytes)
    common = {"max_bytes": args.max_bytes, "engine": engine, "prefix_cache": PrefixCache(model)}
    found = {str(t): compete(model, drafters, prompts, args.rounds, temperature=t, **common) for t in args.temperature}
    reads = read_times(engine)
    report = {
        "model": args.model,
        "parameters": model_cost(model.config).parameters,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "engine": engine.name,
        "weights": engine.weights,
        "prompts": len(prompts),
        "prompt_bytes": args.prompt_bytes,
        "max_bytes": args.max_bytes,
        "rounds": args.rounds,
        "read_milliseconds": {count: seconds * 1e3 for count, seconds in reads.items()},
        "temperatures": {t: summary(runs) for t, runs in found.items()},
        "shapes": {preset: at_shape(preset, model, args.weights, reads, found) for preset in args.shape},
    }
    print(json.dumps(report, indent=2))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", nargs="+", required=True, help="files of held-out text")
    parser.add_argument("--drafter", action="append", default=[], help="lookup or a folder; any number of them")
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), help="of the verifier")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-bytes", type=int, default=1000)
    parser.add_argument("--max-bytes", type=int, default=400)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", nargs="*", default=[], help="presets to work out times for")
    return parser.parse_args()


def open_drafter(name: str, device: torch.device) -> Drafter:
    """A drafter that is kept over all prompts."""
    if name == "lookup":
        return LookupDrafter()
    opened = mb.load_any(name)
    if isinstance(opened, mb.SubwordLM):
        return SubwordDrafter(opened.model.to(device).eval(), opened.subwords)
    return ByteDrafter(opened.to(device).eval())


def cut_prompts(files: list[str], count: int, length: int) -> list[bytes]:
    """Prompts at even distances in the texts, so that each has something after it."""
    text = b"".join(Path(file).read_bytes() for file in files)
    if len(text) < (count + 1) * length:
        sys.exit(f"the texts have {len(text)} bytes, too few for {count} prompts of {length}")
    starts = [(2 * i + 1) * (len(text) - length) // (2 * count) for i in range(count)]
    return [text[start : start + length] for start in starts]


def compete(
    model: mb.ByteLM, drafters: dict[str, Drafter | None], prompts: list[bytes], rounds: int, **options: Any
) -> dict[str, list[Run]]:
    """The fastest run of each contestant on each prompt, in turns; ends the program if an output differs."""
    best: dict[str, list[Run]] = {name: [] for name in drafters}
    for seed, prompt in enumerate(prompts):
        runs: dict[str, list[Run]] = {name: [] for name in drafters}
        for _ in range(rounds):
            for name, drafter in drafters.items():
                runs[name].append(decode(model, prompt, drafter, seed=seed, **options))
        for name, made in runs.items():
            if any(run.output != runs[PLAIN][0].output for run in made):
                sys.exit(
                    f"no numbers: at temperature {options['temperature']}, prompt {seed}, {name} changed the output"
                )
            best[name].append(min(made, key=lambda run: run.seconds))
    return best


def decode(model: mb.ByteLM, prompt: bytes, drafter: Drafter | None, **options: Any) -> Run:
    """Continue one prompt; the clock starts when it has been read."""
    pieces = stream(model, prompt, drafter=drafter, **options)
    output, passes, seen = bytearray(), [], dataclasses.replace(pieces.statistics)
    begin = time.perf_counter()
    for piece in pieces:
        output += piece
        now = dataclasses.replace(pieces.statistics)
        if now.passes > seen.passes:
            guessed, taken = now.drafted - seen.drafted, now.bytes - seen.bytes
            drafting = now.drafter_seconds - seen.drafter_seconds
            passes.append(Pass(guessed, taken, now.seconds - seen.seconds, drafting))
        seen = now
    seconds = time.perf_counter() - begin
    pieces.close()
    return Run(bytes(output), seconds, passes, pieces.statistics)


def summary(runs: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Of each contestant: bytes a second, and for drafters how they came about."""
    plain = sum(run.seconds for run in runs[PLAIN])
    rows = {}
    for name, made in runs.items():
        seconds, produced = sum(run.seconds for run in made), sum(len(run.output) for run in made)
        rows[name] = {"bytes_per_second": produced / seconds}
        if name == PLAIN:
            continue
        counts = {
            field.name: sum(getattr(run.statistics, field.name) for run in made)
            for field in dataclasses.fields(Statistics)
        }
        ratios = [a.seconds / b.seconds for a, b in zip(runs[PLAIN], made, strict=True)]
        rows[name] |= {"ratio": plain / seconds, "lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
        rows[name] |= Statistics(**counts).to_dict()
    return rows


def read_times(engine: Engine, rounds: int = 30) -> dict[int, float]:
    """Median seconds of a read of so many bytes of one row."""
    row = engine.join(engine.model.init_state())
    times: dict[int, list[float]] = {count: [] for count in READS}
    for _ in range(rounds + 3):
        for count in READS:
            begin = time.perf_counter()
            engine.read([row], [bytes(range(97, 97 + count))])
            times[count].append(time.perf_counter() - begin)
    engine.leave(row)
    return {count: statistics.median(taken[3:]) for count, taken in times.items()}


def at_shape(
    preset: str,
    trained: mb.ByteLM,
    weights: str | None,
    reads: dict[int, float],
    found: dict[str, dict[str, list[Run]]],
) -> dict[str, Any]:
    """Milliseconds of a byte at a preset, plain and with the passes that each drafter made with the trained model."""
    with trained.embedding.weight.device:
        model = mb.ByteLM.from_preset(preset).eval()
    model.trained_dtype = trained.trained_dtype  # so that it gets the engine that made the passes
    there = read_times(open_engine(model, weights=weights))
    rows: dict[str, Any] = {"read_milliseconds": {count: seconds * 1e3 for count, seconds in there.items()}}
    for temperature, runs in found.items():
        each = {}
        for name, made in runs.items():
            passes = [one for run in made for one in run.passes]
            total = sum(p.seconds + between(there, 1 + p.guessed) - between(reads, 1 + p.guessed) for p in passes)
            each[name] = total / sum(p.taken for p in passes) * 1e3
        ratios = {name: each[PLAIN] / milliseconds for name, milliseconds in each.items()}
        rows[temperature] = {name: {"milliseconds": each[name], "ratio": ratios[name]} for name in each}
    return rows


def between(reads: dict[int, float], count: int) -> float:
    """The time of a read of `count` bytes, between the two that were measured."""
    low, high = max(n for n in reads if n <= count), min(n for n in reads if n >= count)
    share = (count - low) / max(high - low, 1)
    return (1 - share) * reads[low] + share * reads[high]


if __name__ == "__main__":
    main()
