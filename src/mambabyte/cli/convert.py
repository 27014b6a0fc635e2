"""`mambabyte convert`: the same weights in another layout, or on the Hub."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mambabyte.cli.console import UsageError, complain, print_json, print_table


def convert(
    source: str,
    destination: str,
    /,
    *,
    format: Literal["auto", "hf", "mambabyte", "mamba-ssm"] = "auto",
    private: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write a model in another layout: published weights in, folders that open elsewhere out. No bit of them changes.

    Parameters
    ----------
    source
        A model folder (ours, Hugging Face Mamba, or mamba-ssm's), the folder of a training run, or hf://owner/name.
    destination
        A folder that is new or empty, or hf://owner/name to push to the Hub with a model card.
    format
        hf: stock Hugging Face Mamba. mambabyte: our own, for what stock cannot express. mamba-ssm: as published weights
        are. auto: hf where it can hold the model, else mambabyte.
    private
        Make the repository on the Hub private if it is new.
    json
        Print one JSON object, last.
    """
    from mambabyte.checkpoints.hub import SCHEME
    from mambabyte.checkpoints.model_folder import find, is_of_subwords, open_folder, write_folder
    from mambabyte.checkpoints.push import push_folder

    folder = find(source)
    if is_of_subwords(folder):
        raise UsageError(
            f"{source}: a model of subwords, which no other layout holds; copy the folder {folder} as it is"
        )
    opened = open_folder(folder)
    for note in opened.notes:
        complain(note)
    result: dict[str, Any] = {"source": str(folder), "destination": destination, "notes": list(opened.notes)}
    if destination.startswith(SCHEME):
        result["commit"] = push_folder(opened, folder, destination, private=private, layout=format)
    else:
        target = Path(destination)
        if target.is_dir() and any(target.iterdir()):
            raise UsageError(f"{target}: not empty; name a new folder")
        write_folder(target, opened.config, opened, format, trained=opened.trained)
    result["parameters"] = sum(tensor.numel() for tensor in opened.skeleton.parameters())
    result["dtype"] = str(opened.dtype()).removeprefix("torch.")
    if json:
        print_json(result)
    else:
        shown = {key: str(value) for key, value in result.items() if key != "notes"}
        print_table("converted", shown | {"parameters": f"{result['parameters']:,}"})
