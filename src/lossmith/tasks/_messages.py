"""Answers and chats of one row, from text, messages, or messages that a CSV cell holds in writing."""

import math
import reprlib
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields, listed
from lossmith.tasks._rows import is_encodable
from lossmith.tasks.preference import Message

ROLES = ("system", "user", "assistant")
"""Who speaks in a chat."""

Turns = str | tuple[Message, ...]
"""A text, or the turns of a chat."""


def read_turns(fields: Fields, name: str) -> Turns:
    """The text or chat in a field, unchanged; a text may be empty, a chat may not.

    The content of a message is a text, or a list of parts that are all text (which are joined).

    Raises:
        DataError: If the field is absent, or is neither text nor a list of messages.
    """
    found = fields.value(name)
    odd = isinstance(found, bool) or (isinstance(found, float) and not math.isfinite(found))
    if odd or not isinstance(found, str | int | float | list | tuple):
        raise DataError(
            f"{fields} must have text or messages in field `{name}`, got {reprlib.repr(found)} "
            f"({type(found).__name__})."
        )
    if isinstance(found, list | tuple):
        if not found:
            raise DataError(f"{fields} must have messages in field `{name}`, got an empty list.")
        return tuple(_message(fields, name, place, message) for place, message in enumerate(found, start=1))
    return _encodable(fields, name, str(found))


def with_messages(values: dict[str, Any]) -> dict[str, Any]:
    """A row of a CSV file with the messages that its cells hold in writing; other cells stay text, lists included.

    Example:
        >>> with_messages({"prompt": '[{"role": "user", "content": "Hi"}]', "chosen": "[1, 2]"})
        {'prompt': [{'role': 'user', 'content': 'Hi'}], 'chosen': '[1, 2]'}
    """
    return {name: _unwritten(cell) for name, cell in values.items()}


def _unwritten(cell: Any) -> Any:
    found = listed(cell)
    is_chat = (
        isinstance(found, list) and len(found) > 0 and all(isinstance(item, dict) and "role" in item for item in found)
    )
    return found if is_chat else cell


def _message(fields: Fields, name: str, place: int, message: Any) -> Message:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        keys = f" with {', '.join(map(str, message)) or 'no key'}" if isinstance(message, dict) else ""
        raise DataError(f"{_wanted(fields, name)}, got {type(message).__name__}{keys} as message {place}.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(
            f"{_wanted(fields, name)}, the role one of {', '.join(ROLES)}, got {reprlib.repr(role)} in message {place}."
        )
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(
            f"{_wanted(fields, name)}, the content a text, got {reprlib.repr(content)} ({type(content).__name__}) in "
            f"message {place}."
        )
    return Message(role, _encodable(fields, name, content))


def _wanted(fields: Fields, name: str) -> str:
    return f"{fields} must have messages with `role` and `content` in field `{name}`"


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"


def _encodable(fields: Fields, name: str, text: str) -> str:
    if not is_encodable(text):
        raise DataError(f"{fields} must have valid Unicode in field `{name}`, got half of a surrogate pair.")
    return text
