"""Divide rows over classes, over train and test, and over folds: seeded, stratified, repeated texts kept together."""

import unicodedata
from collections.abc import Sequence

from lossmith._extras import require
from lossmith.errors import DataError

SPLIT_STREAM = 7001
"""Keeps the generator of splits apart from other uses of the same seed."""

FOLD_STREAM = 7005
"""Keeps the generator of folds apart from other uses of the same seed."""

CUT_SEED = 42
"""Seed of the validation rows that are cut from train where the data bring none."""

CUT_SHARE = 0.1
"""Their share of train, as in the paper's GSM8K."""

CUT_STREAM = 7004
"""Keeps the generator of this cut apart from other uses of the same seed."""


def cut_validation(count: int) -> tuple[list[int], list[int]]:
    """Indices, ascending, of what stays in train and of the tenth of `count` >= 2 things that become validation."""
    np = require("numpy", extra="train", purpose="cut validation rows from train")
    order = np.random.Generator(np.random.PCG64([CUT_SEED, CUT_STREAM])).permutation(count).tolist()
    size = max(1, round(CUT_SHARE * count))
    return sorted(order[size:]), sorted(order[:size])


def cut_by_key(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Row indices, ascending, of what stays in train and of what becomes validation: a tenth of the different keys.

    Nothing is cut where there are fewer than two.
    """
    distinct = list(dict.fromkeys(keys))
    moved = {distinct[place] for place in cut_validation(len(distinct))[1]} if len(distinct) > 1 else set()
    kept = [row for row, key in enumerate(keys) if key not in moved]
    return kept, [row for row, key in enumerate(keys) if key in moved]


def cut_notice(rows: int) -> str:
    """What a task's warnings say of validation rows that were cut from train.

    Example:
        >>> cut_notice(7)
        'The 7 validation rows were cut from train (seed 42): the data bring none.'
    """
    were = "row was" if rows == 1 else "rows were"
    return f"The {rows:,} validation {were} cut from train (seed {CUT_SEED}): the data bring none."


def allocate(counts: Sequence[int], total: int, *, keep: int = 0) -> list[int]:
    """Divide `total` over classes in proportion to `counts`, by largest remainder; the lower class id wins a tie.

    Args:
        counts: Rows of each class, each > `keep`.
        total: How many to allocate, from the number of classes to the sum of `counts` less `keep` per class.
        keep: How many rows of each class must stay unallocated.

    Returns:
        One number per class, each from 1 to its count less `keep`; they sum to `total`.

    Example:
        >>> allocate([60, 30, 10], 7)
        [4, 2, 1]
        >>> allocate([98, 1, 1], 4)
        [2, 1, 1]
    """
    assert len(counts) <= total <= sum(counts) - keep * len(counts)
    rows = sum(counts)
    given = [min(max(total * count // rows, 1), count - keep) for count in counts]

    def shortfall(label: int) -> int:
        return total * counts[label] - given[label] * rows

    while sum(given) < total:
        open_labels = [label for label, count in enumerate(counts) if given[label] < count - keep]
        given[max(open_labels, key=shortfall)] += 1
    while sum(given) > total:
        given[min((label for label in range(len(counts)) if given[label] > 1), key=shortfall)] -= 1
    return given


def text_key(text: str) -> str:
    """What two texts share that count as the same: NFKC, lower case, white space folded.

    Example:
        >>> text_key(" Good  Film") == text_key("good film")
        True
    """
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def row_key(text: str, pair: str | None = None) -> str:
    r"""What two rows share that count as the same: the keys of their one text, or of both.

    Example:
        >>> row_key("A", "b c"), row_key("A b", "c") == row_key("A", "b c")
        ('a\tb c', False)
    """
    # No key holds a tab, since white space is folded.
    return text_key(text) if pair is None else f"{text_key(text)}\t{text_key(pair)}"


def split_rows(
    keys: Sequence[str], labels: Sequence[int], label_names: Sequence[str], *, seed: int, test_fraction: float
) -> tuple[list[int], list[int]]:
    """Row indices of train and of test, each in file order.

    Different texts are what is divided: rows of one key go to one side together (by the label of the first). Test gets
    `test_fraction` of the different texts, in proportion to the classes, and both sides get at least one text of every
    class. The same rows in the same order with the same seed give the same split; another order may give another one.

    Args:
        keys: One `row_key` per row.
        labels: One class id per row.
        label_names: Name of each class, for messages.
        seed: >= 0.
        test_fraction: In (0, 1).

    Raises:
        DataError: If a class has fewer than two different texts.
    """
    np = require("numpy", extra="train", purpose="split data")
    by_class = _groups_by_class(keys, labels, len(label_names))
    counts = [len(groups) for groups in by_class]
    _check_divisible(counts, label_names)
    total = min(max(round(test_fraction * sum(counts)), len(counts)), sum(counts) - len(counts))
    generator = np.random.Generator(np.random.PCG64([seed, SPLIT_STREAM]))
    test: set[int] = set()
    for groups, wanted in zip(by_class, allocate(counts, total, keep=1), strict=True):
        for chosen in generator.permutation(len(groups))[:wanted]:
            test.update(groups[chosen])
    return [row for row in range(len(keys)) if row not in test], sorted(test)


def fold_rows(
    keys: Sequence[str], labels: Sequence[int], label_names: Sequence[str], *, folds: int, seed: int
) -> list[int]:
    """The fold, 0 to `folds` - 1, of each row.

    The different texts of each class, shuffled, are dealt to the folds in turn, and the next class goes on where the
    last one ended: the folds of a class differ by at most one text, and so do the folds as a whole. Rows of one key
    share a fold (by the label of the first).

    Args:
        keys: One `row_key` per row.
        labels: One class id per row.
        label_names: Name of each class, for messages.
        folds: >= 2.
        seed: >= 0.

    Raises:
        DataError: If a class has fewer different texts than there are folds.
    """
    np = require("numpy", extra="train", purpose="make folds")
    by_class = _groups_by_class(keys, labels, len(label_names))
    _check_foldable([len(groups) for groups in by_class], label_names, folds)
    generator = np.random.Generator(np.random.PCG64([seed, FOLD_STREAM]))
    found = [0] * len(keys)
    dealt = 0
    for groups in by_class:
        for chosen in generator.permutation(len(groups)):
            for row in groups[chosen]:
                found[row] = dealt % folds
            dealt += 1
    return found


def _groups_by_class(keys: Sequence[str], labels: Sequence[int], num_classes: int) -> list[list[list[int]]]:
    """Rows of each key, in order of their first rows, under the class of the first."""
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    by_class: list[list[list[int]]] = [[] for _ in range(num_classes)]
    for rows in groups.values():
        by_class[labels[rows[0]]].append(rows)
    return by_class


def _check_foldable(counts: Sequence[int], label_names: Sequence[str], folds: int) -> None:
    short = sorted((count, name) for count, name in zip(counts, label_names, strict=True) if count < folds)
    if short:
        more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
        listed = ", ".join(f"'{name}' has {count}" for count, name in short[:5])
        advice = f"take at most {short[0][0]} folds, " if short[0][0] >= 2 else ""
        raise DataError(
            f"Each class must have at least as many different texts as there are `folds`, {folds}, or a fold is "
            f"without it, but {listed}{more}: {advice}add rows or remove the class."
        )


def _check_divisible(counts: Sequence[int], label_names: Sequence[str]) -> None:
    small = [f"class '{name}' has {count}" for name, count in zip(label_names, counts, strict=True) if count < 2]
    if small:
        more = f" (and {len(small) - 5} more classes)" if len(small) > 5 else ""
        raise DataError(
            f"Each class must have at least 2 different texts to be split into train and test: "
            f"{', '.join(small[:5])}{more}. Add rows, remove the class, or give a folder with train and test files."
        )
