"""Sentences about rows that a report must repeat: test rows that training knows, and rows with two labels."""

from collections.abc import Sequence

from lossmith.tasks._splits import row_key
from lossmith.tasks.classification import Example


def key_of(example: Example) -> str:
    """What it shares with rows that count as the same: its text, or both texts of a pair."""
    return row_key(example.text, example.pair)


def repeats(splits: dict[str, tuple[Example, ...]]) -> tuple[str, ...]:
    """How many test rows repeat a row of train and of validation, where any do."""
    found = []
    for split in sorted(set(splits) - {"test"}):
        seen = {key_of(example) for example in splits[split]}
        count = sum(key_of(example) in seen for example in splits["test"])
        if count:
            what = "pair" if splits["test"][0].pair is not None else "text"
            found.append(f"{count} of {len(splits['test'])} test rows repeat a {what} of {split}.")
    return tuple(sorted(found))


def contradictions(examples: Sequence[Example]) -> tuple[str, ...]:
    """How many texts or pairs have several labels, where any have."""
    labels: dict[str, set[int]] = {}
    for example in examples:
        labels.setdefault(key_of(example), set()).add(example.label)
    count = sum(len(found) > 1 for found in labels.values())
    what = "pairs of texts" if examples and examples[0].pair is not None else "texts"
    return (f"{count} {what} occur with more than one label.",) if count else ()
