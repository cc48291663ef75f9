"""What to know of preferences before training on them: lengths, and rows that repeat, contradict or say nothing."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lossmith.tasks._splits import text_key
from lossmith.tasks.preference import Pair, PreferenceTask, prompt_text
from lossmith.tasks.unpaired import Rated

SPLITS = ("train", "validation", "test")
"""Splits of a task, in the order of a report."""

FEW = 10
"""Up to so many different answers are listed."""
PARTS = ("prompt", "chosen", "rejected")
"""Texts of a pair."""


class Tokenizer(Protocol):
    """What counts tokens: any tokenizer of transformers."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths of the texts of one split: of answers on average, and how all of them are spread."""

    split: str
    """train, validation or test."""
    pairs: int
    """Pairs in it, >= 1."""
    chosen_words: float
    """Words (between white space) of the chosen answers."""
    rejected_words: float
    """The same of the rejected ones."""
    chosen_characters: float
    """Characters of the chosen answers."""
    rejected_characters: float
    """The same of the rejected ones."""
    chosen_tokens: float | None = None
    """Tokens of the chosen answers, None without a tokenizer."""
    rejected_tokens: float | None = None
    """The same of the rejected ones."""
    chosen_longer: float
    """Share, in [0, 1], of pairs whose chosen answer has more characters."""
    same_length: float
    """Share of those whose answers have as many."""
    repeated: int
    """Pairs that repeat prompt and answers of another."""
    medians: dict[str, float]
    """Characters of `prompt`, `chosen` and `rejected`: the median."""
    highs: dict[str, float]
    """The same: the 95th percentile."""


@dataclass(frozen=True, kw_only=True)
class PreferenceFacts:
    """Lengths, and sentences on them and on rows that a study should know of."""

    rows: tuple[Lengths, ...]
    """One for each split that has pairs."""
    sentences: tuple[str, ...]
    """Which side is longer, answers of few kinds, repeats, contradictions, empty answers, swapped scores."""


def preference_facts(task: PreferenceTask, *, tokenizer: Tokenizer | None = None) -> PreferenceFacts:
    """Length and duplicate report of a task.

    Args:
        task: Any preferences.
        tokenizer: Counts tokens, without special ones, where it is given.

    Example:
        >>> pairs = (Pair(id="1", prompt="a", chosen="much longer", rejected="short"),)
        >>> facts = preference_facts(PreferenceTask(name="two", train=pairs, test=pairs))
        >>> facts.rows[0].chosen_longer, facts.sentences[0]
        (1.0, 'The chosen answer is longer in 100% of the train pairs (11.0 against 5.0 characters on average).')
    """
    splits = _splits(task)
    rows = pair_lengths(task, tokenizer=tokenizer)
    said = tuple(_length_sentence(row) for row in rows)
    every = [pair for pairs in splits.values() for pair in pairs]
    return PreferenceFacts(rows=rows, sentences=(*said, *_few_answers(every), *task_warnings(splits)))


def pair_lengths(task: PreferenceTask, *, tokenizer: Tokenizer | None = None) -> tuple[Lengths, ...]:
    """Lengths and repeats of each split that has pairs; see `preference_facts`."""
    return tuple(_lengths(split, pairs, tokenizer) for split, pairs in _splits(task).items())


def _splits(task: PreferenceTask) -> dict[str, Sequence[Pair]]:
    return {split: getattr(task, split) for split in SPLITS if getattr(task, split)}


def task_warnings(splits: Mapping[str, Sequence[Pair]]) -> tuple[str, ...]:
    """Sentences about pairs that a report must repeat: empty answers, repeats, contradictions, swapped scores.

    Prompts count as the same if they differ only in case or white space; answers only if they are equal.

    Args:
        splits: Pairs of train, validation and test, by split.
    """
    keys = {split: [text_key(prompt_text(pair.prompt)) for pair in pairs] for split, pairs in splits.items()}
    found = [sentence for split, pairs in splits.items() for sentence in _of_split(split, pairs, keys[split])]
    return (*found, *_shared(keys, "pairs"), *_swapped([pair for pairs in splits.values() for pair in pairs]))


def rated_warnings(splits: Mapping[str, Sequence[Rated]]) -> tuple[str, ...]:
    """The like of unpaired rows: empty answers, answers that are both good and bad, prompts in two splits."""
    keys = {split: [text_key(prompt_text(row.prompt)) for row in rows] for split, rows in splits.items()}
    found: list[str] = []
    for split, rows in splits.items():
        labels: dict[tuple[str, str], set[bool]] = {}
        for row, key in zip(rows, keys[split], strict=True):
            labels.setdefault((key, row.completion), set()).add(row.label)
        empty = sum(not row.completion.strip() for row in rows)
        both = sum(len(kinds) == 2 for kinds in labels.values())
        if empty:
            found.append(f"{empty:,} of {len(rows):,} {split} rows have an empty answer.")
        if both:
            found.append(f"{both:,} answers of {split} are said to be good and bad.")
    return (*found, *_shared(keys, "rows"))


def _shared(keys: Mapping[str, Sequence[str]], rows: str) -> tuple[str, ...]:
    seen = {split: set(keys.get(split, ())) for split in SPLITS[:2]}
    counts = {split: sum(key in known for key in keys["test"]) for split, known in seen.items()}
    total = f"{len(keys['test']):,} test {rows}"
    return tuple(f"{count:,} of {total} have a prompt of {split}." for split, count in counts.items() if count)


def _lengths(split: str, pairs: Sequence[Pair], tokenizer: Tokenizer | None) -> Lengths:
    def mean(count: Callable[[str], int], side: str) -> float:
        return sum(count(getattr(pair, side)) for pair in pairs) / len(pairs)

    def tokens(side: str) -> float | None:
        if tokenizer is None:
            return None
        encode = tokenizer.encode
        return mean(lambda text: len(encode(text, add_special_tokens=False)), side)

    gaps = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    spread = {
        part: np.quantile(
            [len(prompt_text(pair.prompt) if part == "prompt" else getattr(pair, part)) for pair in pairs], [0.5, 0.95]
        ).tolist()
        for part in PARTS
    }
    return Lengths(
        split=split,
        pairs=len(pairs),
        chosen_words=mean(lambda text: len(text.split()), "chosen"),
        rejected_words=mean(lambda text: len(text.split()), "rejected"),
        chosen_characters=mean(len, "chosen"),
        rejected_characters=mean(len, "rejected"),
        chosen_tokens=tokens("chosen"),
        rejected_tokens=tokens("rejected"),
        chosen_longer=sum(gap > 0 for gap in gaps) / len(gaps),
        same_length=sum(gap == 0 for gap in gaps) / len(gaps),
        repeated=_repeats(pairs, [text_key(prompt_text(pair.prompt)) for pair in pairs])[0],
        medians={part: middle for part, (middle, _) in spread.items()},
        highs={part: high for part, (_, high) in spread.items()},
    )


def _length_sentence(row: Lengths) -> str:
    same = f", as long in {row.same_length:.0%}" if row.same_length else ""
    return (
        f"The chosen answer is longer in {row.chosen_longer:.0%} of the {row.split} pairs{same} "
        f"({row.chosen_characters:.1f} against {row.rejected_characters:.1f} characters on average)."
    )


def _few_answers(pairs: Sequence[Pair]) -> tuple[str, ...]:
    counts = Counter(answer for pair in pairs for answer in (pair.chosen, pair.rejected))
    if len(counts) > FEW or len(counts) * 2 > len(pairs):
        return ()
    listed = ", ".join(f"{answer[:40]!r}" for answer in sorted(counts))
    return (f"All answers are one of {len(counts)}: {listed}.",)


def _of_split(split: str, pairs: Sequence[Pair], keys: Sequence[str]) -> list[str]:
    total = f"{len(pairs):,} {split} pairs"
    twice, against = _repeats(pairs, keys)
    found = [
        f"{count:,} of {total} have an empty {side} answer."
        for side in ("chosen", "rejected")
        if (count := sum(not getattr(pair, side).strip() for pair in pairs))
    ]
    if twice:
        found.append(f"{twice:,} of {total} repeat prompt and answers of another.")
    if against:
        found.append(f"{against:,} of {total} contradict another: the same two answers, preferred otherwise.")
    if split == "train" and len(pairs) > 1 and len(set(keys)) == 1:
        found.append(f"All {total} have the same prompt.")
    return found


def _repeats(pairs: Sequence[Pair], keys: Sequence[str]) -> tuple[int, int]:
    """Pairs that repeat an earlier one, and pairs that contradict one."""
    seen: set[tuple[str, str, str]] = set()
    twice = against = 0
    for pair, key in zip(pairs, keys, strict=True):
        twice += (key, pair.chosen, pair.rejected) in seen
        against += (key, pair.rejected, pair.chosen) in seen
        seen.add((key, pair.chosen, pair.rejected))
    return twice, against


def _swapped(pairs: Sequence[Pair]) -> tuple[str, ...]:
    gaps = [
        pair.chosen_score - pair.rejected_score
        for pair in pairs
        if pair.chosen_score is not None and pair.rejected_score is not None
    ]
    lower, higher = sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    if lower <= higher:
        return ()
    return (f"The chosen answer has the lower score in {lower:,} of {len(gaps):,} pairs: are the columns swapped?",)
