"""The checkpoints of a training run: RUN/step-N/ folders, each published whole, the newest valid one found by checksum.

A checkpoint is a model folder (config.json, model.safetensors, tokenizer.json) with what training needs beside it. This
module knows when a checkpoint is whole and which one counts; what lies in it is the writer's business.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from mambabyte.checkpoints.publish import TEMPORARY, damage, discard, publish

logger = logging.getLogger("mambabyte")
_STEP = re.compile(r"step-(\d+)")


def steps(run: Path) -> dict[int, Path]:
    """The checkpoint folders of a run by step, in ascending order, valid or not."""
    found = {int(match[1]): path for path in _folders(run) if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items()))


def is_run(folder: Path) -> bool:
    """Whether `folder` holds checkpoints."""
    return bool(steps(folder))


def newest(run: Path, *, warn: bool = True) -> Path:
    """The checkpoint folder to load: the newest whose files are all as they were written.

    Damaged ones are passed over with a warning that names the file, unless the caller only looks ahead (`warn` False).
    Raises ValueError if `run` has no checkpoint, or none that is whole.
    """
    found = steps(run)
    if not found:
        raise ValueError(f"{run}: neither a model (no config.json) nor a training run (no step-N/) is in this folder")
    reasons: list[str] = []
    for folder in reversed(found.values()):
        reason = damage(folder)
        if reason is None:
            if reasons and warn:
                logger.warning("%s is used instead", folder)
            return folder
        if warn:
            logger.warning("damaged checkpoint passed over: %s", reason)
        reasons.append(reason)
    raise ValueError(f"{run}: no checkpoint is whole: {'; '.join(reasons)}")


def save(run: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Publish RUN/step-N/ with what `write(folder)` puts into it, then remove all but the newest `keep` checkpoints.

    Raises OSError (a full disk, say) with every older checkpoint untouched.
    """
    assert keep >= 1
    folder = run / f"step-{step}"
    publish(folder, write)
    for old in list(steps(run).values())[:-keep]:
        discard(old)
    return folder


def tidy(run: Path, resumed: Path | None) -> None:
    """Clear what dead processes left half written, and set aside the checkpoints newer than the one resumed from.

    Those newer ones are damaged, or `resumed` would not be the one; they become RUN/damaged-step-N/.
    """
    for path in _folders(run):
        if path.name.endswith(TEMPORARY):
            discard(path)
    for step, path in steps(run).items():
        if resumed is not None and step > step_of(resumed):
            target = run / f"damaged-{path.name}"
            discard(target)
            path.rename(target)


def set_aside(run: Path, names: tuple[str, ...]) -> Path | None:
    """Move every checkpoint, and the files called `names`, into a new RUN/before-K/; None if there are none."""
    old = [*steps(run).values(), *(path for name in names if (path := run / name).exists())]
    if not old:
        return None
    target = next(path for k in range(1, 1 << 20) if not (path := run / f"before-{k}").exists())
    target.mkdir()
    for path in old:
        path.rename(target / path.name)
    return target


def step_of(checkpoint: Path) -> int:
    """The N of a step-N folder."""
    match = _STEP.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _folders(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.is_dir()] if run.is_dir() else []
