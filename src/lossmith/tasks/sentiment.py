"""Sentiment-controlled generation: beginnings of reviews as prompts, and how sampled answers and pairs are written."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lossmith.errors import ConfigurationError, DataError
from lossmith.evidence import write_atomically
from lossmith.tasks._fields import RawRow
from lossmith.tasks._places import splits_from
from lossmith.tasks._shipped import ClassificationRecord
from lossmith.tasks._sources import file_rows, folder_splits, read_items
from lossmith.tasks.loading import load_task
from lossmith.tasks.preference import Pair
from lossmith.tasks.registry import list_tasks

SENTIMENT = "sentiment"
"""The name of the task."""
TEXT_FIELDS = ("text", "review", "sentence")
"""Fields that may hold a review."""
LAYOUT = "`text` (or `review`, `sentence`)"

IMDB = ClassificationRecord(
    name="imdb",
    title="film reviews",
    citation=(
        "Andrew L. Maas et al. Learning word vectors for sentiment analysis. ACL 2011. "
        "https://ai.stanford.edu/~amaas/data/sentiment"
    ),
    licence="none stated by its authors: research use",
    source="https://ai.stanford.edu/~amaas/data/sentiment",
    splits="published",
    split_sizes=None,
    hub="stanfordnlp/imdb",
    layout=LAYOUT,
)


@dataclass(frozen=True, slots=True)
class ReviewPrompt:
    """The beginning of a review."""

    id: str
    """Split and number of the review that it begins."""
    text: str
    """What an answer continues."""
    tokens: int
    """How many tokens it has, without what the tokenizer puts before a text."""


@dataclass(frozen=True, kw_only=True)
class ReviewPrompts:
    """Prompts to train and to test on, no text in both."""

    name: str
    """Where the reviews are from: a known set or the stem of a file."""
    train: tuple[ReviewPrompt, ...]
    """Prompts whose answers become pairs."""
    test: tuple[ReviewPrompt, ...]
    """Prompts of the test."""
    source: str
    """Repository and commit, hub id, or path."""
    licence: str
    """Licence of the reviews."""
    attribution: str
    """Whom to cite."""
    warnings: tuple[str, ...] = ()
    """Sentences that a report must repeat."""
    fingerprint: str = field(init=False)
    """SHA-256, in hex, over all prompts in order."""

    def __post_init__(self) -> None:
        content = json.dumps([[prompt.text for prompt in split] for split in (self.train, self.test)])
        object.__setattr__(self, "fingerprint", hashlib.sha256(content.encode()).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPair:
    """A pair of sampled answers with the tokens that were drawn."""

    pair: Pair
    """The texts, with the rewards as scores."""
    prompt_ids: tuple[int, ...]
    """Tokens of the prompt."""
    chosen_ids: tuple[int, ...]
    """Tokens of the better answer; a stop token is the last where it came to one."""
    rejected_ids: tuple[int, ...]
    """Tokens of the worse one."""


def is_sentiment_task(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this names sentiment-controlled generation."""
    return os.fspath(name_or_path) == SENTIMENT


def load_review_prompts(
    reviews: str,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    *,
    data: str = "shipped",
    train_prompts: int | None,
    test_prompts: int | None,
    shortest: int = 2,
    longest: int = 8,
    seed: int = 0,
    excluded: Collection[str] = (),
) -> ReviewPrompts:
    """Draw prompts from reviews: each is the first few tokens of one, its length drawn alike from the bounds.

    A beginning counts only if it becomes the same tokens again (no half characters), and once: two tokens of two
    reviews are often the same. Test prompts are drawn first, from the test reviews; training prompts that are among
    them are left out. The draws of training prompts do not depend on how many are wanted.

    Args:
        reviews: A named classification set (mr, sst2 ...), "imdb", a file of reviews, or a folder with train and test.
        encode: From a text to its tokens, without what stands before a text.
        decode: Back.
        data: Where a named set's rows are: "shipped", a folder, "hub" or "hub:owner/name".
        train_prompts: How many to train on, >= 1; None takes all that there are.
        test_prompts: How many to test on, >= 1; None takes all that there are.
        shortest: Fewest tokens of a prompt, >= 1.
        longest: Most tokens of a prompt.
        seed: Of the draws.
        excluded: Texts that are no prompts here, such as those that pairs of other origin were made from.

    Raises:
        ConfigurationError: For bounds that hold nothing.
        DataError: If the reviews cannot be had, or give fewer different prompts than wanted.

    Example:
        >>> found = load_review_prompts(
        ...     "mr", lambda text: [ord(letter) for letter in text], lambda ids: "".join(map(chr, ids)),
        ...     train_prompts=3, test_prompts=2, longest=8,
        ... )
        >>> [len(prompt.text) == prompt.tokens for prompt in found.train], len(found.test)
        ([True, True, True], 2)
    """
    if not 1 <= shortest <= longest:
        raise ConfigurationError(
            f"`prompt_tokens` must be two numbers with 1 <= the first <= the second, got {[shortest, longest]}."
        )
    texts, about = _reviews(reviews, data)
    taken = set(excluded)
    found: dict[str, tuple[ReviewPrompt, ...]] = {}
    # The test first, so that it does not depend on how many prompts are trained on.
    for split, wanted in (("test", test_prompts), ("train", train_prompts)):
        drawn = _draw(split, texts[split], encode, decode, (shortest, longest), wanted, taken, seed)
        if wanted is not None and len(drawn) < wanted:
            raise DataError(
                f"`{split}_prompts` is {wanted:,} and the {len(texts[split]):,} {split} reviews of '{reviews}' give "
                f"{len(drawn):,} different beginnings of {shortest} to {longest} tokens: lower it, or give more."
            )
        found[split] = drawn
    return ReviewPrompts(train=found["train"], test=found["test"], **about)


def training_reviews(reviews: str, data: str, count: int, *, seed: int) -> list[str]:
    """Whole training reviews, drawn without replacement; see `load_review_prompts`.

    Raises:
        DataError: If there are fewer.
    """
    texts = _reviews(reviews, data)[0]["train"]
    if count > len(texts):
        raise DataError(f"`sft_reviews` is {count:,} and '{reviews}' has {len(texts):,} training reviews: lower it.")
    return random.Random(f"{seed}/reviews").sample(texts, count)


def _draw(
    split: str,
    texts: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    bounds: tuple[int, int],
    wanted: int | None,
    taken: set[str],
    seed: int,
) -> tuple[ReviewPrompt, ...]:
    """Beginnings of different texts; those found are added to `taken`."""
    generator = random.Random(f"{seed}/{split}")
    order = list(range(len(texts)))
    generator.shuffle(order)
    found: list[ReviewPrompt] = []
    for row in order:
        if len(found) == wanted:
            break
        length = generator.randint(*bounds)
        # A token has at least one character of its own in all but odd cases; what is cut wrongly fails the way back.
        ids = list(encode(texts[row][: 40 * bounds[1]]))[:length]
        text = decode(ids)
        if len(ids) == length and text.strip() and text not in taken and list(encode(text)) == ids:
            taken.add(text)
            found.append(ReviewPrompt(f"{split}:{row}", text, length))
    return tuple(found)


def _reviews(name: str, data: str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Texts of training and test reviews, and the provenance of the prompts."""
    if name in {str(task) for task in list_tasks(shipped_only=False)}:
        task = load_task(name, data=data)
        texts = {split: [example.text for example in getattr(task, split)] for split in ("train", "test")}
        return texts, {
            "name": task.name,
            "source": task.source,
            "licence": task.licence,
            "attribution": task.attribution,
            "warnings": task.warnings,
        }
    known = {"licence": "not stated", "attribution": "not stated"}
    if name == IMDB.name:
        if data == "shipped":
            raise DataError("The reviews of 'imdb' are not shipped: give `data=FOLDER`, `data=hub`, or `reviews=mr`.")
        rows, source = splits_from(IMDB, data)
        known = {"licence": IMDB.licence, "attribution": IMDB.citation}
    else:
        path = Path(name).expanduser()
        if not name.strip() or not os.path.exists(path):
            raise DataError(
                f"`reviews` must be a known set (mr, sst2, imdb ...), a file or a folder of reviews, got "
                f"{name[:200]!r}, which is none (looked from `{Path.cwd()}`)."
            )
        rows, source = folder_splits(path, LAYOUT) if path.is_dir() else _halves(path), str(path)
        name = path.stem
    texts = {
        split: list(read_items(split, rows[split], lambda f: f.text(*TEXT_FIELDS))[0]) for split in ("train", "test")
    }
    return texts, {"name": name, "source": source, **known}


def _halves(path: Path) -> dict[str, list[RawRow]]:
    """One file of reviews: every fifth is of the test."""
    rows = file_rows(path)
    return {
        "train": [row for place, row in enumerate(rows) if place % 5 != 4],
        "test": [row for place, row in enumerate(rows) if place % 5 == 4],
    }


def write_pairs(path: Path, pairs: Iterable[SampledPair]) -> None:
    """Write sampled pairs as JSON lines, whole or not at all: `prompt`, `chosen`, `rejected` as preference files have
    them, the rewards as `chosen_score` and `rejected_score`, and the tokens as `prompt_ids`, `chosen_ids`,
    `rejected_ids`.
    """
    lines = [
        {
            "id": found.pair.id,
            "prompt": found.pair.prompt,
            "chosen": found.pair.chosen,
            "rejected": found.pair.rejected,
            "chosen_score": found.pair.chosen_score,
            "rejected_score": found.pair.rejected_score,
            "prompt_ids": list(found.prompt_ids),
            "chosen_ids": list(found.chosen_ids),
            "rejected_ids": list(found.rejected_ids),
        }
        for found in pairs
    ]
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_pairs(path: Path) -> tuple[SampledPair, ...]:
    """Read what `write_pairs` wrote.

    Raises:
        DataError: If the file is none of these.
    """
    found = []
    try:
        # Not `splitlines`, which also splits at characters that answers hold.
        for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            row = json.loads(line)
            tokens = {name: tuple(row.pop(name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
            found.append(SampledPair(pair=Pair(**row), **tokens))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"`{path}` holds no sampled pairs ({type(error).__name__}: {error}): remove it.") from error
    return tuple(found)
