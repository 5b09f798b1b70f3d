"""The JSON form of a config, and the digits by which a run folder knows its own command again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def to_dict(config: Any) -> dict[str, Any]:
    """Return the JSON form of a config dataclass, nested ones included."""
    # As it comes back from a file: a tuple that has become a list would look like another config.
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(config: Any) -> str:
    """Return 16 hex digits that identify a config (a dataclass or its JSON form)."""
    plain = config if isinstance(config, dict) else to_dict(config)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
