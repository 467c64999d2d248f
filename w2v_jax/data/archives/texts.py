"""What is said of a recording in a column, a feature or a key: which of them are its id, transcript and speaker."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from w2v_jax.data.io.listing import SURROGATES

ROLES = {
    "id": ("id", "utterance_id", "filename", "audio/filename"),
    "transcript": ("text", "transcript", "transcription", "sentence", "raw_text", "label"),
    "speaker": ("speaker_id", "speaker", "client_id"),
}
"""The columns, features or keys that fill a column of the index. The first one that exists is used."""


def role_names(names: Iterable[str]) -> dict[str, str]:
    """The name among `names` that fills each role, for the roles that one fills."""
    known = set(names)
    return {role: name for role, choices in ROLES.items() for name in choices[::-1] if name in known}


def as_text(value: Any) -> str:
    """A value as text: text, bytes in UTF-8, a number, or several of them with spaces between. "" for None.

    What is not a character is replaced.
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(map(as_text, value))
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return re.sub(SURROGATES, "\ufffd", text)
