"""The command line as a whole: what every verb does alike."""

import pytest
from cyclopts import CycloptsError

from mambabyte.cli.app import VERBS, build_app

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
