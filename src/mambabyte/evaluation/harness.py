"""Tasks of lm-evaluation-harness (extra `eval`) run on a ByteLM through the harness's own API."""

import contextlib
import difflib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mambabyte.evaluation.local_tasks import LOCAL_TASKS, task_config
from mambabyte.models import ByteLM

RESAMPLES = 1000  # for the standard error of what has no formula for it


def run_tasks(
    model: ByteLM,
    tasks: Sequence[str],
    generate: Callable[..., list[bytes]],
    *,
    folder: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each task, with their standard errors as "NAME_stderr".

    Args:
        model: the model, on its own device.
        tasks: names that the harness knows, or of `LOCAL_TASKS`.
        generate: continues prompts; `mambabyte.generation.generate`.
        folder: take the tasks of `LOCAL_TASKS` from the JSON lines in this folder, without a network.
        shots: examples before each question; None is what the task says.
        limit: only so many items of each task, for a first look.

    Raises ValueError where lm-eval is not installed, a task is unknown, or the folder lacks its file.
    """
    try:
        from lm_eval import simple_evaluate

        from mambabyte.evaluation.lm_eval_adapter import ByteLMAdapter
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"tasks need lm-eval, and {missing.name} is not installed: pip install 'mambabyte-lm[eval]'"
        ) from missing
    specs = [task_config(name, folder) if folder and name in LOCAL_TASKS else name for name in tasks]
    with _quiet():
        found = simple_evaluate(
            ByteLMAdapter(model, generate),
            tasks=specs,
            task_manager=_manager([spec for spec in specs if isinstance(spec, str)]),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    return {name: _numbers(metrics) for name, metrics in found["results"].items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness's remarks on stderr, and of its log the errors: it warns of its own defaults, task by task."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)


def _manager(names: Sequence[str]) -> Any:
    """The harness's catalogue of tasks; reading it takes seconds, so it is left empty where no name needs it."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, [*manager.all_tasks, *LOCAL_TASKS], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"lm-eval has no task {name!r}{hint}")
    return manager


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """ "acc,none" -> "acc", "acc_stderr,none" -> "acc_stderr"; what is no number is left out."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and key != "sample_len"
    }
