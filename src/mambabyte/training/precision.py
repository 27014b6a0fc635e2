"""Where the arithmetic happens and in which dtype: float32 masters, bfloat16 activations where that is faster."""

import torch


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here. Raises ValueError when there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices; try cpu")
    return device


def choose_dtype(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the activations and the reason for it, as a phrase.

    "auto" is bfloat16 on a GPU of compute capability 8.0 or more and on a CPU whose matrix units multiply it.
    """
    if precision != "auto":
        return getattr(torch, precision), "as asked"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        dtype = torch.bfloat16 if major >= 8 else torch.float32
        return dtype, f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}"
    if _cpu_multiplies_bfloat16():
        return torch.bfloat16, "this CPU has AMX tiles for it"
    return torch.float32, "this CPU has no AMX tiles for bfloat16"


def _cpu_multiplies_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # the public get_capabilities came in torch 2.12
    return bool(probe and probe())
