"""The dense engine: every statistic of the vocabulary from logits that exist. The readable reference."""

from functools import cached_property

import torch
import torch.nn.functional as F

from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Int, Tensor
from lossmith.engines.gather import gather_rows


class DenseTokenStatistics:
    """Token statistics of valid rows, each computed when first asked for.

    All of them are differentiable, and all but `log_normalizer` and `mean_logits` are formed relative to the row's
    maximum, so that logits of 1e4 lose no digits.

    Args:
        logits: Unnormalised scores; half precision is raised to float32.
        labels: Class of each row, in [0, vocab).
    """

    def __init__(self, logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]):
        self.logits = at_least_float32(logits)
        self.labels = labels

    def get(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The named statistics, and only those."""
        return {name: getattr(self, name) for name in names}

    @cached_property
    def token_logps(self) -> Float[Tensor, " tokens"]:
        """Log-probability of each row's label, in nats."""
        return -F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def log_normalizer(self) -> Float[Tensor, " tokens"]:
        """Log-sum-exp of each row."""
        return torch.logsumexp(self.logits, dim=-1)

    @cached_property
    def mean_logits(self) -> Float[Tensor, " tokens"]:
        """Mean logit of each row."""
        return self.logits.mean(-1)

    @cached_property
    def mean_class_logps(self) -> Float[Tensor, " tokens"]:
        """Mean over all classes of their log-probabilities, in nats: `mean_logits - log_normalizer`, where the digits
        that two large numbers share do not cancel.
        """
        return self._log_probs.mean(-1)

    @cached_property
    def _log_probs(self) -> Float[Tensor, "tokens vocab"]:
        return F.log_softmax(self.logits, dim=-1)

    @cached_property
    def entropy(self) -> Float[Tensor, " tokens"]:
        """Entropy of each row's distribution, in nats."""
        # A masked class (logit -inf) adds 0. It is replaced before the product: 0 * -inf would be NaN in the gradient
        # even where `where` drops the value.
        log_probs = self._log_probs.masked_fill(self._log_probs == -torch.inf, 0.0)
        return -(self._log_probs.exp() * log_probs).sum(-1)

    @cached_property
    def top_20_entropy(self) -> Float[Tensor, " tokens"]:
        """Entropy of the row's 20 most probable classes, renormalised, in nats; a constant (no gradient)."""
        with torch.no_grad():
            highest = self.logits.topk(min(20, self.logits.shape[-1]), dim=-1).values
            log_probs = F.log_softmax(highest, dim=-1)
            return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)

    @cached_property
    def log_sum_sq_probs(self) -> Float[Tensor, " tokens"]:
        """Log of the sum of squared probabilities of each row."""
        return torch.logsumexp(2 * self._log_probs, dim=-1)

    @cached_property
    def max_logps(self) -> Float[Tensor, " tokens"]:
        """Log-probability of each row's most probable class, in nats."""
        return self._log_probs.amax(-1)

    @cached_property
    def complement_logps(self) -> Float[Tensor, " tokens"]:
        """Log of one minus the label's probability, in nats; finite where that probability rounds to 1.

        -inf, with gradient 0, where no other class is possible (one class, or all others masked).
        """
        label_column = F.one_hot(self.labels, self.logits.shape[-1]).bool()
        # Each log-sum-exp is taken relative to its own maximum, so that no digit of large logits is lost, and in their
        # difference nothing cancels, however confident the label is.
        highest = self.logits.detach().amax(-1, keepdim=True)
        others = self.logits.masked_fill(label_column, -torch.inf)
        highest_other = others.detach().amax(-1, keepdim=True)
        alone = highest_other == -torch.inf
        shifted = (others - highest_other).masked_fill(alone, 0.0)
        log_others = torch.logsumexp(shifted, dim=-1) + (highest_other - highest).squeeze(-1)
        return (log_others - torch.logsumexp(self.logits - highest, dim=-1)).masked_fill(alone.squeeze(-1), -torch.inf)


class DenseRegionStatistics:
    """Region statistics over the classes present among the labels of one region.

    Memory is tokens x present classes: the vocabulary is never one-hot encoded.

    Args:
        logits: Unnormalised scores, or log-probabilities, of the valid rows of the region.
        labels: Class of each row, in [0, vocab).
        normalized: Whether `logits` are log-probabilities already (several regions share one pass over their rows).
        gather: Whether the region holds the rows of all ranks of torch.distributed.
    """

    def __init__(
        self,
        logits: Float[Tensor, "tokens vocab"],
        labels: Int[Tensor, " tokens"],
        *,
        normalized: bool = False,
        gather: bool = False,
    ):
        # One fused pass, x - maximum - log-sum-exp, which keeps the digits of large logits.
        self._log_probs = logits if normalized else F.log_softmax(at_least_float32(logits), dim=-1)
        self._labels = labels
        self._gather = gather_rows if gather else _own_rows
        self.present, self.class_ids = torch.unique(self._gather(labels), return_inverse=True)

    def get(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The named statistics, and only those."""
        return {name: getattr(self, name) for name in names}

    @cached_property
    def _columns(self) -> Float[Tensor, "tokens classes"]:
        # Everything below reads these columns, so that the gradient fills the matrix over the vocabulary once. Not
        # [:, present]: the gradient of indexing sorts its indices, that of index_select adds columns.
        return self._log_probs.index_select(1, self.present)

    @cached_property
    def _own_class_probs(self) -> Float[Tensor, "tokens classes"]:
        return self._columns.exp()

    @cached_property
    def token_logps(self) -> Float[Tensor, " rows"]:
        """Log-probability of each row's label, in nats."""
        places = torch.searchsorted(self.present, self._labels)
        return self._gather(self._columns.gather(1, places[:, None]).squeeze(1))

    @cached_property
    def class_probs(self) -> Float[Tensor, "rows classes"]:
        """Probability of each present class at each row."""
        return self._gather(self._own_class_probs)

    @cached_property
    def class_mass(self) -> Float[Tensor, " classes"]:
        """Sum over the rows of each present class's probability."""
        return self._gather(self._own_class_probs.sum(0, keepdim=True)).sum(0)


def region_statistics(
    logits: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    counts: list[int],
    names: tuple[str, ...],
    *,
    gather: bool = False,
) -> list[dict[str, Tensor]]:
    """The named statistics of consecutive regions of `counts` rows, from one pass over all rows.

    Returns:
        One dict per region, with `class_ids` always in it; an empty dict for a region without rows.
    """
    log_probs = F.log_softmax(at_least_float32(logits), dim=-1)
    names = tuple(dict.fromkeys((*names, "class_ids")))
    regions: list[dict[str, Tensor]] = []
    # The gradient of `split` is one concatenation, where that of a slice per region would fill the whole matrix for
    # each; a single region needs neither.
    parts = [log_probs] if len(counts) == 1 else log_probs.split(counts)
    for rows, classes in zip(parts, labels.split(counts), strict=True):
        statistics = DenseRegionStatistics(rows, classes, normalized=True, gather=gather)
        regions.append(statistics.get(names) if len(statistics.class_ids) else {})
    return regions


def _own_rows(rows: Tensor) -> Tensor:
    return rows
