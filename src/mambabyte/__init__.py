"""mambabyte: language models on raw bytes with selective state spaces.

    import mambabyte as mb
    model = mb.ByteLM.from_preset("mambabyte-tiny")
    logits, state = model(ids)
    text = mb.generate(model, b"def main(", max_bytes=200)
    report = mb.evaluate(model, ["file.txt"])

Nothing is imported until it is used: `import mambabyte` touches no device, network, environment or disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# ByteLM and its state come from checkpoints, which gives them `save`: models may not import what writes files.
_HOMES = {
    "ByteLM": "mambabyte.checkpoints",
    "ByteLMConfig": "mambabyte.models",
    "ByteLMState": "mambabyte.checkpoints",
    "PRESETS": "mambabyte.models",
    "SubwordLM": "mambabyte.models",
    "Subwords": "mambabyte.data",
    "evaluate": "mambabyte.evaluation",
    "generate": "mambabyte.generation",
    "load": "mambabyte.checkpoints",
    "load_any": "mambabyte.checkpoints",
    "load_state": "mambabyte.checkpoints",
    "model_cost": "mambabyte.models",
    "stream": "mambabyte.generation",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from mambabyte.checkpoints import ByteLM as ByteLM
    from mambabyte.checkpoints import ByteLMState as ByteLMState
    from mambabyte.checkpoints import load as load
    from mambabyte.checkpoints import load_any as load_any
    from mambabyte.checkpoints import load_state as load_state
    from mambabyte.data import Subwords as Subwords
    from mambabyte.evaluation import evaluate as evaluate
    from mambabyte.generation import generate as generate
    from mambabyte.generation import stream as stream
    from mambabyte.models import PRESETS as PRESETS
    from mambabyte.models import ByteLMConfig as ByteLMConfig
    from mambabyte.models import SubwordLM as SubwordLM
    from mambabyte.models import model_cost as model_cost


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mambabyte' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
