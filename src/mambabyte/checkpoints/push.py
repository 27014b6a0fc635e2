"""A model sent to the Hub as a folder that others open, with its card."""

import tempfile
from pathlib import Path

from mambabyte.checkpoints import hf_layout
from mambabyte.checkpoints.hub import CARD, SCHEME, Reference, upload
from mambabyte.checkpoints.layout import CONFIG
from mambabyte.checkpoints.model_card import TRAINING, model_card
from mambabyte.checkpoints.model_folder import Opened, find, open_folder, save_model, write_folder
from mambabyte.config import load_json
from mambabyte.models import ByteLM


def push_model(
    model: ByteLM, repository: str, *, run: str | Path | None = None, private: bool = False, layout: str = "auto"
) -> str:
    """Send `model` to the Hub as "owner/name[@branch]"; returns the commit's address.

    `run`, the run or model folder it comes from, fills the card with how it was trained. Raises ValueError if the name
    is none, if the Hub cannot be reached or refuses, or if the layout cannot hold the model.
    """
    with tempfile.TemporaryDirectory(prefix="mambabyte-") as name:
        save_model(model, name, layout=layout)
        return _send(Path(name), repository, None if run is None else find(run), private=private)


def push_folder(opened: Opened, source: Path, repository: str, *, private: bool = False, layout: str = "auto") -> str:
    """As `push_model`, tensor by tensor from a model folder: dtypes stay as stored."""
    with tempfile.TemporaryDirectory(prefix="mambabyte-") as name:
        write_folder(Path(name), opened.config, opened, layout, trained=opened.trained)
        return _send(Path(name), repository, source, private=private)


def _send(folder: Path, repository: str, source: Path | None, *, private: bool) -> str:
    reference = Reference.parse(repository if repository.startswith(SCHEME) else f"{SCHEME}{repository}")
    about = None if source is None else source / TRAINING
    training = load_json(about) if about is not None and about.is_file() else None
    stock = load_json(folder / CONFIG).get("model_type") == hf_layout.MODEL_TYPE
    card = model_card(reference.repository, open_folder(folder).config, stock=stock, training=training)
    (folder / CARD).write_text(card, encoding="utf-8")
    return upload(folder, reference, private=private)
