"""Where does a verb run its model? On the device that was named, or on the best one there is."""

from typing import TYPE_CHECKING

from mambabyte.cli.console import UsageError

if TYPE_CHECKING:
    import torch

    from mambabyte.models import ByteLM, SubwordLM


def pick_device(name: str) -> "torch.device":
    """The device of that name; "auto" is a CUDA device where torch finds one, else the CPU.

    Raises UsageError for a device that does not exist here.
    """
    from mambabyte.training.precision import choose_device

    try:
        return choose_device(name)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def open_model(model: str, device: str) -> "ByteLM":
    """The model of a folder, on a device by name, ready to be read from. Raises ValueError for one of subwords."""
    from mambabyte.checkpoints import load

    where = pick_device(device)
    return load(model).to(where).eval()


def open_any(model: str, device: str) -> "ByteLM | SubwordLM":
    """As `open_model`, of bytes or of subwords."""
    from mambabyte.checkpoints import load_any
    from mambabyte.models import SubwordLM

    where = pick_device(device)
    opened = load_any(model)
    (opened.model if isinstance(opened, SubwordLM) else opened).to(where).eval()
    return opened
