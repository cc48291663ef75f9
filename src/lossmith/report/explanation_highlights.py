"""Texts on which a loss and the baseline disagree, each token coloured by what it says for the predicted class."""

from dataclasses import dataclass

import numpy as np

from lossmith.explain import AttributedText
from lossmith.studies.explained_results import ExplainedStudy
from lossmith.studies.explained_run import DISPUTED

STRONGEST = 0.6
"""Opacity behind the token with the largest weight."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a text."""

    text: str
    """As it stands there, blanks included."""
    weight: float
    """In [-1, 1]: against or for the predicted class."""
    second: bool
    """Whether the second text of a pair begins here."""

    @property
    def kind(self) -> str:
        """Class of its element: `for` or `against`."""
        return "for" if self.weight >= 0 else "against"

    @property
    def opacity(self) -> str:
        """Of the colour behind it."""
        return f"{STRONGEST * abs(self.weight):.2f}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One text under one model."""

    loss: str
    predicted: str
    """Name of the predicted class."""
    probability: float
    """Of that class, in [0, 1]."""
    right: bool
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Highlighted:
    """One text under the baseline and under a loss that disagrees with it."""

    loss: str
    gained: bool
    """Whether the loss is the one that is right."""
    row: int
    """Of the test set."""
    label: str
    """Name of the true class."""
    seen: tuple[Seen, Seen]
    """The baseline, the loss."""


def highlighted(study: ExplainedStudy) -> list[Highlighted]:
    """For each loss the first texts of the first seed that it gained, and that it lost."""
    seed = study.seeds[0]
    sample = study.samples[seed]
    found = []
    for one in study.disagreements.losses:
        if seed not in one.gained:
            continue
        tables = [study.highlights.texts[loss] for loss in (study.baseline, one.model)]
        for gained, examples in ((True, one.gained[seed]), (False, one.lost[seed])):
            # Models trained again may disagree about other examples than the recorded ones did.
            for example in [example for example in examples if all(example in table for table in tables)][:DISPUTED]:
                label = sample.examples[example].label
                seen = [
                    _seen(study, loss, table[example], label)
                    for loss, table in zip((study.baseline, one.model), tables, strict=True)
                ]
                found.append(
                    Highlighted(
                        loss=one.model,
                        gained=gained,
                        row=int(sample.rows[example]),
                        label=study.label_names[label],
                        seen=(seen[0], seen[1]),
                    )
                )
    return found


def _seen(study: ExplainedStudy, loss: str, one: AttributedText, label: int) -> Seen:
    segments = (0, *one.text.segments)
    pieces = tuple(
        Piece(text=text, weight=weight, second=segments[number + 1] != segments[number])
        for number, (text, weight) in enumerate(one.highlights(study.highlights.method))
    )
    return Seen(
        loss=loss,
        predicted=study.label_names[one.target],
        probability=float(np.exp(one.value)),
        right=one.target == label,
        pieces=pieces,
    )
