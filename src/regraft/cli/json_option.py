"""Options whose value is a JSON object."""

from __future__ import annotations

from typing import Any

from regraft.errors import InputError
from regraft.files import parse_json

Values = dict[str, Any]
"""Values by name, as JSON or as options have them."""


def json_object(text: str, option: str = "--model-options") -> Values:
    """Return the value of an option as a dictionary.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        options = parse_json(text)
    except ValueError as error:
        raise InputError(f"{option} is no JSON object: {error}") from error
    if not isinstance(options, dict):
        raise InputError(f"{option} is no JSON object: write e.g. '{{\"depth\": 3}}'")
    return options
