"""The adapter beside the harness's own `hf` model; needs lm-eval with its hf extra (`pip install lm-eval[hf]`)."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate (lm-eval[hf])")

from lm_eval.api.instance import Instance

from mambabyte.checkpoints import save_model
from mambabyte.evaluation.harness import run_tasks
from mambabyte.evaluation.lm_eval_adapter import ByteLMAdapter
from mambabyte.generation import generate
from mambabyte.models import ByteLM
from tests.evaluation.examples import small_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

PAIRS = [
    ("Question: why?\nAnswer:", " because"),
    ("Question: why?\nAnswer:", " caf\u00e9 \U0001f600"),
    ("trailing space ", "word"),
    ("trailing lines\n\n", "word"),
    ("", "no context"),
    ("one", " "),
    ("NUL \x00 and \x7f", "\r\n\t"),
]
TEXTS = ["short", "a longer text, with \u00e9 and\nlines\n" * 9, "x"]


@pytest.fixture(scope="module")
def model() -> ByteLM:
    return small_model().float()


@pytest.fixture(scope="module")
def ours(model: ByteLM) -> ByteLMAdapter:
    return ByteLMAdapter(model, generate, rows=3)


@pytest.fixture(scope="module")
def theirs(model: ByteLM, tmp_path_factory: pytest.TempPathFactory):
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("hf") / "model"
    save_model(model, folder)
    return HFLM(
        pretrained=str(folder), prefix_token_id=10, max_length=4096, batch_size=2, device="cpu", dtype="float32"
    )


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=own, idx=i) for i, own in enumerate(arguments)]


def test_likelihoods_are_those_of_the_hf_path(ours: ByteLMAdapter, theirs) -> None:
    asked = requests("loglikelihood", PAIRS)
    for one, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-4)
        assert one[1] == other[1]


def test_rolling_likelihoods_are_those_of_the_hf_path(ours: ByteLMAdapter, theirs) -> None:
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-4)


def test_greedy_answers_are_those_of_the_hf_model(ours: ByteLMAdapter, theirs) -> None:
    """Asked of transformers itself: the harness's `hf` answers need an end-of-text token, which bytes do not have."""
    plain = [(text, {"max_gen_toks": 12, "do_sample": False}) for text, _ in PAIRS if text]
    answers = ours.generate_until(requests("generate_until", plain))
    for (text, _), answer in zip(plain, answers, strict=True):
        prompt = torch.tensor([list(text.encode())])
        output = theirs.model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert answer == bytes(output[0, prompt.shape[1] :].tolist()).decode("utf-8", "replace")
    stop = next(character for character in answers[0] if character.isascii())
    stopped = [(plain[0][0], {"until": [stop, ""], "max_gen_toks": 12})]
    assert ours.generate_until(requests("generate_until", stopped)) == [answers[0].split(stop)[0]]


def test_answers_follow_the_settings_of_each_request(ours: ByteLMAdapter) -> None:
    settings = [{"max_gen_toks": 3}, {"max_new_tokens": 5}, {"max_gen_toks": 3, "do_sample": True, "temperature": 2.0}]
    asked = requests("generate_until", [("prompt", own) for own in settings])
    answers = ours.generate_until(asked)
    assert [len(answer.encode("utf-8", "replace")) >= n for answer, n in zip(answers, (3, 5, 3), strict=True)]
    assert answers == ours.generate_until(asked)
    assert ours.generate_until(asked[::-1]) == answers[::-1]


def test_a_lone_surrogate_is_scored(ours: ByteLMAdapter) -> None:
    ((log_probability, _),) = ours.loglikelihood(requests("loglikelihood", [("a", "\ud800")]))
    assert log_probability < 0


def test_tasks_run_from_a_folder_without_a_network(
    model: ByteLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a task wants the network"))
    rows = [{"query": f"Question: {i}?", "choices": ["yes", "no", "some"], "gold": i % 3} for i in range(6)]
    (tmp_path / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lambada_test.jsonl").write_text(json.dumps({"text": "a few words"}) + "\n")
    pair = {"context_options": ["the cat", "the dog"], "continuation": "ran.", "gold": 1}
    (tmp_path / "winogrande.jsonl").write_text("\n".join(map(json.dumps, [pair] * 3)))
    tasks = ["arc_easy", "lambada_openai", "winogrande"]
    scores = run_tasks(model, tasks, generate, folder=tmp_path, limit=4)
    assert capsys.readouterr().out == ""
    assert set(scores) == set(tasks)
    assert set(scores["arc_easy"]) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    assert scores["winogrande"]["acc"] in (0, 1)
    assert scores["lambada_openai"]["perplexity"] > 1
    with_shots = run_tasks(model, ["arc_easy"], generate, folder=tmp_path, shots=2)
    assert 0 <= with_shots["arc_easy"]["acc"] <= 1


def test_an_unknown_task_is_a_sentence(model: ByteLM) -> None:
    with pytest.raises(ValueError, match="lm-eval has no task 'hellaswagg'; did you mean hellaswag"):
        run_tasks(model, ["hellaswagg"], generate)
    assert "lm_eval" in sys.modules
