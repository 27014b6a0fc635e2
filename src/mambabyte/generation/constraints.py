"""Constraints on the output: valid UTF-8, a regular expression, or a JSON schema.

A constraint is a byte automaton. It masks the distribution before anything is drawn, so the output has the model's
distribution given that every byte can still lead to a word of the language within the limit; it is judged the same way
with a drafter and without. The output ends when no byte can follow; a language whose words can always grow (`[a-z]+`)
ends at the limit or a stop string.
"""

import json
from collections.abc import Mapping
from typing import Any

from mambabyte.generation import json_schema as schemas
from mambabyte.generation import regex as patterns
from mambabyte.generation.automaton import Automaton, repeat


def utf8() -> Automaton:
    """Whole characters only: what is generated decodes as UTF-8, also at the limit."""
    return Automaton(repeat(patterns.utf8([(0, patterns.LAST)]), 0, None))


def regex(pattern: str) -> Automaton:
    """Text that a regular expression matches from beginning to end; `mambabyte.generation.regex` says which are known.

    Raises ValueError for any other.
    """
    try:
        return Automaton(patterns.parse(pattern))
    except RecursionError as error:
        raise ValueError("the regular expression has too many groups inside each other; write it flatter") from error


def json_schema(schema: Mapping[str, Any] | bool | str) -> Automaton:
    """JSON text that a schema accepts, given as its text or parsed; `mambabyte.generation.json_schema` says how.

    Raises ValueError for text that is no JSON, and for a schema that cannot be kept.
    """
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        return Automaton(schemas.parse(parsed))
    except json.JSONDecodeError as error:
        raise ValueError(f"the JSON schema is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("the JSON schema has too many values inside each other; write it flatter") from error
