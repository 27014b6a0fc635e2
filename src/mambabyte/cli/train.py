"""`mambabyte train`: train a byte model on files, and resume it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mambabyte.cli.console import UsageError, print_json

if TYPE_CHECKING:
    from mambabyte.models import ByteLM
    from mambabyte.training import Evaluator, Sampler, TrainConfig

Many = Parameter(consume_multiple=True, negative=())
Flag = Parameter(negative=())
SAMPLE_BYTES = 160
NO_KEYS = ("config", "resume", "held_out", "sample", "json")  # every other option is a key of TrainConfig


def train(
    *,
    preset: str | None = None,
    tokenizer: int | None = None,
    data: Annotated[list[str] | None, Many] = None,
    out: str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    bytes: int | None = None,
    config: Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    held_out: Annotated[list[str] | None, Many] = None,
    sample: str | None = None,
    batch: int | None = None,
    context: int | None = None,
    micro_batch: int | None = None,
    carry_state: bool | None = None,
    seed: int | None = None,
    learning_rate: float | None = None,
    betas: tuple[float, float] | None = None,
    epsilon: float | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    warmup: int | None = None,
    final_learning_rate: float | None = None,
    device: str | None = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    checkpoint_activations: bool | None = None,
    log_every: int | None = None,
    evaluate_every: int | None = None,
    save_every: int | None = None,
    save_minutes: float | None = None,
    keep: int | None = None,
    tensorboard: bool | None = None,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Train a byte model on files. The same command again goes on where it stopped.

    What is not given is taken from --config, else from the run in --out, else chosen for the model and the machine.
    Ctrl-C and SIGTERM save and end the run; it resumes exactly.

    Parameters
    ----------
    preset
        The architecture, by name; an unknown name lists them all.
    tokenizer
        Learn so many subwords from the data (at most 16 MiB of them, spread evenly), and train a model of those: a
        drafter for `mambabyte generate --drafter`. Sizes and figures stay in bytes.
    data
        Files, folders or globs, text or binary; every file is a document. Also prepared sets (books:3 code:1 mixes
        them three to one) and whatever `mambabyte prepare` reads.
    out
        The run folder; "run" unless given.
    minutes
        Stop after so much wall-clock time; the learning rate falls to its end by then.
    steps
        Stop after so many updates.
    bytes
        Stop after so many bytes; 90 a parameter if no limit is given.
    config
        A TOML file with keys of these names (underscores for dashes), or the train.json of a run; may hold a [model].
    resume
        auto goes on from the newest whole checkpoint; never moves an earlier run to OUT/before-1 and begins.
    held_out
        Files to evaluate ten times over the run, or every EVALUATE_EVERY steps.
    sample
        A prompt to continue whenever there is an evaluation.
    batch
        Sequences a step.
    context
        Bytes a sequence.
    micro_batch
        Sequences a forward and backward pass; gradients accumulate.
    carry_state
        Each sequence reads on from the step before, with its state.
    seed
        Of the initial weights and the order of the data.
    learning_rate
        The peak.
    betas
        Of AdamW.
    epsilon
        Of AdamW.
    weight_decay
        Of AdamW, on matrices only.
    clip
        Largest norm of the gradient.
    warmup
        Steps of linear warm-up; at most a twentieth of the run.
    final_learning_rate
        Where the cosine ends, as a fraction of the peak.
    device
        auto, cpu, cuda or cuda:N.
    precision
        Of the activations; weights are always float32.
    checkpoint_activations
        Recompute layers in the backward pass: less memory, more time.
    log_every
        Steps between two lines of metrics.jsonl.
    evaluate_every
        Steps between two evaluations.
    save_every
        Steps between two checkpoints.
    save_minutes
        Minutes between two checkpoints.
    keep
        Checkpoints that stay.
    tensorboard
        Write event files to OUT/tensorboard as well.
    json
        Print one JSON object last; progress goes to stderr.
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in NO_KEYS}
    from mambabyte.training import display
    from mambabyte.training import train as run

    merged = _merge(config, given, resume)
    if sample is not None and merged.tokenizer is not None:
        raise UsageError("--sample needs a model of bytes: with a tokenizer it is one of subwords, which writes none")
    result = run(
        merged,
        evaluators=_evaluators(held_out),
        sampler=None if sample is None else _sampler(sample),
        listener=display(sys.stderr if json else sys.stdout),
        resume=resume,
    )
    if json:
        print_json(result.to_dict())
        return
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.3f} bits per byte"
    print(f"{'done' if result.finished else 'stopped'} at step {result.steps:,}{bits}; saved in {result.checkpoint}")


def _merge(file: Path | None, given: Mapping[str, Any], resume: str) -> "TrainConfig":
    """The earlier run's keys, under the file's, under the command line's."""
    from mambabyte.training.config import merge, read_config
    from mambabyte.training.precision import choose_device

    try:
        layers = [{} if file is None else read_config(file), given]
    except ValueError as error:
        raise UsageError(str(error)) from error
    folder = Path(next((layer["out"] for layer in reversed(layers) if "out" in layer), "run"))
    earlier = _earlier(folder, resume, layers)
    try:
        config = merge(*earlier, *layers, where=str(file or "train"))
        config.architecture()
        choose_device(config.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return config


def _earlier(folder: Path, resume: str, layers: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the run in `folder` was asked for, unless it begins again; a new limit replaces all of its limits."""
    from mambabyte.checkpoints.run import is_run, newest
    from mambabyte.config import to_dict
    from mambabyte.training.snapshot import read

    if resume == "never" or not is_run(folder):
        return []
    # train.json is for people and carries no checksum; what the checkpoint says of itself does
    keys = to_dict(read(newest(folder, warn=False)).config)
    limits = ("minutes", "steps", "bytes")
    if any(limit in layer for limit in limits for layer in layers):
        keys = {key: value for key, value in keys.items() if key not in limits}
    return [keys | {"out": str(folder)}]


def _evaluators(held_out: list[str] | None) -> "list[Evaluator]":
    if held_out is None:
        return []
    from mambabyte.evaluation import evaluator

    return [evaluator(held_out)]


def _sampler(prompt: str) -> "Sampler":
    from mambabyte.generation import generate
    from mambabyte.generation.text import visible
    from mambabyte.models import SubwordLM

    def sampler(model: "ByteLM | SubwordLM") -> str:
        assert not isinstance(model, SubwordLM), "there is no sample of subwords"
        text = generate(model, prompt, max_bytes=SAMPLE_BYTES, temperature=0.8, seed=0)
        return visible(prompt + text.decode(errors="replace"))

    return sampler
