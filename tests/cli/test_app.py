"""The command line as a whole: what every verb does alike."""

import pytest

from mambabyte.cli.app import VERBS, build_app, run

# What a verb needs besides, so that nothing else is wrong with the command line.
NEEDED = {
    "prepare": ["x", "--out", "y"],
    "train": ["--preset", "mambabyte-tiny"],
    "evaluate": ["x", "--data", "y"],
    "surprisal": ["x", "y"],
    "generate": ["x", "--prompt", "y"],
    "bench": ["scan"],
    "convert": ["x", "y"],
}


def integers() -> list[tuple[str, str]]:
    """(verb, option) of every option that is an integer."""
    app = build_app()
    options = ((verb, option) for verb in VERBS for option in app[verb].assemble_argument_collection())
    return [(verb, option.name) for verb, option in options if option.hint in (int, int | None)]


@pytest.mark.parametrize(("verb", "option"), integers())
@pytest.mark.parametrize("value", ["299.5", "300.0", "3e2", "many"])
def test_an_integer_is_never_rounded(
    verb: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, *NEEDED.get(verb, []), option, value]) == 2
    assert f'{option}: "{value}" is not a whole number; give one' in capsys.readouterr().err


def test_there_are_integers_of_many_verbs() -> None:
    assert {("train", "--tokenizer"), ("generate", "--max-bytes"), ("bench", "--rounds")} < set(integers())
