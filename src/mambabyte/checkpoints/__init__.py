"""Checkpoints: model folders in layouts that open everywhere, states of sessions, and crash-safe training checkpoints.

Importing this package gives `ByteLM` its `save` and `push` and `ByteLMState` its `save`: models do not know files.
"""

from mambabyte.checkpoints.model_folder import load as load
from mambabyte.checkpoints.model_folder import load_any as load_any
from mambabyte.checkpoints.model_folder import save_model as save_model
from mambabyte.checkpoints.push import push_model as push_model
from mambabyte.checkpoints.state_file import load_state as load_state
from mambabyte.checkpoints.state_file import save_state as save_state
from mambabyte.models import ByteLM as ByteLM
from mambabyte.models import ByteLMState as ByteLMState

ByteLM.save = save_model  # type: ignore[attr-defined]
ByteLM.push = push_model  # type: ignore[attr-defined]
ByteLMState.save = save_state  # type: ignore[attr-defined]
