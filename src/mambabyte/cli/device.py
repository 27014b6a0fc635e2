"""Where does a verb run its model? On the device that was named, or on the best one there is."""

from typing import TYPE_CHECKING

from mambabyte.cli.console import UsageError

if TYPE_CHECKING:
    import torch

    from mambabyte.models import ByteLM


def pick_device(name: str) -> "torch.device":
    """The device of that name; "auto" is a CUDA device where torch finds one, else the CPU.

    Raises UsageError for a device that does not exist here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is no device; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(f"--device {name}: torch finds {count} CUDA devices here; try --device cpu")
    return device


def open_model(model: str, device: str) -> "ByteLM":
    """The model of a folder, on a device by name, ready to be read from."""
    from mambabyte.checkpoints import load

    where = pick_device(device)
    return load(model).to(where).eval()
