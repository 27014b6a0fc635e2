"""Checkpoints: model folders in layouts that open everywhere, states of sessions, and crash-safe training checkpoints.

Importing this package gives `ByteLM` and `ByteLMState` their `save`, since models do not know about files.
"""

from pathlib import Path

from mambabyte.checkpoints.model_folder import load as load
from mambabyte.checkpoints.model_folder import save_model as save_model
from mambabyte.models import ByteLM as ByteLM
from mambabyte.models import ByteLMState as ByteLMState


def save_state(state: ByteLMState, path: str | Path, model: ByteLM) -> None:
    """Write what `model` has read so far to a file; see `mambabyte.checkpoints.state_file`."""
    from mambabyte.checkpoints import state_file

    state_file.save_state(state, path, model)


def load_state(path: str | Path, model: ByteLM) -> ByteLMState:
    """Read a state that `save_state` wrote for the same model; see `mambabyte.checkpoints.state_file`."""
    from mambabyte.checkpoints import state_file

    return state_file.load_state(path, model)


ByteLM.save = save_model  # type: ignore[attr-defined]
ByteLMState.save = save_state  # type: ignore[attr-defined]
