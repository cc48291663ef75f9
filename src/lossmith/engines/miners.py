"""Miners: which of the candidates that an anchor could be compared with it is compared with.

A miner reads an anchor's own row of similarities or distances, as constants, and takes places out of the masks `same`
and `different`; the objective that reads the masks is the same one. A miner weighs an anchor's positives against its
negatives: with either side empty nothing is left of the anchor, and of any anchor both sides are left or neither.
"""

import math
from dataclasses import dataclass

import torch

from lossmith._checks import check_not_negative, check_one_of
from lossmith._typing import Bool, Float, Tensor
from lossmith.engines.similarity import IGNORED, SimilarityRows
from lossmith.errors import ObjectiveInputError
from lossmith.objectives import ObjectiveRecord

MINERS = ("none", "hard", "semi_hard", "multi_similarity")
"""Names that `miner` may have."""

Masks = tuple[Bool[Tensor, "anchors candidates"], Bool[Tensor, "anchors candidates"]]
"""Which candidates are an anchor's positives, and which its negatives."""


@dataclass(frozen=True, kw_only=True)
class Miner:
    """What is left of the tables of some anchors."""

    name: str
    """One of `MINERS`, but for "none"."""
    epsilon: float = 0.1
    """Slack of "multi_similarity", >= 0, in the unit of the table that the loss reads."""

    @property
    def leaves_one(self) -> bool:
        """Whether an anchor keeps one positive and one negative, wherever it has any: labels tell what is left."""
        return self.name == "hard"

    def mine(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """The statistics with what is left of `same` and `different`; for "semi_hard" a row per pair, as there."""
        same, different = statistics["same"], statistics["different"]
        if same.numel() == 0:
            return statistics
        if "similarities" in statistics:
            closeness = statistics["similarities"].detach()
        else:
            closeness = -statistics["distances"].detach()
        if self.name == "semi_hard":
            return semi_hard_pairs(closeness, statistics)
        if self.name == "hard":
            same, different = hard(closeness, same, different)
        else:
            same, different = multi_similarity(closeness, same, different, epsilon=self.epsilon)
        return {**statistics, "same": same, "different": different}

    def left(self, rows: SimilarityRows, names: tuple[str, ...], chunks: list[slice]) -> Bool[Tensor, " anchors"]:
        """Which anchors have candidates left, from the tables of a chunk at a time; labels tell where they can."""
        if self.leaves_one:
            positives = rows.positive_counts
            negatives = (rows.candidate_labels != IGNORED).sum() - 1 - positives
            return (positives > 0) & (negatives > 0)
        # By the products that the losses are made with, so that rounding chooses alike.
        if len(chunks) > 1:
            rows = rows.with_vectors(rows.anchors.detach(), rows.candidates.detach())
        kept = [self.mine(rows.part(chunk).statistics(names))["same"].any(-1) for chunk in chunks]
        return torch.cat([rows.labels[:0].bool(), *kept])


def make_miner(record: ObjectiveRecord, name: str, epsilon: float) -> Miner | None:
    """The miner of that name for an objective; None for "none".

    Raises:
        ObjectiveInputError: For an unknown name, an epsilon that nothing reads, or an objective it cannot restrict.
    """
    check_one_of("miner", name, MINERS)
    check_not_negative("miner_epsilon", epsilon)
    if epsilon != Miner.epsilon and name != "multi_similarity":
        raise ObjectiveInputError(f"`miner_epsilon` belongs to miner='multi_similarity', got it with miner='{name}'.")
    if name != "none" and not record.takes_miner:
        raise ObjectiveInputError(no_miner(record.name))
    if name == "semi_hard" and record.item != "triplet":
        raise ObjectiveInputError(
            f"'{record.name}' cannot use miner='semi_hard', which chooses negatives for each pair of anchor and "
            f"positive: only losses of triplets do that, such as triplet_margin; give 'hard' or 'multi_similarity'."
        )
    return None if name == "none" else Miner(name=name, epsilon=epsilon)


def no_miner(loss: str, name: str = "miner") -> str:
    """One sentence for a loss that cannot be restricted."""
    return (
        f"'{loss}' has no `{name}`: a miner chooses among the rows that an anchor is compared with, for losses that "
        f"compare each row with others, such as triplet_margin, multi_similarity or supcon."
    )


def hard(
    closeness: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
) -> Masks:
    """The farthest positive and the nearest negative of each anchor, the first of several at the same distance.

    Batch-hard mining: Hermans et al. 2017, "In Defense of the Triplet Loss", eq. 5, https://arxiv.org/abs/1703.07737.

    Example:
        >>> closeness = torch.tensor([[1.0, 0.2, 0.1, 0.6, 0.3]])
        >>> same = torch.tensor([[False, True, True, False, False]])
        >>> hard(closeness, same, torch.tensor([[False, False, False, True, True]]))
        (tensor([[False, False,  True, False, False]]), tensor([[False, False, False,  True, False]]))
    """
    both = (same.any(-1) & different.any(-1))[:, None]
    # torch promises the first of equal values to argmin and argmax; min and max promise none.
    farthest = closeness.masked_fill(~same, math.inf).argmin(-1, keepdim=True)
    nearest = closeness.masked_fill(~different, -math.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(same).scatter(1, farthest, both), torch.zeros_like(same).scatter(1, nearest, both)


def multi_similarity(
    closeness: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    epsilon: float,
) -> Masks:
    """Negatives nearer than the farthest positive, positives farther than the nearest negative, with a slack.

    Wang et al. 2019, "Multi-Similarity Loss", eq. 11 and 12, https://arxiv.org/abs/1904.06627.

    Example:
        >>> closeness = torch.tensor([[1.0, 0.8, 0.5, 0.6, 0.3]])
        >>> same = torch.tensor([[False, True, True, False, False]])
        >>> multi_similarity(closeness, same, torch.tensor([[False, False, False, True, True]]), epsilon=0.1)
        (tensor([[False, False,  True, False, False]]), tensor([[False, False, False,  True, False]]))
    """
    farthest = closeness.masked_fill(~same, math.inf).amin(-1, keepdim=True)
    nearest = closeness.masked_fill(~different, -math.inf).amax(-1, keepdim=True)
    # Both conditions are the same difference at the farthest positive and the nearest negative, so that rounding cannot
    # leave one side alone. Negated, so that NaN stays to be seen instead of leaving nothing.
    return same & ~(nearest - closeness <= -epsilon), different & ~(closeness - farthest <= -epsilon)


def semi_hard_pairs(closeness: Float[Tensor, "anchors candidates"], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """A row for each pair of anchor and positive: this positive alone, and the negatives farther than it.

    Schroff et al. 2015, "FaceNet", eq. 4, https://arxiv.org/abs/1503.03832. The farther of these negatives are beyond
    the loss's own margin and add nothing, so that what counts lies between the positive and the margin.

    Args:
        closeness: Of each anchor to each candidate.
        statistics: `same`, `different` and tables of the same shape.

    Returns:
        The same names, [pairs, candidates], in the order of anchors and positives.

    Example:
        >>> tables = {
        ...     "same": torch.tensor([[False, True, True, False, False]]),
        ...     "different": torch.tensor([[False, False, False, True, True]]),
        ... }
        >>> made = semi_hard_pairs(torch.tensor([[1.0, 0.8, 0.5, 0.6, 0.3]]), tables)
        >>> made["different"].int().tolist()
        [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    """
    anchors, positives = statistics["same"].nonzero(as_tuple=True)
    made = {name: table[anchors] for name, table in statistics.items()}
    close = closeness[anchors]
    # Negated, so that NaN stays to be seen.
    made["different"] &= ~(close >= close.gather(1, positives[:, None]))
    made["same"] = torch.zeros_like(made["same"]).scatter(1, positives[:, None], True)
    return made
