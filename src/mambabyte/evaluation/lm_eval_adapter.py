"""A ByteLM for EleutherAI's lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), byte for byte.

Text is its UTF-8 bytes and nothing else: no special ids, no padding that a state could see, no truncation. What a byte
model leaves open follows the harness's own convention for causal models, so that its `hf` model gives the same numbers
on an exported folder: white space at the end of a context is scored with the continuation, and an empty context is one
newline (`prefix_token_id=10` there).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from mambabyte.evaluation.likelihood import ROWS, log_likelihoods
from mambabyte.models import ByteLM

Generate = Callable[..., list[bytes]]
MAX_BYTES = 256  # of an answer, unless the task says; the harness's own default
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first come, first served


class ByteLMAdapter(LM):
    """The three questions of the harness, asked of a model in this process.

    `generate` continues several prompts, like `mambabyte.generation.generate`: evaluation does not import its sibling.
    A "token" of a task's limits is a byte.
    """

    def __init__(self, model: ByteLM, generate: Generate, *, rows: int = ROWS) -> None:
        super().__init__()
        self._model = model
        self._generate = generate
        self._rows = rows

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log p(continuation | context), greedy) of each request's (context, continuation)."""
        pairs = [_split(*request.args) for request in requests]
        found = [(score.log_probability, score.is_greedy) for score in self._score(pairs)]
        self._remember("loglikelihood", requests, found)
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p of each request's text, its first byte after one newline, the state carried over all of it."""
        found = [score.log_probability for score in self._score([(b"", encode(r.args[0])) for r in requests])]
        self._remember("loglikelihood_rolling", requests, found)
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continues each request's context up to its stop strings; greedily unless the task samples."""
        settings = [json.dumps(_settings(request.args[1]), sort_keys=True) for request in requests]
        found = [""] * len(requests)
        for setting in dict.fromkeys(settings):
            members = [i for i, own in enumerate(settings) if own == setting]
            prompts = [encode(requests[i].args[0]) for i in members]
            for i, answer in zip(members, self._generate(self._model, prompts, **json.loads(setting)), strict=True):
                found[i] = answer.decode("utf-8", "replace")
        self._remember("generate_until", requests, found)
        return found

    def _score(self, pairs: Sequence[tuple[bytes, bytes]]) -> list:
        return log_likelihoods(self._model, pairs, rows=self._rows)

    def _remember(self, kind: str, requests: Sequence[Instance], found: Sequence) -> None:
        """For the harness's cache of answers, where one is in use."""
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


def encode(text: str) -> bytes:
    """The bytes of a text; a lone surrogate, which JSON can hold and UTF-8 cannot, becomes its three bytes."""
    return text.encode("utf-8", "surrogatepass")


def _split(context: str, continuation: str) -> tuple[bytes, bytes]:
    kept = context.rstrip()
    return encode(kept), encode(context[len(kept) :] + continuation)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `generate` from a task's generation_kwargs."""
    until = options.get("until") or []
    limit = next((options[name] for name in LIMITS if options.get(name) is not None), MAX_BYTES)
    settings = {
        "max_bytes": int(limit),
        "stop": [stop for stop in ([until] if isinstance(until, str) else until) if stop],
        "temperature": 0.0,
    }
    if options.get("do_sample", options.get("temperature", 0) > 0):
        settings |= {"temperature": options.get("temperature", 1.0), "seed": 0}
        settings |= {name: options[name] for name in ("top_k", "top_p", "min_p") if options.get(name) is not None}
    return settings
