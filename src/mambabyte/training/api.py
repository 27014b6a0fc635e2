"""From a config to a trained model: open the data, choose what was left open, resume or begin, and run the loop."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mambabyte import config as configs
from mambabyte.checkpoints import run as runs
from mambabyte.checkpoints.lock import locked
from mambabyte.checkpoints.publish import write_text
from mambabyte.data import Corpus, Windows
from mambabyte.models import ByteLM
from mambabyte.training import optimiser as adamw
from mambabyte.training import precision, recipe
from mambabyte.training import snapshot as snapshots
from mambabyte.training.config import TrainConfig, conflicts
from mambabyte.training.learner import Learner
from mambabyte.training.loop import Evaluator, Loop, Sampler, identity
from mambabyte.training.memory import checkpointed
from mambabyte.training.meter import Meter
from mambabyte.training.progress import Listener
from mambabyte.training.records import METRICS, JsonLines, Sink, TensorBoard
from mambabyte.training.snapshot import Position, Snapshot
from mambabyte.training.stop import StopRequest

CONFIG = "train.json"  # not config.json: that would make a model folder of the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to; `bits_per_byte` is the training loss of its last log interval, `figures` the last evaluation.

    `finished` is False when a signal stopped the run before its budget was used up.
    """

    out: Path
    checkpoint: Path
    steps: int
    bytes: int
    seconds: float
    bits_per_byte: float | None
    figures: dict[str, float]
    finished: bool
    model: ByteLM = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the model stays behind."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "model"}
        return fields | {"out": str(self.out), "checkpoint": str(self.checkpoint), "seconds": round(self.seconds, 3)}


def train(
    config: TrainConfig,
    *,
    evaluators: Sequence[Evaluator] = (),
    sampler: Sampler | None = None,
    listener: Listener | None = None,
    resume: Literal["auto", "never"] = "auto",
) -> TrainResult:
    """Train as `config` says, or go on with the run in `config.out`.

    Args:
        config: the run; see `TrainConfig`.
        evaluators: each maps the model to figures by name; called ten times over the run or every `evaluate_every`.
        sampler: maps the model to a text worth seeing; called beside the evaluators.
        listener: shows the run as it goes; None shows nothing.
        resume: "auto" goes on from the newest whole checkpoint in `config.out`, "never" moves an earlier run out of the
            way, to RUN/before-K, and begins.

    SIGTERM and Ctrl-C end the run early: it saves and returns. Raises ValueError for data, models, devices and run
    folders that do not work or do not belong together, RuntimeError when the loss diverges, OSError when the disk is
    full.
    """
    run, listener = Path(config.out), listener or Listener()
    with StopRequest() as stop, contextlib.ExitStack() as stack:
        corpus = Corpus.open(config.data)
        device = precision.choose_device(config.device)
        chosen = recipe.choose(config, device, corpus.nbytes)
        config = dataclasses.replace(config, **dataclasses.asdict(chosen))
        windows = Windows(
            corpus, context=chosen.context, batch=chosen.batch, seed=config.seed, carry=config.carry_state
        )
        run.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(run))
        stack.callback(listener.close)
        earlier = _earlier(run, resume, listener)
        snapshot = None if earlier is None else snapshots.read(earlier)
        if snapshot is not None:
            _check_same(run, config, windows, snapshot)
        runs.tidy(run, earlier)
        write_text(run / CONFIG, json.dumps(configs.to_dict(config), indent=2) + "\n")

        model = _model(config, earlier).to(device).train()
        model.compute_dtype, why = precision.choose_dtype(config.precision, device)
        if chosen.checkpoint_activations:
            stack.enter_context(checkpointed(model))
        learner, meter, position = _learner(config, chosen, model), Meter(device), Position()
        if earlier is not None and snapshot is not None:
            snapshots.restore(earlier, learner)
            meter.restore(snapshot.meter)
            position = snapshot.position
        listener.message(_introduce(config, chosen, model, corpus, device, why, position))
        loop = Loop(
            config=config,
            peak=chosen.learning_rate,
            budget=chosen.budget,
            run=run,
            learner=learner,
            windows=windows,
            meter=meter,
            position=position,
            evaluators=evaluators,
            sampler=sampler,
            sinks=_sinks(config, run, position.step, stack),
            listener=listener,
            stop=stop,
        )
        checkpoint = loop(saved_step=None if earlier is None else position.step)
        return TrainResult(
            out=run,
            checkpoint=checkpoint,
            steps=position.step,
            bytes=position.bytes,
            seconds=position.seconds,
            bits_per_byte=position.bits_per_byte,
            figures=position.figures,
            finished=loop.progress() >= 1,
            model=model.eval(),
        )


def _earlier(run: Path, resume: str, listener: Listener) -> Path | None:
    """The checkpoint to go on from, or None to begin."""
    if resume == "never":
        aside = runs.set_aside(run, (METRICS, CONFIG, "tensorboard"))
        if aside is not None:
            listener.message(f"the earlier run in {run} is now in {aside}")
        return None
    return runs.newest(run) if runs.is_run(run) else None


def _check_same(run: Path, config: TrainConfig, windows: Windows, snapshot: Snapshot) -> None:
    found = conflicts(config, snapshot.config)
    now = identity(windows)
    if now["fingerprint"] != snapshot.data["fingerprint"]:
        found.append(f"the data are not the bytes of {', '.join(snapshot.config.data)} that it was trained on")
    elif now["order"] != snapshot.data["order"]:
        found.append(f"the data come in the order {now['order']}, were in {snapshot.data['order']} (install grain)")
    if found:
        raise ValueError(
            f"{run}: holds another run: {'; '.join(found)}; choose another --out, or --resume never to begin again here"
        )


def _model(config: TrainConfig, earlier: Path | None) -> ByteLM:
    if earlier is not None:
        return snapshots.read_model(earlier)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        return ByteLM(config.architecture())


def _learner(config: TrainConfig, chosen: recipe.Recipe, model: ByteLM) -> Learner:
    optimiser = adamw.build(
        model,
        learning_rate=chosen.learning_rate,
        betas=config.betas,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
    )
    return Learner(model, optimiser, micro_batch=chosen.micro_batch, clip=config.clip, carry=config.carry_state)


def _sinks(config: TrainConfig, run: Path, step: int, stack: contextlib.ExitStack) -> list[Sink]:
    sinks: list[Sink] = [JsonLines(run, step)]
    if config.tensorboard:
        sinks.append(TensorBoard(run, step))
    for sink in sinks:
        stack.callback(sink.close)
    return sinks


def _introduce(
    config: TrainConfig,
    chosen: recipe.Recipe,
    model: ByteLM,
    corpus: Corpus,
    device: torch.device,
    why: str,
    position: Position,
) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    start = f"going on from step {position.step:,}" if position.step else "beginning"
    dtype = str(model.compute_dtype).removeprefix("torch.")
    recomputed = ", layers recomputed" if chosen.checkpoint_activations else ""
    return (
        f"{config.preset or 'model'}: {parameters:,} parameters; "
        f"{corpus.nbytes:,} bytes in {corpus.documents:,} documents\n"
        f"{device}, {dtype} ({why}){recomputed}; {chosen.batch} x {chosen.context:,} bytes a step, "
        f"{chosen.micro_batch} at once; learning rate {chosen.learning_rate:g}\n"
        f"{start}, until {chosen.budget}"
    )
