"""Harness tasks over JSON lines in a folder, with the prompts of the harness's own tasks of these names and no network.

Rows are understood as the data sets publish them and in the common form {query, choices, gold} (WinoGrande:
{context_options, continuation, gold}).
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LocalTask:
    """Where a task's rows lie in a folder, what they become, and what of the harness's task config is its own."""

    files: str
    prepare: Callable[[Row], dict[str, Any]]
    config: Mapping[str, Any]


def task_config(name: str, folder: Path) -> dict[str, Any]:
    """A task config that `lm_eval.tasks.TaskManager.load` takes.

    Raises ValueError where the name or the folder's file for it is unknown.
    """
    task = LOCAL_TASKS[name]
    path = next(iter(sorted(folder.glob(task.files))), None)
    if path is None:
        raise ValueError(f"{folder}: no file {task.files} for the task {name}")

    def dataset(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(read_rows(path, task.prepare))}

    return {"task": name, "custom_dataset": dataset, "test_split": "test", **task.config}


def read_rows(path: Path, prepare: Callable[[Row], dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. Raises ValueError naming the line that is not such a row."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(prepare(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is not a row of this task: {error!r}") from error
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def lambada(row: Row) -> dict[str, Any]:
    """The last word is the target, with the space before it."""
    context, _, word = row["text"].rpartition(" ")
    return {"context": context, "target": f" {word}"}


def hellaswag(row: Row) -> dict[str, Any]:
    """Activity and context, without the marks that WikiHow left."""
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"query": _clean(query), "choices": [_clean(end) for end in row["endings"]], "gold": int(row["label"])}


def piqa(row: Row) -> dict[str, Any]:
    """Goal and two solutions."""
    if "query" in row:
        return question(row)
    return _question(row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))


def question(row: Row) -> dict[str, Any]:
    """A question and its answers, as in ARC."""
    if "query" in row:
        return _question(row["query"].strip().removeprefix("Question: "), row["choices"], int(row["gold"]))
    return _question(row["question"], row["choices"]["text"], _labelled(row))


def openbookqa(row: Row) -> dict[str, Any]:
    """The beginning of a sentence and its ends."""
    if "query" in row:
        return {"query": row["query"], "choices": row["choices"], "gold": int(row["gold"])}
    return {"query": row["question_stem"], "choices": row["choices"]["text"], "gold": _labelled(row)}


def winogrande(row: Row) -> dict[str, Any]:
    """One continuation after each of two contexts."""
    if "context_options" in row:
        contexts, continuation, gold = row["context_options"], row["continuation"], int(row["gold"])
    else:
        before, _, after = row["sentence"].partition("_")
        contexts, continuation = [before + row["option1"], before + row["option2"]], after.strip()
        gold = int(row["answer"]) - 1
    return {"choices": contexts, "continuation": continuation, "gold": gold}


def _question(text: str, choices: list[str], gold: int) -> dict[str, Any]:
    return {"query": f"Question: {text}\nAnswer:", "choices": choices, "gold": gold}


def _labelled(row: Row) -> int:
    return int(row["choices"]["label"].index(row["answerKey"].strip()))


def _clean(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _metric(name: str, aggregation: str = "mean", *, higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "query",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [_metric("acc"), _metric("acc_norm")],
}
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "context",
    "doc_to_target": "target",
    "target_delimiter": "",
    "metric_list": [_metric("perplexity", "perplexity", higher_is_better=False), _metric("acc")],
}
ONE_ENDING = CHOICE | {"doc_to_text": "gold", "doc_to_target": "continuation", "metric_list": [_metric("acc")]}

LOCAL_TASKS = {
    "arc_easy": LocalTask("arc_easy*.jsonl", question, CHOICE),
    "arc_challenge": LocalTask("arc_challenge*.jsonl", question, CHOICE),
    "hellaswag": LocalTask("hellaswag*.jsonl", hellaswag, CHOICE),
    "lambada_openai": LocalTask("lambada*.jsonl", lambada, LAST_WORD),
    "openbookqa": LocalTask("openbook*qa*.jsonl", openbookqa, CHOICE),
    "piqa": LocalTask("piqa*.jsonl", piqa, CHOICE),
    "winogrande": LocalTask("winogrande*.jsonl", winogrande, ONE_ENDING),
}
