r"""What one pass over a row of scores leaves behind, and every token statistic as a formula of it.

With $z$ the row's scores, $y$ its label and $m = \\max_{k \\ne y} z_k$, all sums leave the label out:

    total    = sum exp(z_k - m)                 tilted   = sum exp(z_k - m) (z_k - m)
    squares  = sum exp(z_k - m)^2               centered = sum (z_k - m)
    plain    = sum z_k

The label's score stands alone beside them. So neither log p near p = 1 nor log(1 - p) near p = 0 loses a digit, and the
same sums serve a contrastive row without its own place. A formula's value does not depend on m, which is therefore a
constant to autograd: an engine needs the derivative of four sums, and autograd on vectors does the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch

from lossmith._typing import Float, Int, Tensor

TOP = 20
"""Classes that `top_20_entropy` looks at."""

SUMS_READ: dict[str, tuple[str, ...]] = {
    "token_logps": (),
    "complement_logps": (),
    "log_normalizer": (),
    "entropy": ("tilted",),
    "log_sum_sq_probs": ("squares",),
    "mean_logits": ("plain",),
    "mean_class_logps": ("centered",),
    "max_logps": ("highest",),
    "top_20_entropy": ("top",),
}
"""Statistic -> the optional sums that its formula reads; all read the label's score, the maximum and `total`."""


def sums_read(names: Iterable[str]) -> frozenset[str]:
    """The optional sums that these statistics need."""
    return frozenset(read for name in names for read in SUMS_READ[name])


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """Sums of one row of scores, one entry per row. A row without another possible class has `maximum` -inf."""

    label_scores: Float[Tensor, " rows"]
    """Score of the label."""
    maximum: Float[Tensor, " rows"]
    """Highest score but the label's; a constant."""
    total: Float[Tensor, " rows"]
    tilted: Float[Tensor, " rows"] | None = None
    squares: Float[Tensor, " rows"] | None = None
    centered: Float[Tensor, " rows"] | None = None
    plain: Float[Tensor, " rows"] | None = None
    """Beside `centered`, since a mean score near 0 loses its digits in a detour by the maximum."""
    highest: Float[Tensor, " rows"] | None = None
    """The highest score again, less `maximum`: 0 with a gradient, which ties share."""
    ties: Float[Tensor, " rows"] | None = None
    """How many classes share the highest score; a constant, there where `highest` is."""
    top: Float[Tensor, "rows top"] | None = None
    """The 20 highest scores but the label's; constants."""

    def present(self) -> dict[str, Tensor]:
        """The entries that were computed, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def rows(self, places: Int[Tensor, " rows"] | slice) -> "RowSums":
        """The sums of some rows."""
        return replace(self, **{name: value[places] for name, value in self.present().items()})


class SumStatistics:
    """Token statistics by their formulas; the interface of the dense ones.

    Args:
        sums: Sums of each row; what they require gradients for, the statistics have gradients for.
        classes: Size of the whole vocabulary.
    """

    def __init__(self, sums: RowSums, classes: int):
        self._sums = sums
        self._classes = classes
        one = torch.ones_like(sums.total)
        self._alone = sums.maximum == -torch.inf
        self._maximum = sums.maximum.masked_fill(self._alone, 0.0)
        self._log_total = torch.where(self._alone, one, sums.total).log()
        # Log-odds of the other classes against the label.
        gap = (self._maximum - sums.label_scores) + self._log_total
        self._gap = gap.masked_fill(self._alone, -torch.inf)

    def get(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The named statistics, and only those."""
        return {name: getattr(self, name) for name in names}

    @property
    def token_logps(self) -> Float[Tensor, " rows"]:
        """Log-probability of each row's label, in nats."""
        return -_softplus(self._gap)

    @property
    def complement_logps(self) -> Float[Tensor, " rows"]:
        """Log of one minus the label's probability, in nats; -inf where no other class is possible."""
        return -_softplus(-self._gap)

    @property
    def log_normalizer_above_maximum(self) -> Float[Tensor, " rows"]:
        """Log-sum-exp of all scores, less the highest of the others (less 0 where there is none)."""
        others = self._log_total + _softplus(torch.where(self._alone, 0.0, -self._gap))
        return torch.where(self._alone, self._sums.label_scores, others)

    @property
    def log_normalizer(self) -> Float[Tensor, " rows"]:
        """Log-sum-exp of each row."""
        return self._maximum + self.log_normalizer_above_maximum

    @property
    def _mean_above_maximum(self) -> Float[Tensor, " rows"]:
        assert self._sums.centered is not None
        return (self._sums.centered + (self._sums.label_scores - self._maximum)) / self._classes

    @property
    def mean_logits(self) -> Float[Tensor, " rows"]:
        """Mean logit of each row."""
        assert self._sums.plain is not None
        return (self._sums.plain + self._sums.label_scores) / self._classes

    @property
    def mean_class_logps(self) -> Float[Tensor, " rows"]:
        """Mean over all classes of their log-probabilities, in nats."""
        return self._mean_above_maximum - self.log_normalizer_above_maximum

    @property
    def entropy(self) -> Float[Tensor, " rows"]:
        """Entropy of each row's distribution, in nats: that of label or not, and that among the others."""
        assert self._sums.tilted is not None
        total = torch.where(self._alone, 1.0, self._sums.total)
        among_others = self._log_total - self._sums.tilted / total
        # Below -1e4 a probability is 0 in every dtype, and 0 * -inf would be NaN.
        label, others = self.token_logps.clamp(min=-1e4), self.complement_logps.clamp(min=-1e4)
        return -label.exp() * label + others.exp() * (among_others - others)

    @property
    def log_sum_sq_probs(self) -> Float[Tensor, " rows"]:
        """Log of the sum of squared probabilities of each row."""
        assert self._sums.squares is not None
        squares = torch.where(self._alone, 1.0, self._sums.squares)
        others = 2 * self.complement_logps + squares.log() - 2 * self._log_total
        return torch.logaddexp(2 * self.token_logps, others)

    @property
    def max_logps(self) -> Float[Tensor, " rows"]:
        """Log-probability of each row's most probable class, in nats."""
        assert self._sums.highest is not None
        assert self._sums.ties is not None
        label, other = self.token_logps, self.complement_logps - self._log_total + self._sums.highest
        # Equal ones share the gradient, as in `amax`.
        tied = (label + self._sums.ties * other) / (1 + self._sums.ties)
        return torch.where(label == other, tied, torch.maximum(label, other))

    @property
    def top_20_entropy(self) -> Float[Tensor, " rows"]:
        """Entropy of the row's 20 most probable classes, renormalised, in nats; a constant (no gradient)."""
        assert self._sums.top is not None
        with torch.no_grad():
            scores = torch.cat([self._sums.top, self._sums.label_scores[:, None]], dim=1)
            highest = scores.topk(min(TOP, scores.shape[1]), dim=1).values
            log_probs = torch.log_softmax(highest, dim=1)
            return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(1)


def _softplus(x: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    # torch's own `softplus` returns x itself above 20.
    return torch.logaddexp(x, torch.zeros_like(x))
