"""The model card: what a model is, how to run it, and how the run that made it went, as Markdown for the Hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mambabyte.models import ByteLMConfig, model_cost

TRAINING = "training.json"  # what a checkpoint of a run says about it; absent in a plain model folder
_FRONT = """---
library_name: {library}
pipeline_tag: text-generation
tags:
- mamba
- byte-level
- mambabyte
---
"""
_STOCK = """
Transformers opens it as well, with nothing else installed:

```python
from transformers import pipeline

pipeline("text-generation", model="{repository}")("def main(", max_new_tokens=200)
```
"""
_OWN = """
Transformers opens it after `import mambabyte.hf`.
"""


def model_card(repository: str, config: ByteLMConfig, *, stock: bool, training: Mapping[str, Any] | None) -> str:
    """The text of README.md for the model `repository`.

    `stock`: whether stock transformers opens the folder. `training`: what its checkpoint says of its run, if any.
    """
    parts = [
        _FRONT.format(library="transformers" if stock else "mambabyte"),
        f"# {repository.rpartition('/')[2]}\n\n",
        f"A language model on raw bytes with {model_cost(config).parameters:,} parameters.\n\n",
        _table(_architecture(config)),
        "\n## Use\n\n```python\nimport mambabyte as mb\n\n",
        f'model = mb.load("hf://{repository}")\nprint(mb.generate(model, b"def main(", max_bytes=200))\n```\n',
        (_STOCK if stock else _OWN).format(repository=repository),
    ]
    if training is not None:
        parts += ["\n## Training\n\n", _table(_run(training)), *_recipe(training)]
    return "".join(parts)


def _architecture(config: ByteLMConfig) -> Iterator[tuple[str, str]]:
    kinds = dict.fromkeys(config.pattern)
    yield "layers", ", ".join(f"{config.pattern.count(name)} {name}" for name in kinds)
    yield "width", str(config.d_model)
    yield (
        "norm",
        {"rms": "RMSNorm", "layer": "LayerNorm"}[config.norm.kind] + (" with bias" if config.norm.bias else ""),
    )
    yield "head", "tied to the embedding" if config.tied_head else "its own weights"
    yield "vocabulary", f"{config.vocab_size} ids; 0 to 255 are bytes"


def _run(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    position, asked = training.get("position", {}), training.get("config", {})
    if asked.get("data"):  # names only: the folders of the author's machine are nobody's business
        yield "data", ", ".join(Path(path).name for path in asked["data"])
    yield "bytes read", f"{position.get('bytes', 0):,}"
    yield "steps", f"{position.get('step', 0):,}"
    yield "time", f"{position.get('seconds', 0.0) / 3600:.2f} hours"
    if position.get("bits_per_byte") is not None:
        yield "bits per byte, training, at the end", f"{position['bits_per_byte']:.3f}"
    for name, value in position.get("figures", {}).items():  # of the last evaluation, on files held out by --held-out
        yield f"{name.replace('_', ' ')}, held-out files", f"{value:.3f}"


def _recipe(training: Mapping[str, Any]) -> list[str]:
    private = ("data", "out", "model")
    kept = {key: value for key, value in training.get("config", {}).items() if key not in private and value is not None}
    return ["\nThe whole recipe:\n\n```json\n", json.dumps(kept, indent=2), "\n```\n"] if kept else []


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "".join(["| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in rows)])
