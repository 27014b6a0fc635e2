"""A whole training run at one step, as the files of a checkpoint: nothing a resumed run needs is anywhere else.

Beside the model folder's own files: training.json (config, identity of the data, position, meter) and
training.safetensors (the optimiser's moments, the carried state, the random number generators).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mambabyte import config as configs
from mambabyte.checkpoints.model_folder import save_model
from mambabyte.checkpoints.weights import save_tensors
from mambabyte.models import ByteLM, ByteLMState, SubwordLM
from mambabyte.training import optimiser as adamw
from mambabyte.training.config import TrainConfig
from mambabyte.training.learner import Learner

JSON, TENSORS = "training.json", "training.safetensors"
FORMAT = 1


@dataclasses.dataclass(kw_only=True)
class Position:
    """How far a run is. `evaluations` counts the evaluations due so far that were made; `bits_per_byte` and `figures`
    are the last that were logged."""

    step: int = 0
    bytes: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    bits_per_byte: float | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint holds beside the model and the tensors."""

    config: TrainConfig
    data: Mapping[str, str]  # the corpus' fingerprint and the name of the permutation that orders it
    position: Position
    meter: dict[str, Any]


def write(folder: Path, trained: ByteLM | SubwordLM, learner: Learner, snapshot: Snapshot) -> None:
    """Fill a checkpoint folder; `trained` is the learner's model as it is to be opened again.

    Raises OSError when the disk is full.
    """
    save_model(trained, folder)
    save_tensors(folder / TENSORS, _tensors(learner))
    data = {
        "format": FORMAT,
        "torch": torch.__version__,
        "config": configs.to_dict(snapshot.config),
        "data": dict(snapshot.data),
        "position": dataclasses.asdict(snapshot.position),
        "meter": snapshot.meter,
    }
    (folder / JSON).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Snapshot:
    """The JSON part of a checkpoint. Raises ValueError if a newer version of this package wrote it."""
    data = configs.load_json(folder / JSON)
    if data.get("format") != FORMAT:
        raise ValueError(f"{folder / JSON}: format {data.get('format')!r} is not the {FORMAT} that this version reads")
    return Snapshot(
        config=configs.from_dict(TrainConfig, data["config"], str(folder / JSON)),
        data=data["data"],
        position=Position(**data["position"]),
        meter=data["meter"],
    )


def restore(folder: Path, learner: Learner) -> None:
    """Put moments and carried state back as they were. Nothing in training draws random numbers after the start."""
    tensors = load_file(folder / TENSORS)
    groups: dict[str, dict[str, Tensor]] = {"optimiser": {}, "state": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    adamw.load_state(learner.model, learner.optimiser, groups["optimiser"])
    learner.state = _state(learner.model, groups["state"])


def _tensors(learner: Learner) -> dict[str, Tensor]:
    tensors = {f"optimiser/{name}": t for name, t in adamw.named_state(learner.model, learner.optimiser)}
    if learner.state is not None:
        tensors |= {f"state/{name}": t for name, t in learner.state.named_tensors()}
    return tensors


def _state(model: ByteLM, tensors: dict[str, Tensor]) -> ByteLMState | None:
    if not tensors:
        return None
    empty = model.init_state(1)
    names = iter(name for name, _ in empty.named_tensors())
    return empty.map(lambda t: tensors[next(names)].to(t.device, t.dtype, copy=True))
