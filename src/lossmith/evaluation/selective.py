"""How right a classifier is where it may abstain."""

from collections.abc import Sequence
from dataclasses import dataclass

from lossmith.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SelectiveAccuracy:
    """Predictions against labels, some of them withheld."""

    labelled: int
    """Rows with a label; the shares are of these."""
    unknown: tuple[str, ...]
    """Labels that the model has no class for, sorted; their rows count as wrong."""
    accuracy: float
    """Share of rows whose most probable class is right, abstentions included."""
    answered: int
    """Rows in which it does not abstain."""
    answered_accuracy: float | None
    """Share of those that is right; None where there are none."""

    @property
    def coverage(self) -> float:
        """Share of rows in which it does not abstain."""
        return self.answered / self.labelled


def selective_accuracy(
    guesses: Sequence[str], abstained: Sequence[bool], labels: Sequence[str | None], label_names: Sequence[str]
) -> SelectiveAccuracy | None:
    """How right predictions are, and how many are given.

    Args:
        guesses: Name of the most probable class of each row.
        abstained: Whether it is withheld.
        labels: Name of the true class, None where a row has none; such rows do not count.
        label_names: Classes of the model.

    Returns:
        Shares in [0, 1], or None where no row has a label.

    Raises:
        DataError: If `guesses`, `abstained` and `labels` differ in length.

    Source:
        Coverage and accuracy on what is answered: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective
        classification", JMLR 11. Deviation: accuracy in place of risk, which is 1 minus it.

    Example:
        >>> found = selective_accuracy("aab", [False, True, False], "abb", label_names="ab")
        >>> round(found.accuracy, 3), round(found.coverage, 3), found.answered_accuracy
        (0.667, 0.667, 1.0)
    """
    if not len(guesses) == len(abstained) == len(labels):
        raise DataError(
            f"`guesses`, `abstained` and `labels` must be of one length, got {len(guesses)}, {len(abstained)} and "
            f"{len(labels)}."
        )
    rows = [
        (guess == label, withheld, label)
        for guess, withheld, label in zip(guesses, abstained, labels, strict=True)
        if label is not None
    ]
    if not rows:
        return None
    answered = [right for right, withheld, _ in rows if not withheld]
    return SelectiveAccuracy(
        labelled=len(rows),
        unknown=tuple(sorted({label for _, _, label in rows} - set(label_names))),
        accuracy=sum(right for right, _, _ in rows) / len(rows),
        answered=len(answered),
        answered_accuracy=sum(answered) / len(answered) if answered else None,
    )
