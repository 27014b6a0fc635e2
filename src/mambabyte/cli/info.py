"""`mambabyte info`: size, cost and pattern of a model or preset."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mambabyte.cli.console import UsageError, print_json, print_table, printable
from mambabyte.cli.prepare import rows as set_rows

if TYPE_CHECKING:
    from mambabyte.models import ByteLMConfig


def info(model: str | None = None, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Size, cost and pattern of a model or preset, or what a prepared set holds; every preset when none is named.

    Parameters
    ----------
    model
        A model folder, the folder of a training run, a prepared set, or the name of a preset.
    json
        Print one JSON object, last.
    """
    from mambabyte.data import describe as describe_set
    from mambabyte.data import is_set
    from mambabyte.models import PRESETS

    if model is None:
        presets = {name: describe(config) for name, config in PRESETS.items()}
        if json:
            print_json({"presets": presets})
        else:
            print_table("presets", {name: _summary(entry) for name, entry in presets.items()})
        return
    if is_set(Path(model)):
        contents = describe_set(Path(model))
        if json:
            print_json({"set": model, **contents})
        else:
            print_table(printable(model), set_rows(contents))
        return
    described = _find(model)
    if json:
        print_json({"model": model, **described})
    else:
        print_table(model, _rows(described))


def describe(config: "ByteLMConfig") -> dict[str, Any]:
    """What an architecture is and costs, as JSON values."""
    import dataclasses

    from mambabyte.config import to_dict
    from mambabyte.models import model_cost

    cost = dataclasses.asdict(model_cost(config))
    return {**cost, "pattern": list(config.pattern), "config": to_dict(config)}


def _find(name: str) -> dict[str, Any]:
    from mambabyte.config import unknown
    from mambabyte.models import PRESETS

    if Path(name).exists() or name.startswith("hf://"):
        return _describe_folder(name)
    if name not in PRESETS:
        raise UsageError(f"{name} is no folder here, and {unknown('preset', name, PRESETS)}")
    return describe(PRESETS[name])


def _describe_folder(path: str) -> dict[str, Any]:
    """A model folder, the newest whole checkpoint of a run, or a model on the Hub; the weights are not read."""
    from mambabyte.checkpoints.model_folder import find, is_of_subwords, open_folder

    folder = find(path)
    opened = open_folder(folder)
    return {
        **describe(opened.config),
        "reads": "subwords" if is_of_subwords(folder) else "bytes",
        "folder": str(folder),
        "dtype": str(opened.dtype()).removeprefix("torch."),
        "trained_dtype": None if opened.trained is None else str(opened.trained).removeprefix("torch."),
        "bytes_on_disk": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "training": _training(folder),
    }


def _training(folder: Path) -> dict[str, Any] | None:
    """How far the run that wrote a checkpoint had come; None for a plain model folder."""
    import dataclasses

    from mambabyte.training import snapshot

    if not (folder / snapshot.JSON).exists():
        return None
    return dataclasses.asdict(snapshot.read(folder).position)


def _rows(described: Mapping[str, Any]) -> dict[str, str]:
    """For people."""
    rows = {
        "parameters": f"{described['parameters']:,}",
        "FLOPs per byte": f"{described['flops_per_byte']:,} (forward; training is three times as much)",
        "state": f"{described['state_bytes']:,} bytes a sequence, in float32",
        "pattern": fold(described["pattern"]),
        "width": str(described["config"]["d_model"]),
    }
    if described.get("reads") == "subwords":
        count = described["config"]["vocab_size"]
        rows["reads"] = f"{count:,} subwords, not bytes: it drafts for a byte model (mambabyte generate --drafter)"
        rows["FLOPs per subword"] = rows.pop("FLOPs per byte")
    if "folder" in described:
        rows["folder"] = described["folder"]
        rows["on disk"] = f"{described['bytes_on_disk']:,} bytes, weights in {described['dtype']}"
    if training := described.get("training"):
        bits = "" if training["bits_per_byte"] is None else f", {training['bits_per_byte']:.3f} bits per byte"
        rows["training"] = f"step {training['step']:,}, {training['bytes']:,} bytes{bits}"
    if dtype := described.get("trained_dtype"):
        rows["trained in"] = dtype
    return rows


def _summary(described: Mapping[str, Any]) -> str:
    million = described["parameters"] / 1e6
    return f"{million:8,.1f}M parameters, width {described['config']['d_model']}, {fold(described['pattern'])}"


def fold(pattern: list[str]) -> str:
    """A pattern as its shortest repeated part: "(mamba mlp) x 8"."""
    for length in range(1, len(pattern) // 2 + 1):
        times, rest = divmod(len(pattern), length)
        if rest == 0 and pattern[:length] * times == pattern:
            part = " ".join(pattern[:length])
            return f"{part} x {times}" if length == 1 else f"({part}) x {times}"
    return " ".join(pattern)
