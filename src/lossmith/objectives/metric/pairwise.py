"""Metric objectives that set margins, hard or soft, between positive and negative pairs of the batch."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_finite, check_not_negative, check_positive
from lossmith._numerics import at_least_float32, masked_logsumexp
from lossmith._typing import Bool, Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.metric._pieces import softplus


@objective(
    family="metric",
    item="batch",
    source="https://doi.org/10.1109/CVPR.2006.100",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
)
def contrastive_loss(
    distances: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Draw rows of one class within one distance and push rows of different classes beyond another.

    With $d$ the Euclidean distance and each mean over the pairs whose term is not zero,

    $$\ell = \mathop{\mathrm{mean}}_{\text{positive pairs}} \max(0, d_{ip} - m_\mathrm{pos})
        + \mathop{\mathrm{mean}}_{\text{negative pairs}} \max(0, m_\mathrm{neg} - d_{in}).$$

    Args:
        distances: Euclidean distance of each anchor to each candidate, of unit vectors unless `normalize=False`.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        pos_margin: Distance within which positives are left alone, >= 0.
        neg_margin: Distance beyond which negatives are left alone, > 0. Unit vectors are at most 2 apart.

    Returns:
        One loss for the batch, >= 0, in units of distance; a side without pairs, or without violations, adds 0. Equal
        to `neg_margin` where all embeddings coincide.

    Raises:
        ObjectiveInputError: If `pos_margin` is negative or `neg_margin` is not positive.

    Source:
        Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping", eq. 4,
        https://doi.org/10.1109/CVPR.2006.100. Deviation: hinges instead of half their squares, a margin for positives,
        and a mean over the violating pairs of each side instead of a sum, so that easy pairs do not dilute it. The
        number of violations steps, and with it the value, where a pair crosses its margin.

    Use when:
        Absolute distances matter: a threshold decides later whether two texts are the same. For ranking alone
        `triplet_margin` asks less.

    Relatives:
        `triplet_margin` compares the two distances of an anchor with each other; `lifted_structure` replaces the mean
        over negatives by a soft maximum.

    Elsewhere:
        pytorch-metric-learning: same value and defaults. sentence-transformers: half squares, cosine distance, margin
        0.5, mean over given pairs.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> distances = torch.tensor([[0.0, 0.5, 2.0], [0.5, 0.0, 0.75], [2.0, 0.75, 0.0]])
        >>> contrastive_loss(distances, same, different)
        tensor(0.7500)
    """
    check_not_negative("pos_margin", pos_margin)
    check_positive("neg_margin", neg_margin)
    distances = at_least_float32(distances)
    pulls = F.relu(distances - pos_margin).masked_fill(~same, 0.0)
    pushes = F.relu(neg_margin - distances).masked_fill(~different, 0.0)
    return _mean_of_non_zero(pulls) + _mean_of_non_zero(pushes)


def _mean_of_non_zero(values: Float[Tensor, "anchors candidates"]) -> Float[Tensor, ""]:
    return values.sum() / (values > 0).sum().clamp(min=1)


@objective(
    family="metric",
    item="triplet",
    source="https://arxiv.org/abs/1503.03832",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
    row_local=True,
)
def triplet_margin_loss(
    distances: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    margin: float = 0.05,
) -> Float[Tensor, " triplets"]:
    r"""Keep every positive of an anchor nearer than each of its negatives, by a margin.

    For each anchor $i$, positive $p$ and negative $n$ with a loss above zero,

    $$\ell_{ipn} = d_{ip} - d_{in} + m > 0.$$

    Args:
        distances: Euclidean distance of each anchor to each candidate, of unit vectors unless `normalize=False`.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        margin: Required gap $m$ between the distances, >= 0. Unit vectors are at most 2 apart: a margin of 2 or more,
            such as the 5 of several frameworks, needs `normalize=False`.

    Returns:
        One loss per violating triplet, ordered by anchor, positive and negative, > 0; the others are left out, so that
        the mean is over violations only. Equal to `margin` for every triplet where all embeddings coincide.

    Raises:
        ObjectiveInputError: If `margin` is negative.

    Source:
        Schroff et al. 2015, "FaceNet", eq. 3, https://arxiv.org/abs/1503.03832. Deviation: distances instead of their
        squares, all triplets of the batch instead of mined ones unless it is built with a `miner` ("semi_hard" is the
        paper's, "hard" batch-hard), a mean over the violating ones instead of a sum.

    Use when:
        Only the order of neighbours matters. Late in training few triplets are left and the mean over them is noisy:
        `multi_similarity` weighs them smoothly.

    Relatives:
        `contrastive` sets the margins on absolute distances; `lifted_structure` lets all negatives of a pair act
        at once. With `miner="multi_similarity"` it is the same wherever the miner's epsilon is not below `margin`: what
        is left out violates no margin.

    Elsewhere:
        pytorch-metric-learning: same value and default, over a list of all triplets. sentence-transformers:
        BatchAllTripletLoss is the same mean, without normalisation and with margin 5.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> distances = torch.tensor([[0.0, 0.5, 2.0], [0.5, 0.0, 0.25], [2.0, 0.25, 0.0]])
        >>> triplet_margin_loss(distances, same, different, margin=0.5)
        tensor([0.7500])
    """
    check_not_negative("margin", margin)
    distances = at_least_float32(distances)
    # [positive pairs, candidates], not anchors x candidates x candidates.
    rows, positives = same.nonzero(as_tuple=True)
    gaps = distances[rows, positives][:, None] - distances[rows] + margin
    return gaps[different[rows] & (gaps > 0)]


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/1904.06627",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
    row_local=True,
)
def multi_similarity_loss(
    similarities: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
) -> Float[Tensor, " anchors"]:
    r"""Lift positives above a similarity and press negatives below it, the hardest of each most.

    With $S$ the similarities and $\lambda$ the base,

    $$\ell_i = \frac{1}{\alpha}\log\Bigl(1 + \sum_{p \in P(i)} e^{-\alpha(S_{ip} - \lambda)}\Bigr)
        + \frac{1}{\beta}\log\Bigl(1 + \sum_{n \in N(i)} e^{\beta(S_{in} - \lambda)}\Bigr).$$

    Args:
        similarities: Dot product of each anchor with each candidate; cosines unless `normalize=False`.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        alpha: Steepness for positives, > 0.
        beta: Steepness for negatives, > 0.
        base: Similarity $\lambda$ that parts positives from negatives.

    Returns:
        One loss per anchor, >= 0, in units of similarity; every anchor counts, and a side without rows adds 0. With one
        positive and one negative at the base log(2)/alpha + log(2)/beta.

    Raises:
        ObjectiveInputError: If `alpha` or `beta` is not positive or `base` is not finite.

    Source:
        Wang et al. 2019, "Multi-Similarity Loss with General Pair Weighting", eq. 15, https://arxiv.org/abs/1904.06627.
        Deviation: without the paper's mining of pairs: all of them count, with its weights; built with
        `miner="multi_similarity"` it mines them.

    Use when:
        Batches hold several rows of each class and hard pairs should count most, without mining them.

    Relatives:
        As `alpha` and `beta` grow it becomes relu(base - least positive) + relu(largest negative - base).
        `proxy_anchor` at margin 0 is the same function with proxies as anchors.

    Elsewhere:
        pytorch-metric-learning: same value and defaults; its miner is a separate object. It and the authors' code,
        which mines, drop an anchor without pairs from the sum, not from the divisor; our miner drops it from both.
        Neither TRL nor sentence-transformers has it.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> multi_similarity_loss(torch.full((3, 3), 0.5), same, different, alpha=1.0, beta=1.0)
        tensor([1.3863, 1.3863, 1.0986])
    """
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    check_finite("base", base)
    above = at_least_float32(similarities) - base
    pulls = softplus(masked_logsumexp(-alpha * above, same)) / alpha
    pushes = softplus(masked_logsumexp(beta * above, different)) / beta
    return pulls + pushes


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/2002.10857",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
    needs_positives=True,
    row_local=True,
)
def circle_loss(
    similarities: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    margin: float = 0.4,
    gamma: float = 80.0,
) -> Float[Tensor, " anchors"]:
    r"""Separate positives from negatives, each similarity at a pace set by how far it is from its optimum.

    With the weights $a_p = \max(0, 1 + m - S_{ip})$ and $a_n = \max(0, S_{in} + m)$ held constant,

    $$\ell_i = \log\Bigl(1 + \sum_{n \in N(i)} e^{\gamma a_n (S_{in} - m)}
        \sum_{p \in P(i)} e^{-\gamma a_p (S_{ip} - 1 + m)}\Bigr).$$

    Args:
        similarities: Cosine of each anchor with each candidate; the optima 1 and 0 mean cosines, so `normalize=False`
            is for vectors that have unit length already.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        margin: Relaxation $m$: positives should pass $1 - m$, negatives stay below $m$.
        gamma: Scale, > 0.

    Returns:
        One loss per anchor, in nats, >= 0; 0 for an anchor without a positive, which does not count in the mean, and
        for one without a negative, which does. With one positive at 1 - m and one negative at m log 2.

    Raises:
        ObjectiveInputError: If `gamma` is not positive or `margin` is not finite.

    Source:
        Sun et al. 2020, "Circle Loss", eq. 6 to 8, https://arxiv.org/abs/2002.10857. Deviation: the sums are per anchor
        (the paper writes one anchor) and averaged over the anchors that have a positive.

    Use when:
        Positives and negatives are unevenly hard: the pair that is worse gets the steeper slope. Not where few rows per
        class fit the batch: an anchor without both kinds gives nothing.

    Relatives:
        `multi_similarity` treats the two sides apart; `nt_xent` compares the two like this loss, without weights and
        margin. Equals neither at any setting.

    Elsewhere:
        pytorch-metric-learning: same value and defaults; `margin` is called `m` there, and anchors whose loss rounds to
        0 are left out of the mean. Neither TRL nor sentence-transformers has it.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> circle_loss(torch.full((3, 3), 0.5), same, different, margin=0.5)
        tensor([0.6931, 0.6931, 0.0000])
    """
    check_positive("gamma", gamma)
    check_finite("margin", margin)
    scores = at_least_float32(similarities)
    positive_weights = F.relu(1 + margin - scores.detach())
    negative_weights = F.relu(scores.detach() + margin)
    pulls = masked_logsumexp(-gamma * positive_weights * (scores - (1 - margin)), same)
    pushes = masked_logsumexp(gamma * negative_weights * (scores - margin), different)
    # A side without rows is -1e30 here, so the loss and its gradient are 0.
    return softplus(pulls + pushes)


@objective(
    family="metric",
    item="pair",
    source="https://arxiv.org/abs/1511.06452",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
)
def lifted_structure_loss(
    distances: Float[Tensor, "anchors anchors"],
    same: Bool[Tensor, "anchors anchors"],
    different: Bool[Tensor, "anchors anchors"],
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
) -> Float[Tensor, " pairs"]:
    r"""Draw each positive pair together while all negatives of both its rows are pushed away, the nearest most.

    For each positive pair $(i, p)$,

    $$\ell_{ip} = \tfrac12 \max\Bigl(0,\; \log\Bigl[\sum_{n \in N(i)} e^{m_\mathrm{neg} - d_{in}}
        + \sum_{n \in N(p)} e^{m_\mathrm{neg} - d_{pn}}\Bigr] + d_{ip} - m_\mathrm{pos}\Bigr)^2.$$

    Args:
        distances: Euclidean distance of each row to each, of unit vectors unless `normalize=False`.
        same: True where the other row is of the same class.
        different: True where the other row is of another class.
        neg_margin: Distance that negatives should keep.
        pos_margin: Distance that positives may keep. Only neg_margin - pos_margin counts.

    Returns:
        One loss per ordered positive pair, row by row, >= 0; each pair appears in both orders with the same value, and
        pairs with loss 0 count. Equal to (log(2 negatives) + neg_margin - pos_margin)^2 / 2 where all embeddings
        coincide; 0 without negatives.

    Raises:
        ObjectiveInputError: If `neg_margin` or `pos_margin` is not finite.

    Source:
        Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding", eq. 4,
        https://arxiv.org/abs/1511.06452. Deviation: a margin for positives, 0 as in the paper by default.

    Use when:
        All pairs of a batch should count and memory allows the square matrix. On unit vectors many negatives keep the
        hinge open (their log-sum-exp grows with their number): raise `pos_margin` or use `normalize=False`.

    Relatives:
        Its exponent is a soft maximum over the negatives of the triplets that `triplet_margin` takes one by one.
        `contrastive` takes pairs one by one.

    Elsewhere:
        pytorch-metric-learning: same value and defaults. Neither TRL nor sentence-transformers has it.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> lifted_structure_loss(torch.zeros(3, 3), same, different)
        tensor([1.4334, 1.4334])
    """
    check_finite("neg_margin", neg_margin)
    check_finite("pos_margin", pos_margin)
    distances = at_least_float32(distances)
    near_negatives = masked_logsumexp(neg_margin - distances, different)
    rows, positives = same.nonzero(as_tuple=True)
    # A pair without negatives has -1e30 inside the hinge: loss and gradient 0.
    nearness = torch.logaddexp(near_negatives[rows], near_negatives[positives])
    return F.relu(nearness + distances[rows, positives] - pos_margin).square() / 2
