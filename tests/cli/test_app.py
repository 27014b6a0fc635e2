"""The command line as a whole: what every verb does alike."""

import sys
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from mambabyte.checkpoints import save_model
from mambabyte.cli.app import VERBS, build_app, main, run
from tests.generation.conftest import tiny_model

# What a verb needs besides, so that nothing else is wrong with the command line.
NEEDED = {
    "prepare": ["x", "--out", "y"],
    "evaluate": ["x", "--data", "y"],
    "surprisal": ["x", "y"],
    "generate": ["x"],
    "bench": ["scan"],
}


def integers() -> list[tuple[str, str]]:
    """(verb, option) of every option that is an integer."""
    app = build_app()
    options = ((verb, option) for verb in VERBS for option in app[verb].assemble_argument_collection())
    return [(verb, option.name) for verb, option in options if option.hint in (int, int | None)]


def parsed(verb: str, option: str, value: str) -> object:
    """What the verb would be given for the option; it is not run."""
    _, bound, _ = build_app().parse_args(
        [verb, *NEEDED.get(verb, []), option, value], exit_on_error=False, print_error=False
    )
    return bound.arguments[option.removeprefix("--").replace("-", "_")]


@pytest.mark.parametrize(("verb", "option"), integers())
def test_an_integer_is_never_rounded(verb: str, option: str) -> None:
    assert parsed(verb, option, "300") == 300
    for value in ("299.5", "300.0", "3e2", "many", ""):
        with pytest.raises(CycloptsError) as refused:
            parsed(verb, option, value)
        assert f'{option}: "{value}" is not a whole number; give one' in str(refused.value)


def test_there_are_integers_of_many_verbs() -> None:
    assert {("train", "--tokenizer"), ("generate", "--max-bytes"), ("bench", "--rounds")} < set(integers())


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize(("options", "code"), [([], 0), (["--top-k", "0"], 2)], ids=["right", "wrong"])
def test_an_output_that_the_shell_has_closed_gets_nothing(
    closed: str,
    options: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(tiny_model(), tmp_path / "model")
    monkeypatch.setattr(sys, closed, None)
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(tmp_path / "model"), "--prompt", "x", "--max-bytes", "3", "--seed", "0", *options])
    assert ended.value.code == code
    getattr(sys, closed).close()
    shown = capsys.readouterr()
    assert bool(shown.out) == (closed == "stderr" and code == 0)
    assert bool(shown.err) == (closed == "stdout" and code == 2)


@pytest.mark.parametrize("words", [["tell", "me"], ["--prompt", "tell", "me"]])
def test_words_that_belong_to_no_option_are_named_with_a_remedy(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "model", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "mambabyte: no argument takes 'tell' 'me'; " if words[0] == "tell" else "mambabyte: no argument takes 'me'; "
    )
    assert "--prompt 'two words'" in error
