"""What to know of preferences before training on them: lengths, and rows that repeat, contradict or say nothing."""

from collections.abc import Mapping, Sequence

from lossmith.tasks._splits import text_key
from lossmith.tasks.preference import Pair, prompt_text


def task_warnings(splits: Mapping[str, Sequence[Pair]]) -> tuple[str, ...]:
    """Sentences about pairs that a report must repeat: empty answers, repeats, contradictions, swapped scores.

    Args:
        splits: Pairs of train, validation and test.
    """
    keys = {split: [text_key(prompt_text(pair.prompt)) for pair in pairs] for split, pairs in splits.items()}
    found = [sentence for split, pairs in splits.items() for sentence in _of_split(split, pairs, keys[split])]
    for split in ("train", "validation"):
        seen = set(keys[split])
        count = sum(key in seen for key in keys["test"])
        if count:
            found.append(f"{count} of {len(keys['test'])} test pairs have a prompt of {split}.")
    return (*found, *_swapped([pair for pairs in splits.values() for pair in pairs]))


def _of_split(split: str, pairs: Sequence[Pair], keys: Sequence[str]) -> list[str]:
    total = len(pairs)
    seen: set[tuple[str, str, str]] = set()
    twice = against = 0
    for pair, key in zip(pairs, keys, strict=True):
        twice += (key, pair.chosen, pair.rejected) in seen
        against += (key, pair.rejected, pair.chosen) in seen
        seen.add((key, pair.chosen, pair.rejected))
    found = [
        f"{count} of {total} {split} pairs have an empty {side} answer."
        for side in ("chosen", "rejected")
        if (count := sum(not getattr(pair, side).strip() for pair in pairs))
    ]
    if twice:
        found.append(f"{twice} of {total} {split} pairs repeat prompt and answers of another.")
    if against:
        found.append(
            f"{against} of {total} {split} pairs contradict another: the same two answers, preferred otherwise."
        )
    if split == "train" and total > 1 and len(set(keys)) == 1:
        found.append(f"All {total} {split} pairs have the same prompt.")
    return found


def _swapped(pairs: Sequence[Pair]) -> tuple[str, ...]:
    gaps = [
        pair.chosen_score - pair.rejected_score
        for pair in pairs
        if pair.chosen_score is not None and pair.rejected_score is not None
    ]
    lower, higher = sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    if lower <= higher:
        return ()
    return (f"The chosen answer has the lower score in {lower} of {len(gaps)} pairs: are the columns swapped?",)
