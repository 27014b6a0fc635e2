"""The loop: step, log, evaluate, save, until the budget is used up or someone asks to stop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from mambabyte.checkpoints import run as runs
from mambabyte.data import Batch, Batches, prefetch
from mambabyte.models import ByteLM, SubwordLM
from mambabyte.training import snapshot as snapshots
from mambabyte.training.config import TrainConfig
from mambabyte.training.learner import Learner
from mambabyte.training.meter import Meter
from mambabyte.training.progress import Listener, Now
from mambabyte.training.records import Record, Sink
from mambabyte.training.schedule import Budget, learning_rate_factor
from mambabyte.training.snapshot import Position, Snapshot
from mambabyte.training.stop import StopRequest

Evaluator = Callable[[ByteLM | SubwordLM], Mapping[str, float]]  # figures by name
Sampler = Callable[[ByteLM | SubwordLM], str]  # text that is safe to print

EVALUATIONS = 10  # over a run, unless evaluate_every says otherwise
EVALUATION_SHARE = 0.1  # of the time of a run that is limited by time; the first and the last are always made
# Between two looks at the meter. A GPU has nothing to do while the next step is launched after one: four looks a second
# cost 6 % of the steps of a 110M model on an H200.
GLANCE_SECONDS = {"cpu": 0.25, "cuda": 2.0}


@dataclasses.dataclass(kw_only=True, eq=False)
class Loop:
    """One process training one model; everything it needs is handed in, so every part can be called alone.

    `trained` is the learner's model as evaluators see it and checkpoints hold it; `peak` is the learning rate before
    the schedule; `data` identifies the bytes and their order, as they were at the
    start; `saved_step` is the step of the checkpoint that the run goes on from.
    """

    config: TrainConfig
    peak: float
    budget: Budget
    run: Path
    learner: Learner
    trained: ByteLM | SubwordLM
    windows: Batches
    data: Mapping[str, str]
    meter: Meter
    position: Position
    evaluators: Sequence[Evaluator]
    sampler: Sampler | None
    sinks: Sequence[Sink]
    listener: Listener
    stop: StopRequest
    saved_step: int | None

    def __post_init__(self) -> None:
        self.learning_rate = 0.0
        self._before = self.position.seconds
        self._began = self._saved_at = self._glanced = time.monotonic()
        self._logged = (self.position.bytes, self.position.seconds)
        # A budget or interval that has changed since counts evaluations differently.
        self.position.evaluations = min(self.position.evaluations, self._evaluations_due())

    def __call__(self) -> Path:
        """Train to the end of the budget or a stop; returns the last checkpoint.

        Raises RuntimeError when the loss is no longer finite.
        """
        with contextlib.closing(prefetch(self.windows, self.position.step)) as batches:
            while True:
                finished = self.progress() >= 1
                if self.meter.steps and (finished or self.position.step % self.config.log_every == 0):
                    self.log()
                self.evaluate_if_due()
                ends = finished or self.stop.requested
                if ends or self.save_is_due():
                    self.save()
                if ends:
                    return self.run / f"step-{self.position.step}"
                self.step(self._next(batches))

    def progress(self) -> float:
        """The part of the budget that is used."""
        return self.budget.progress(self.position.step, self.position.bytes, self.position.seconds)

    def step(self, batch: Batch) -> None:
        """One update, unless a stop is asked for before it is complete."""
        factor = learning_rate_factor(
            self.position.step,
            self.progress(),
            warmup=self.config.warmup,
            final=self.config.final_learning_rate,
        )
        self.learning_rate = self.peak * factor
        done = self.learner.step(batch, self.learning_rate, abandon=lambda: self.stop.requested)
        if done is None:
            return
        self.meter.add(done.nats, done.bytes, done.gradient_norm)
        self.position.step += 1
        self.position.bytes += done.bytes
        self._tick()
        self._glance()

    def log(self) -> None:
        """A record of the interval that ends here. Raises RuntimeError if a loss or gradient in it was not finite."""
        self._check_finite()
        self._tick()
        self.position.bits_per_byte = self.meter.bits_per_byte()
        self._record(
            {
                "event": "train",
                "step": self.position.step,
                "bytes": self.position.bytes,
                "seconds": round(self.position.seconds, 3),
                "progress": self.progress(),
                "bits_per_byte": self.position.bits_per_byte,
                "gradient_norm": self.meter.gradient_norm(),
                "learning_rate": self.learning_rate,
                "bytes_per_second": round(self._speed()),
            }
        )
        self._logged = (self.position.bytes, self.position.seconds)
        self.meter.clear()

    def evaluate_if_due(self) -> None:
        """Call evaluators and sampler when their time has come; a stop throws away what is not finished."""
        due = self._evaluations_due()
        if due <= self.position.evaluations or not (self.evaluators or self.sampler):
            return
        if self._evaluations_cost_too_much():
            self.position.evaluations = due
            return
        began = time.monotonic()
        made = self.stop.attempt(self._evaluate)
        if made is None:
            return
        figures, text = made
        self._tick()
        self.position.evaluation_seconds += time.monotonic() - began
        at = {"step": self.position.step, "bytes": self.position.bytes, "seconds": round(self.position.seconds, 3)}
        self.position.evaluations, self.position.figures = due, figures
        if figures:
            self._record({"event": "evaluation", **at, **figures})
        if text is not None:
            self._record({"event": "sample", **at, "text": text})

    def save_is_due(self) -> bool:
        """Whether the config asks for a checkpoint here."""
        every, step = self.config.save_every, self.position.step
        on_step = every is not None and step > 0 and step % every == 0
        return on_step or time.monotonic() - self._saved_at >= 60 * self.config.save_minutes

    def save(self) -> None:
        """Publish a checkpoint of this step, unless it is there. Raises OSError when the disk is full."""
        self._saved_at = time.monotonic()
        if self.saved_step == self.position.step:
            return
        self._check_finite()
        self._tick()
        for sink in self.sinks:
            sink.flush()
        snapshot = Snapshot(config=self.config, data=self.data, position=self.position, meter=self.meter.to_dict())
        runs.save(
            self.run,
            self.position.step,
            lambda folder: snapshots.write(folder, self.trained, self.learner, snapshot),
            keep=self.config.keep,
        )
        self.saved_step = self.position.step

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except (ValueError, OSError):  # a file was changed or cannot be read: what was learned so far is whole
            self.save()
            raise

    def _evaluations_due(self) -> int:
        every, step, progress = self.config.evaluate_every, self.position.step, self.progress()
        if every is None:
            return int(progress * EVALUATIONS)
        return step // every if progress < 1 else -(-step // every)

    def _evaluations_cost_too_much(self) -> bool:
        allowed = EVALUATION_SHARE * self.position.seconds
        return self.budget.minutes is not None and self.progress() < 1 and self.position.evaluation_seconds > allowed

    def _evaluate(self) -> tuple[dict[str, float], str | None]:
        with _reading(self.learner.model, self.learner.device):
            figures = {name: value for evaluator in self.evaluators for name, value in evaluator(self.trained).items()}
            return figures, self.sampler(self.trained) if self.sampler else None

    def _check_finite(self) -> None:
        if self.meter.is_finite():
            return
        saved = "" if self.saved_step is None else f"; {self.run}/step-{self.saved_step} is from before"
        raise RuntimeError(
            f"the loss or its gradient became infinite or not a number in the {self.meter.steps} steps before step "
            f"{self.position.step}{saved}; train with a lower learning rate than {self.peak:g}"
        )

    def _tick(self) -> None:
        self.position.seconds = self._before + time.monotonic() - self._began

    def _speed(self) -> float:
        bytes, seconds = self._logged
        return (self.position.bytes - bytes) / max(self.position.seconds - seconds, 1e-9)

    def _glance(self) -> None:
        now = time.monotonic()
        unheard = type(self.listener).step is Listener.step
        if unheard or now - self._glanced < GLANCE_SECONDS[self.learner.device.type]:
            return
        self._glanced = now
        fresh, last = self.meter.bits_per_byte(), self.position.bits_per_byte
        weight = 1.0 if last is None else min(1.0, self.meter.steps / self.config.log_every)
        self.listener.step(
            Now(
                step=self.position.step,
                bytes=self.position.bytes,
                seconds=self.position.seconds,
                progress=self.progress(),
                bits_per_byte=weight * fresh + (1 - weight) * (last or 0.0),
                learning_rate=self.learning_rate,
                bytes_per_second=self._speed(),
            )
        )

    def _record(self, record: Record) -> None:
        for sink in self.sinks:
            sink.write(record)
        self.listener.record(record)


@contextlib.contextmanager
def _reading(model: ByteLM, device: torch.device) -> Iterator[None]:
    """For evaluators and samplers: no gradients, and no random number of theirs reaches the training."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train()
