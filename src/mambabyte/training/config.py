"""What a user asks of a training run: one flat config, the same keys in TOML, on the command line and in Python."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mambabyte import config as configs
from mambabyte.data.subwords import FEWEST, MOST
from mambabyte.models import ByteLMConfig, preset

# What is computed; the other keys say where, for how long and what is reported, and may differ when a run goes on.
DEFINING = (
    *("tokenizer", "batch", "context", "carry_state", "seed"),
    *("learning_rate", "betas", "epsilon", "weight_decay", "clip", "warmup", "final_learning_rate"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. A field that is None is chosen for the model's size and the machine; see `recipe.choose`.

    What is trained on what:
        preset, model: the architecture by name or in full; one of the two.
        tokenizer: how many subwords to learn from the data. The model is then one of those subwords, a drafter for a
            byte model; sizes and figures stay in bytes.
        data: files, folders and globs; every file is a document.
        out: the run folder.
    How long (the first limit reached ends the run; none means 90 bytes a parameter, the paper's ratio):
        minutes of wall clock, evaluation and saving included; steps; bytes scored.
    Batches:
        batch, context: sequences a step and bytes a sequence.
        micro_batch: sequences a forward and backward pass; gradients accumulate over a batch.
        carry_state: each row reads on where it stopped a step ago, with its state but not its gradient.
        seed: of the initial weights and the order of windows.
    Optimiser:
        learning_rate, betas, epsilon, weight_decay: AdamW.
        clip: largest global norm of the gradient.
        warmup: steps of linear warm-up (at most a twentieth of the run).
        final_learning_rate: where the cosine ends, as a fraction of learning_rate.
    Machine:
        device "auto", "cpu", "cuda" or "cuda:N"; precision of the activations (weights are always float32);
        checkpoint_activations recomputes each layer in the backward pass: less memory, a third more time.
    Records:
        log_every, evaluate_every, save_every: in steps; None evaluates ten times over the run.
        save_minutes: a checkpoint at least so often; keep: how many stay.
        tensorboard: event files in RUN/tensorboard beside metrics.jsonl.
    """

    preset: str | None = None
    model: ByteLMConfig | None = None
    tokenizer: int | None = None
    data: tuple[str, ...] = ()
    out: str = "run"

    minutes: float | None = None
    steps: int | None = None
    bytes: int | None = None

    batch: int | None = None
    context: int | None = None
    micro_batch: int | None = None
    carry_state: bool = False
    seed: int = 0

    learning_rate: float | None = None
    betas: tuple[float, ...] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 0.1
    warmup: int = 500
    final_learning_rate: float = 0.1

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_activations: bool | None = None

    log_every: int = 10
    evaluate_every: int | None = None
    save_every: int | None = None
    save_minutes: float = 10.0
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "bytes", "batch", "context", "micro_batch", "log_every", "evaluate_every", "save_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("tokenizer", self.tokenizer, FEWEST)
        if self.tokenizer is not None and self.tokenizer > MOST:
            raise ValueError(f"tokenizer must be at most {MOST:,}, got {self.tokenizer:,}")
        if self.tokenizer is not None and self.carry_state:
            raise ValueError("carry_state needs rows of equal length, and a tokenizer makes them differ; leave one out")
        _at_least("keep", self.keep, 1)
        _at_least("warmup", self.warmup, 0)
        for name in ("minutes", "learning_rate", "epsilon", "clip", "save_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate is a fraction from 0 to 1, got {self.final_learning_rate}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {list(self.betas)}")

    def architecture(self) -> ByteLMConfig:
        """The model's config, with room for the subwords of a tokenizer.

        Raises ValueError unless exactly one of preset and model says it.
        """
        named = self._named()
        return named if self.tokenizer is None else dataclasses.replace(named, vocab_size=self.tokenizer)

    def _named(self) -> ByteLMConfig:
        if (self.preset is None) == (self.model is None):
            raise ValueError("say which model to train: a preset by name, or a [model] table in the config (not both)")
        return preset(self.preset) if self.preset is not None else self.model  # type: ignore[return-value]


def read_config(path: Path) -> dict[str, Any]:
    """The keys that a TOML file, or the train.json of an earlier run, sets. Raises ValueError for an unknown key."""
    data = configs.load_json(path) if path.suffix == ".json" else configs.load_toml(path)
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in data:
        if key not in known:
            raise ValueError(configs.unknown(f"{path}: key", key, known))
    return data


def merge(*layers: Mapping[str, Any], where: str = "config") -> TrainConfig:
    """The config that the layers make, later ones over earlier ones; naming a preset drops an earlier model, and back.

    Raises ValueError for an unknown key or a value of the wrong type.
    """
    keys: dict[str, Any] = {}
    for layer in layers:
        if layer.get("preset") is not None:
            keys.pop("model", None)
        if layer.get("model") is not None:
            keys.pop("preset", None)
        keys |= layer
    return configs.from_dict(TrainConfig, keys, where)


def conflicts(now: TrainConfig, before: TrainConfig) -> list[str]:
    """Phrases "key is X, was Y" for what defines the computation and differs."""
    found = []
    if now._named() != before._named():
        found.append(f"the model is {now.preset or 'another'}, was {before.preset or 'another'}")
    for name in DEFINING:
        new, old = getattr(now, name), getattr(before, name)
        if new != old:
            new, old = ("not given" if value is None else value for value in (new, old))
            found.append(f"{name} is {new}, was {old}")
    return found


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
