"""From a config to a trained model: open the data, choose what was left open, resume or begin, and run the loop."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mambabyte import config as configs
from mambabyte.checkpoints import run as runs
from mambabyte.checkpoints.lock import locked
from mambabyte.checkpoints.model_folder import load_any
from mambabyte.checkpoints.publish import write_text
from mambabyte.data import Batches, Corpus, Subwords, SubwordWindows, Windows
from mambabyte.models import ByteLM, ByteLMConfig, SubwordLM
from mambabyte.training import optimiser as adamw
from mambabyte.training import precision, recipe
from mambabyte.training import snapshot as snapshots
from mambabyte.training.config import TrainConfig, conflicts
from mambabyte.training.learner import Learner
from mambabyte.training.loop import Evaluator, Loop, Sampler
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
        evaluators: each maps the model (a `SubwordLM` where `config` has a tokenizer) to figures by name; called ten
            times over the run or every `evaluate_every`.
        sampler: maps the model to a text worth seeing; called beside the evaluators.
        listener: shows the run as it goes; None shows nothing.
        resume: "auto" goes on from the newest whole checkpoint in `config.out`, "never" moves an earlier run out of the
            way, to RUN/before-K, and begins.

    SIGTERM and Ctrl-C end the run early: it saves and returns. Raises ValueError for data, models, devices and run
    folders that do not work or do not belong together, RuntimeError when the loss diverges, OSError when the disk is
    full.
    """
    listener = listener or Listener()
    with StopRequest() as stop, contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        data = _open(config)
        stack.enter_context(_locked(config))
        earlier = None if resume == "never" else _newest(config)
        plan = _plan(config, data, earlier, listener)
        _claim(plan, earlier, resume, listener)
        learner, meter, position = _begin(plan) if earlier is None else _go_on(plan, earlier)
        if plan.chosen.checkpoint_activations:
            stack.enter_context(checkpointed(learner.model))
        listener.message(_introduce(plan, learner.model, position))
        loop = Loop(
            config=plan.config,
            peak=plan.chosen.learning_rate,
            budget=plan.chosen.budget,
            run=plan.run,
            learner=learner,
            trained=plan.trained(learner.model),
            windows=plan.batches(),
            data=plan.data,
            meter=meter,
            position=position,
            evaluators=evaluators,
            sampler=sampler,
            sinks=_sinks(plan, position.step, stack),
            listener=listener,
            stop=stop,
            saved_step=None if earlier is None else position.step,
        )
        checkpoint = loop()
    return TrainResult(
        out=plan.run,
        checkpoint=checkpoint,
        steps=position.step,
        bytes=position.bytes,
        seconds=position.seconds,
        bits_per_byte=position.bits_per_byte,
        figures=position.figures,
        finished=loop.progress() >= 1,
        model=learner.model.eval(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """A config with nothing left open, and what it names opened; `subwords` are None where bytes are learnt."""

    config: TrainConfig
    chosen: recipe.Recipe
    architecture: ByteLMConfig
    device: torch.device
    windows: Windows
    data: Mapping[str, str]  # what must be the same for a resumed run to read the same bytes in the same order
    subwords: Subwords | None

    @property
    def run(self) -> Path:
        return Path(self.config.out)

    def batches(self) -> Batches:
        return self.windows if self.subwords is None else SubwordWindows(self.windows, self.subwords)

    def trained(self, model: ByteLM) -> ByteLM | SubwordLM:
        return model if self.subwords is None else SubwordLM(model, self.subwords)


def _open(config: TrainConfig) -> tuple[Corpus, torch.device]:
    config.architecture()  # raises before the data are read
    return Corpus.open(config.data), precision.choose_device(config.device)


def _locked(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    run = Path(config.out)
    run.mkdir(parents=True, exist_ok=True)
    return locked(run)


def _newest(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, if the run folder has any."""
    run = Path(config.out)
    try:
        return runs.newest(run) if runs.is_run(run) else None
    except ValueError as error:
        raise ValueError(f"{error}; --resume never begins again and keeps the damaged ones") from error


def _plan(config: TrainConfig, data: tuple[Corpus, torch.device], earlier: Path | None, listener: Listener) -> _Plan:
    corpus, device = data
    subwords = _subwords(config, corpus, earlier, listener)
    architecture = config.architecture()
    if subwords is not None:  # of a small corpus fewer are learnt than were asked for
        architecture = dataclasses.replace(architecture, vocab_size=len(subwords))
    chosen = recipe.choose(config, architecture, device, corpus.nbytes)
    windows = Windows(corpus, context=chosen.context, batch=chosen.batch, seed=config.seed, carry=config.carry_state)
    return _Plan(
        config=dataclasses.replace(config, **dataclasses.asdict(chosen)),
        chosen=chosen,
        architecture=architecture,
        device=device,
        windows=windows,
        data={"fingerprint": corpus.fingerprint, "order": windows.order.name},
        subwords=subwords,
    )


def _subwords(config: TrainConfig, corpus: Corpus, earlier: Path | None, listener: Listener) -> Subwords | None:
    """The vocabulary, if there is one: that of the run, or one learnt from the data."""
    if config.tokenizer is None:
        return None
    if earlier is not None and snapshots.read(earlier).config.tokenizer is not None:
        return Subwords.load(earlier)
    subwords = Subwords.of(corpus, config.tokenizer)
    listener.message(f"{len(subwords):,} subwords learnt from the data")
    return subwords


def _claim(plan: _Plan, earlier: Path | None, resume: str, listener: Listener) -> None:
    """Leave in the run folder only what this run goes on from, that checkpoint or nothing, and what it was asked for.

    Raises ValueError if the checkpoint is of another run.
    """
    if earlier is not None:
        _check_same(plan, snapshots.read(earlier))
    if resume == "never":
        aside = runs.set_aside(plan.run, (METRICS, CONFIG, "tensorboard"))
        if aside is not None:
            listener.message(f"the earlier run in {plan.run} is now in {aside}")
    runs.tidy(plan.run, earlier)
    write_text(plan.run / CONFIG, json.dumps(configs.to_dict(plan.config), indent=2) + "\n")


def _check_same(plan: _Plan, snapshot: Snapshot) -> None:
    found = conflicts(plan.config, snapshot.config)
    if plan.data["fingerprint"] != snapshot.data["fingerprint"]:
        found.append(f"the data are not the bytes of {', '.join(snapshot.config.data)} that it was trained on")
    elif plan.data["order"] != snapshot.data["order"]:
        found.append(
            f"the data come in the order {plan.data['order']}, were in {snapshot.data['order']} (install grain)"
        )
    if found:
        raise ValueError(
            f"{plan.run}: holds another run: {'; '.join(found)}; choose another --out, or --resume never to begin "
            "again here"
        )


def _begin(plan: _Plan) -> tuple[Learner, Meter, Position]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.config.seed)
        model = ByteLM(plan.architecture)
    return _learner(plan, model), Meter(plan.device), Position()


def _go_on(plan: _Plan, earlier: Path) -> tuple[Learner, Meter, Position]:
    snapshot = snapshots.read(earlier)
    model = load_any(earlier)
    model = model.model if isinstance(model, SubwordLM) else model
    learner, meter = _learner(plan, model), Meter(plan.device)
    snapshots.restore(earlier, learner)
    meter.restore(snapshot.meter)
    return learner, meter, snapshot.position


def _learner(plan: _Plan, model: ByteLM) -> Learner:
    model.to(plan.device).train()
    model.compute_dtype, _ = precision.choose_dtype(plan.config.precision, plan.device)
    optimiser = adamw.build(
        model,
        learning_rate=plan.chosen.learning_rate,
        betas=plan.config.betas,
        epsilon=plan.config.epsilon,
        weight_decay=plan.config.weight_decay,
    )
    return Learner(
        model,
        optimiser,
        micro_batch=plan.chosen.micro_batch,
        clip=plan.config.clip,
        carry=plan.config.carry_state,
    )


def _sinks(plan: _Plan, step: int, stack: contextlib.ExitStack) -> list[Sink]:
    sinks: list[Sink] = [JsonLines(plan.run, step)]
    if plan.config.tensorboard:
        sinks.append(TensorBoard(plan.run, step))
    for sink in sinks:
        stack.callback(sink.close)
    return sinks


def _introduce(plan: _Plan, model: ByteLM, position: Position) -> str:
    chosen, corpus = plan.chosen, plan.windows.corpus
    parameters = sum(p.numel() for p in model.parameters())
    dtype, why = precision.choose_dtype(plan.config.precision, plan.device)
    recomputed = ", layers recomputed" if chosen.checkpoint_activations else ""
    start = f"going on from step {position.step:,}" if position.step else "beginning"
    return (
        f"{plan.config.preset or 'model'}: {parameters:,} parameters; "
        f"{corpus.nbytes:,} bytes in {corpus.documents:,} documents\n"
        f"{plan.device}, {str(dtype).removeprefix('torch.')} ({why}){recomputed}; "
        f"{chosen.batch} x {chosen.context:,} bytes a step, {chosen.micro_batch} at once; "
        f"learning rate {chosen.learning_rate:g}\n"
        f"{start}, until {chosen.budget}"
    )
