"""Rows of preferences in the layouts that are known, each told by its columns, as pairs.

| layout | columns |
| :--- | :--- |
| pairs | `chosen`, `rejected` (texts, or messages), `prompt` or their common beginning, perhaps scores |
| responses | `prompt`, `responses` (two texts), `chosen` (index of the better one), perhaps `scores` |
| comparisons | `info` (`subreddit`, `title`, `post`), `summaries` (two, with `text`), `choice` (index of the better) |
| ratings | `prompt`, `completion`, `label` (whether it is good): unpaired |
"""

from collections.abc import Callable, Collection

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields
from lossmith.tasks._messages import Turns, read_turns
from lossmith.tasks._scores import read_label, read_scores
from lossmith.tasks.imdb_preference import read_responses
from lossmith.tasks.preference import Message, Pair, Prompt
from lossmith.tasks.tldr import read_comparison
from lossmith.tasks.unpaired import Rated

Reader = Callable[[Fields], Pair | None]
"""Makes a row a pair, or None of one that says nothing, which it notes."""

IDENTICAL = "have identical answers, which prefer nothing, and are left out"
"""What is noted of a pair whose answers are the same."""

OTHER_PROMPTS = "have other messages before the two answers, so that these answer different prompts, and are left out"
"""What is noted of a pair of chats that differ before the last turn."""

_WANTED = {
    "comparisons": ("info", "summaries", "choice"),
    "pairs": ("chosen", "rejected"),
    "responses": ("prompt", "responses", "chosen"),
    "ratings": ("prompt", "completion", "label"),
}


def layout_of(columns: Collection[str]) -> str | None:
    """The layout that columns belong to: comparisons, responses, pairs or ratings, or None.

    Example:
        >>> layout_of(["id", "chosen", "rejected"]), layout_of(["prompt", "completion", "label"]), layout_of(["text"])
        ('pairs', 'ratings', None)
    """
    return next((layout for layout, wanted in _WANTED.items() if set(wanted) <= set(columns)), None)


def known_layout(where: str, columns: Collection[str]) -> str:
    """Like `layout_of`.

    Raises:
        DataError: If they belong to none; the message names those that are there and those that are wanted.
    """
    found = layout_of(columns)
    if found is None:
        shown = ", ".join(f"`{name}`" for name in list(columns)[:20]) or "none"
        raise DataError(
            f"{where} must have the columns of a preference layout: `chosen` and `rejected` (with `prompt`, or "
            "beginning with it); `prompt`, `responses` and `chosen`; `info`, `summaries` and `choice`; or, unpaired, "
            f"`prompt`, `completion` and `label`; got {shown}{', ...' if len(columns) > 20 else ''}."
        )
    return found


def pair_reader(layout: str, *, has_prompt: bool) -> Reader:
    """What makes a row of a layout of pairs a pair.

    Args:
        layout: pairs, responses or comparisons.
        has_prompt: Whether the rows have a prompt of their own; of pairs of texts without one the common beginning is
            the prompt.
    """
    if layout == "comparisons":
        return lambda fields: _unless_identical(fields, read_comparison(fields))
    if layout == "responses":
        return lambda fields: _unless_identical(fields, read_responses(fields))
    return lambda fields: _unless_identical(fields, read_pair(fields, has_prompt=has_prompt))


def read_pair(fields: Fields, *, has_prompt: bool) -> Pair | None:
    """A row with `chosen` and `rejected`, and with `prompt` if `has_prompt`; None if they answer different prompts.

    Raises:
        DataError: If a field is absent or of a wrong type, a chat has no answer, or texts have no common beginning.
    """
    chosen, rejected = read_turns(fields, "chosen"), read_turns(fields, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"{fields} must have `chosen` and `rejected` both as text or both as messages, got one of each."
        )
    # Beside a chat, which holds its prompt, an empty one says nothing.
    blank = not isinstance(chosen, str) and str(fields.values.get("prompt") or "").strip() == ""
    prompt = read_prompt(fields) if has_prompt and not blank else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            prompt, chosen, rejected = common_beginning(fields, chosen, rejected)
        if isinstance(prompt, str) and chosen.startswith(prompt) and rejected.startswith(prompt):
            fields.note("have answers that begin with the prompt, which are read as they stand")
        prompts = {prompt}
    else:
        (before, chosen), (other, rejected) = (
            split_chat(fields, name, prompt, turns) for name, turns in (("chosen", chosen), ("rejected", rejected))
        )
        if isinstance(prompt, str) and all(message.content.strip() != prompt.strip() for message in before):
            fields.note("have a `prompt` that is none of their messages; the messages count")
        prompt, prompts = before, {before, other}
    if len(prompts) > 1:
        fields.note(OTHER_PROMPTS)
        return None
    chosen_score, rejected_score = read_scores(fields)
    return Pair(
        id=fields.id,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_score=chosen_score,
        rejected_score=rejected_score,
    )


def read_rated(fields: Fields) -> Rated:
    """A row with `prompt`, `completion` and `label`.

    Raises:
        DataError: If a field is absent or of a wrong type, or a chat has no answer.
    """
    completion = read_turns(fields, "completion")
    prompt = read_prompt(fields)
    if not isinstance(completion, str):
        prompt, completion = split_chat(fields, "completion", prompt, completion)
    return Rated(id=fields.id, prompt=prompt, completion=completion, label=read_label(fields, "label"))


def read_prompt(fields: Fields) -> Prompt:
    """The prompt of a row: a text with something in it, or a chat that ends with the user's turn.

    Raises:
        DataError: If it is absent, empty, or ends otherwise.
    """
    prompt = read_turns(fields, "prompt")
    if isinstance(prompt, str):
        return fields.text("prompt")
    if prompt[-1].role != "user":
        raise DataError(
            f"{fields} must have a `prompt` that ends with the user's turn, got the {prompt[-1].role}'s last."
        )
    return prompt


def common_beginning(fields: Fields, chosen: str, rejected: str) -> tuple[str, str, str]:
    """The common beginning of two texts, and what is left of each; a blank before the difference goes to the answers.

    The last character of a text that the other one goes on from stays an answer, as in TRL.

    Raises:
        DataError: If they do not begin alike.
    """
    shorter = min(len(chosen), len(rejected))
    same = next((place for place in range(shorter) if chosen[place] != rejected[place]), max(shorter - 1, 0))
    if same > 0 and chosen[same] != rejected[same] and chosen[same - 1] == " ":
        same -= 1
    if not chosen[:same].strip() and chosen != rejected:
        raise DataError(
            f"{fields} must have a `prompt`, or `chosen` and `rejected` that begin with it, got two texts that begin "
            "differently."
        )
    return chosen[:same], chosen[same:], rejected[same:]


def split_chat(fields: Fields, name: str, prompt: Prompt | None, turns: Turns) -> tuple[tuple[Message, ...], str]:
    """What is before the answer in a chat, and the answer.

    Args:
        fields: The row.
        name: The field of the chat.
        prompt: The prompt of the row, or None. Messages are put in front, unless the chat begins with them; a text is
            the user's turn in front of an answer alone, and else a copy of a turn of the chat, which counts.
        turns: The chat.

    Raises:
        DataError: If the last turn is not the assistant's, or nothing is before it.
    """
    assert not isinstance(turns, str)
    if turns[-1].role != "assistant":
        raise DataError(
            f"{fields} must have the assistant's turn last in field `{name}`, got the {turns[-1].role}'s: are the "
            "roles swapped?"
        )
    before = turns[:-1]
    if isinstance(prompt, str):
        before = before or (Message("user", prompt),)
    elif prompt is not None and before[: len(prompt)] != prompt:
        before = prompt + before
    if not before or before[-1].role != "user":
        got = f"the {before[-1].role}'s" if before else "no prompt"
        raise DataError(f"{fields} must have the user's turn before the answer in field `{name}`, got {got}.")
    return before, turns[-1].content


def _unless_identical(fields: Fields, pair: Pair | None) -> Pair | None:
    if pair is not None and pair.chosen == pair.rejected:
        fields.note(IDENTICAL)
        return None
    return pair
