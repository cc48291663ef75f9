"""Do trainings of one loss that differ by their seed rest on the same tokens?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from lossmith._extras import require
from lossmith.errors import DataError
from lossmith.explain._runs import frame_of, measures_figure
from lossmith.explain.attributions import AttributedText, TokenAttributions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class SeedAgreement:
    """How alike two seeds of one loss weigh the tokens of the same texts."""

    model: str
    """The loss."""
    method: str
    """Of the attributions."""
    seeds: tuple[int, int]
    """The two blocks."""
    correlation: float
    """Mean over texts of Spearman's rank correlation of the token weights, in [-1, 1]; NaN where no text counts."""
    texts: int
    """Texts that count: both seeds explain the same class, of at least 3 tokens with unequal weights."""


@dataclass(frozen=True, kw_only=True)
class AttributionStability:
    """The stability of attributions across seeds, loss by loss."""

    pairs: tuple[SeedAgreement, ...]
    """Every pair of seeds of every loss and method."""

    def frame(self) -> "pd.DataFrame":
        """One row per model, method and pair of seeds."""
        rows = [asdict(pair) | {"seeds": "{} {}".format(*pair.seeds)} for pair in self.pairs]
        return frame_of(rows, ["model", "method", "seeds", "correlation", "texts"])

    def plot(self, *, baseline: str | None = None) -> "Figure":
        """One panel per method, a row per model, a point per pair of seeds."""
        methods = list(dict.fromkeys(pair.method for pair in self.pairs))
        rows = [
            {"model": pair.model}
            | {method: pair.correlation if method == pair.method else math.nan for method in methods}
            for pair in self.pairs
        ]
        titles = {method: f"{method.replace('_', ' ')}\nrank correlation between seeds" for method in methods}
        return measures_figure(rows, titles, baseline=baseline)


def attribution_stability(
    attributions: Mapping[str, Mapping[int, TokenAttributions]],
) -> AttributionStability:
    """Compare the token weights that the seeds of one loss give the same texts, by rank.

    Two networks that predict alike can do so for different reasons: where this is low, a highlighted token says
    something of one training run, not of the loss.

    Args:
        attributions: Model -> seed -> attributions of the same texts, with the same tokens.

    Raises:
        DataError: If the texts of two seeds differ.

    Source:
        The idea of comparing attributions between trainings that differ by their seed: Madsen et al. 2022, section 6.3,
        https://arxiv.org/abs/2108.04840.
    """
    pairs = []
    for model, seeds in attributions.items():
        for one, other in combinations(sorted(seeds), 2):
            first, second = seeds[one], seeds[other]
            if [text.text.fields for text in first.texts] != [text.text.fields for text in second.texts]:
                raise DataError(
                    f"`attributions` of '{model}' must be of the same texts, seeds {one} and {other} differ."
                )
            for method in (name for name in first.methods if name in second.methods):
                found = [rank_agreement(a, b, method) for a, b in zip(first.texts, second.texts, strict=True)]
                known = [value for value in found if math.isfinite(value)]
                pairs.append(
                    SeedAgreement(
                        model=model,
                        method=method,
                        seeds=(one, other),
                        correlation=sum(known) / len(known) if known else math.nan,
                        texts=len(known),
                    )
                )
    return AttributionStability(pairs=tuple(pairs))


def rank_agreement(one: AttributedText, other: AttributedText, method: str) -> float:
    """Spearman's rank correlation of two weightings of one text; NaN where they explain different classes.

    NaN too for fewer than 3 tokens, or weights that are all equal.
    """
    a, b = one.weights[method], other.weights[method]
    if one.target != other.target or len(a) < 3 or len(set(a.tolist())) < 2 or len(set(b.tolist())) < 2:
        return math.nan
    stats = require("scipy.stats", extra="explain", purpose="compare attributions")
    return float(stats.spearmanr(a, b).statistic)
