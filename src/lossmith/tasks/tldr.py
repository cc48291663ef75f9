"""TL;DR: summaries of Reddit posts, two by two, the better one chosen by people; the prompt holds the post."""

import reprlib
from typing import Any

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields, listed
from lossmith.tasks._scores import read_choice, two_of
from lossmith.tasks._shipped import PreferenceRecord
from lossmith.tasks.preference import Pair
from lossmith.tasks.templates import fill
from lossmith.tasks.unpaired import Rated

TLDR = PreferenceRecord(
    name="tldr",
    title="posts of Reddit; of two summaries people chose the better one",
    citation=(
        "Nisan Stiennon et al. Learning to summarize from human feedback. NeurIPS 2020. "
        "https://arxiv.org/abs/2009.01325"
    ),
    licence="modified MIT (comparisons); the posts are Reddit's, CC BY 4.0 in the TL;DR set",
    source="https://huggingface.co/datasets/openai/summarize_from_feedback",
    splits="published: train and validation; validation serves as test, a part of train as validation",
    split_sizes=None,
    hub="openai/summarize_from_feedback",
    hub_config="comparisons",
    hub_revision="refs/convert/parquet",
    hidden_test=True,
    layout=(
        "`info` (`subreddit`, `title`, `post`), `summaries` (two, each with `text`) and `choice`, or with `prompt` "
        "(which holds the post), `chosen` and `rejected`"
    ),
)

PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
"""The prompt of the data's authors; the summaries begin with a blank."""

NO_POST = "are about news articles, not posts, and are left out"
"""What is noted of a row whose `info` has an article."""


def read_comparison(fields: Fields) -> Pair | None:
    """A row as published: the post in the prompt, `choice` says which summary is the better one.

    Raises:
        DataError: If post, summaries or choice are absent or of a wrong type.
    """
    info = listed(fields.value("info"))
    if not isinstance(info, dict):
        raise DataError(f"{fields} must have an object in field `info`, got {reprlib.repr(info)}.")
    if not info.get("post") and info.get("article"):
        fields.note(NO_POST)
        return None
    inside = Fields(fields.where, fields.row, fields.id, {f"info.{name}": value for name, value in info.items()})
    values = {name: inside.text(f"info.{name}") for name in ("subreddit", "post")}
    title = info.get("title")
    texts = [_summary(fields, place, summary) for place, summary in enumerate(two_of(fields, "summaries"))]
    choice = read_choice(fields, "choice")
    return Pair(
        id=fields.id,
        prompt=fill(PROMPT, {**values, "title": title if isinstance(title, str) else ""}),
        chosen=texts[choice],
        rejected=texts[1 - choice],
    )


def check_post(row: Pair | Rated) -> None:
    """Refuse a prompt of TL;DR that does not hold the post.

    Raises:
        DataError: If nothing follows `POST:`.
    """
    text = row.prompt if isinstance(row.prompt, str) else row.prompt[-1].content
    _, mark, post = text.partition("POST:")
    if not mark or not post.replace("TL;DR:", "").strip():
        raise DataError(
            f"The `prompt` of row '{row.id}' must hold the post after 'POST:', as every prompt of 'tldr' does, got "
            f"{reprlib.repr(text)}."
        )


def _summary(fields: Fields, place: int, summary: Any) -> str:
    text = summary.get("text") if isinstance(summary, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{fields} must have a `text` in each of its `summaries`, got {reprlib.repr(summary)} as {place}."
        )
    return text
