import json
from pathlib import Path

import pytest

from mambabyte.evaluation.local_tasks import (
    LOCAL_TASKS,
    hellaswag,
    lambada,
    openbookqa,
    piqa,
    question,
    read_rows,
    task_config,
    winogrande,
)

LABELS = ["A", "B", "C"]


def test_both_forms_of_a_row_are_the_same_question() -> None:
    assert piqa({"goal": "open a jar", "sol1": "twist", "sol2": "shout", "label": 0}) == piqa(
        {"query": "Question: open a jar\n", "choices": ["twist", "shout"], "gold": 0}
    )
    choices = {"text": ["x", "y", "z"], "label": LABELS}
    assert question({"question": "Which?", "choices": choices, "answerKey": "C"}) == question(
        {"query": "Question: Which?", "choices": ["x", "y", "z"], "gold": 2}
    )
    assert openbookqa({"question_stem": "The sky is", "choices": choices, "answerKey": "B "}) == openbookqa(
        {"query": "The sky is", "choices": ["x", "y", "z"], "gold": 1}
    )
    contexts = ["The cat saw the dog because the cat", "The cat saw the dog because the dog"]
    assert winogrande(
        {
            "sentence": "The cat saw the dog because the _ was near.",
            "option1": "cat",
            "option2": "dog",
            "answer": "2",
        }
    ) == winogrande({"context_options": contexts, "continuation": "was near.", "gold": 1})


def test_prompts_are_those_of_the_harness() -> None:
    assert question({"query": "Question: Why?", "choices": ["so"], "gold": 0})["query"] == "Question: Why?\nAnswer:"
    assert lambada({"text": "the last word"}) == {"context": "the last", "target": " word"}
    row = {
        "activity_label": "Cooking",
        "ctx_a": "A pan [header] x [title] heats.",
        "ctx_b": "the oil",
        "endings": ["burns.  [step]"],
        "label": "0",
    }
    assert hellaswag(row) == {"query": "Cooking: A pan x. heats. The oil", "choices": ["burns. "], "gold": 0}


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "piqa.jsonl"
    path.write_text('{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}\n\n{"goal": 3}\n')
    with pytest.raises(ValueError, match=r"piqa.jsonl: line 3 is not a row of this task: KeyError\('sol1'\)"):
        read_rows(path, piqa)
    path.write_text("{]\n")
    with pytest.raises(ValueError, match="line 1 is not a row"):
        read_rows(path, piqa)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        read_rows(path, piqa)


def test_line_separators_within_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\u0085 c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path, lambada) == [{"context": "a\u2028b\u0085", "target": " c"}]


@pytest.mark.parametrize("name", LOCAL_TASKS)
def test_a_task_without_its_file_is_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no file .* for the task {name}"):
        task_config(name, tmp_path)
