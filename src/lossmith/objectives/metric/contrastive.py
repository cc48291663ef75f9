"""Metric objectives that are a softmax over the other rows of the batch."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_positive
from lossmith._numerics import at_least_float32, masked_logsumexp
from lossmith._typing import Bool, Float, Int, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.metric._pieces import softplus


@objective(
    family="metric",
    item="anchor",
    source="https://arxiv.org/abs/2004.11362",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
    needs_positives=True,
    row_local=True,
)
def supcon_loss(
    similarities: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, " anchors"]:
    r"""Draw rows of one class together and apart from all other rows of the batch.

    With $S$ the similarities of the embeddings, $P(i)$ the other rows of the class of $i$ and $T$ the temperature,

    $$\ell_i = \frac{1}{|P(i)|} \sum_{p \in P(i)} \Bigl[-S_{ip}/T + \log \sum_{a \ne i} e^{S_{ia}/T}\Bigr].$$

    Args:
        similarities: Dot product of each anchor with each candidate; cosines unless `normalize=False`.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        temperature: Divides the similarities, > 0.

    Returns:
        One loss per anchor, in nats, >= 0; 0 for an anchor without a positive, which does not count in the mean.
        Equal to log(anchors - 1) where all embeddings coincide.

    Raises:
        ObjectiveInputError: If `temperature` is not positive.

    Source:
        Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2 (the sum outside the logarithm),
        https://arxiv.org/abs/2004.11362. Deviation: one view per row; anchors without a positive are left out.

    Use when:
        A few classes, many examples of each in a batch, and the embeddings themselves matter (retrieval, few shots).

    Relatives:
        `nt_xent` averages over pairs and keeps the other positives out of the denominator; equal to it where every
        class has two rows. `nca` puts the sum over positives inside the logarithm.

    Elsewhere:
        pytorch-metric-learning: same value at temperature 0.1, except that a batch of one class is 0 there.
        sentence-transformers has no such loss; SetFit gives NaN for a class with one sample. The authors' code
        multiplies by temperature / base_temperature (0.07 / 0.07).

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> supcon_loss(torch.ones(3, 3), same, different)
        tensor([0.6931, 0.6931, 0.0000])
    """
    check_positive("temperature", temperature)
    scores = at_least_float32(similarities) / temperature
    log_sums = masked_logsumexp(scores, same | different)
    to_positives = torch.where(same, log_sums[:, None] - scores, torch.zeros_like(scores)).sum(-1)
    # An anchor without positives has the sum 0 already; dividing by 1 instead of 0 keeps its gradient 0.
    return to_positives / same.sum(-1).clamp(min=1)


@objective(
    family="metric",
    item="pair",
    source="https://arxiv.org/abs/2002.05709",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
    row_local=True,
)
def nt_xent_loss(
    similarities: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    temperature: float = 0.07,
) -> Float[Tensor, " pairs"]:
    r"""Make each row pick out each of its positives among the rows of other classes.

    With $S$ the similarities, $N(i)$ the rows of other classes and $T$ the temperature, for each positive pair $(i, p)$

    $$\ell_{ip} = -\log \frac{e^{S_{ip}/T}}{e^{S_{ip}/T} + \sum_{n \in N(i)} e^{S_{in}/T}}.$$

    Args:
        similarities: Dot product of each anchor with each candidate; cosines unless `normalize=False`.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        temperature: Divides the similarities, > 0.

    Returns:
        One loss per ordered positive pair, row by row, in nats, >= 0; none where no class has two rows. Equal to
        log(1 + negatives) where all embeddings coincide, and to 0 without negatives.

    Raises:
        ObjectiveInputError: If `temperature` is not positive.

    Source:
        Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", eq. 1,
        https://arxiv.org/abs/2002.05709. Deviation: positives are all rows of the class, not one other view; the other
        positives of an anchor are not in its denominator (with two rows per class there are none: the paper's loss).

    Use when:
        Pairs: two views, two paraphrases, a question and its answer, each pair a class of its own. Where classes are
        large and uneven prefer `supcon`, since here a class counts by the square of its size.

    Relatives:
        Equals `supcon` at the same temperature where every class has two rows. `n_pairs` compares with one row of each
        other class.

    Elsewhere:
        pytorch-metric-learning: same value and default. sentence-transformers' MultipleNegativesRankingLoss compares
        queries with documents only, at a scale of 20 (temperature 0.05), and knows no labels.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> nt_xent_loss(torch.ones(3, 3), same, different)
        tensor([0.6931, 0.6931])
    """
    check_positive("temperature", temperature)
    scores = at_least_float32(similarities) / temperature
    rows, positives = same.nonzero(as_tuple=True)
    # log((e^s + N) / e^s) = log(1 + e^{log N - s}): exact also where the positive outweighs everything.
    return softplus(masked_logsumexp(scores, different)[rows] - scores[rows, positives])


@objective(
    family="metric",
    item="anchor",
    source="https://papers.nips.cc/paper_files/paper/2004/hash/42fe880812925e520249e808937738d2-Abstract.html",
    batch_coupled=True,
    module_hyperparameters={"normalize": True},
    needs_positives=True,
    row_local=True,
)
def nca_loss(
    distances: Float[Tensor, "anchors candidates"],
    same: Bool[Tensor, "anchors candidates"],
    different: Bool[Tensor, "anchors candidates"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, " anchors"]:
    r"""Raise the chance that a random near neighbour of each row is of its class.

    Row $i$ picks neighbour $a$ with a probability that falls with the squared distance; with $P(i)$ the other rows of
    its class,

    $$\ell_i = -\log \frac{\sum_{p \in P(i)} e^{-\lambda d_{ip}^2}}{\sum_{a \ne i} e^{-\lambda d_{ia}^2}}.$$

    Args:
        distances: Euclidean distance of each anchor to each candidate, of unit vectors unless `normalize=False`.
        same: True where the candidate is another row of the anchor's class.
        different: True where the candidate is of another class.
        scale: Inverse temperature $\lambda$ of the squared distances, > 0.

    Returns:
        One loss per anchor, in nats, >= 0; 0 for an anchor without a positive, which does not count in the mean.
        Equal to log((positives + negatives) / positives) where all embeddings coincide.

    Raises:
        ObjectiveInputError: If `scale` is not positive.

    Source:
        Goldberger et al. 2004, "Neighbourhood Components Analysis", section 2 (the variant that sums log
        probabilities),
        https://papers.nips.cc/paper_files/paper/2004/hash/42fe880812925e520249e808937738d2-Abstract.html.
        Deviation: embeddings in place of a linear map; anchors without a positive, whose loss would be infinite, are
        left out.

    Use when:
        The model serves nearest-neighbour classification and a class may keep several clusters: one near positive is
        enough, where `supcon` wants all of them near.

    Relatives:
        With normalisation it equals `supcon` at temperature 1/(2 scale) where every class has two rows. `proxy_nca` has
        proxies in the place of rows.

    Elsewhere:
        pytorch-metric-learning: same value; `scale` is called `softmax_scale` there, default 1, and an anchor whose
        probability underflows to 0 is dropped from the mean, just where the loss is largest. Neither TRL nor
        sentence-transformers has it.

    Example:
        >>> same = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
        >>> different = torch.tensor([[False, False, True], [False, False, True], [True, True, False]])
        >>> nca_loss(torch.ones(3, 3), same, different)
        tensor([0.6931, 0.6931, 0.0000])
    """
    check_positive("scale", scale)
    scores = -scale * at_least_float32(distances).square()
    # -log(P / (P + N)) = log(1 + e^{log N - log P}).
    losses = softplus(masked_logsumexp(scores, different) - masked_logsumexp(scores, same))
    return torch.where(same.any(-1), losses, torch.zeros_like(losses))


@objective(
    family="metric",
    item="pair",
    source="https://papers.nips.cc/paper/2016/hash/6b180037abbebea991d8b1232f8a8ca9-Abstract.html",
    batch_coupled=True,
)
def n_pairs_loss(
    embeddings: Float[Tensor, "anchors dim"],
    labels: Int[Tensor, " anchors"],
    *,
    normalize: bool = False,
) -> Float[Tensor, " pairs"]:
    r"""Make one row of each class recognise its partner among the partners of all other classes.

    With $(x_c, x_c^+)$ the pair of class $c$, its first two rows in the batch,

    $$\ell_c = \log\Bigl(1 + \sum_{k \ne c} e^{x_c^\top x_k^+ - x_c^\top x_c^+}\Bigr).$$

    Args:
        embeddings: One vector per row of the batch.
        labels: Class of each row, any integers. A class with one row takes no part, the third and later rows of a class
            do not either.
        normalize: Whether embeddings are L2-normalised first. Cosines without a temperature separate little: the loss
            then stays above log(1 + (pairs - 1) e^-2).

    Returns:
        One loss per class with two rows or more, in the order of the class ids, in nats, >= 0. Equal to log pairs where
        all embeddings coincide, and to 0 for a single pair.

    Source:
        Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", the loss N-pair-mc,
        https://papers.nips.cc/paper/2016/hash/6b180037abbebea991d8b1232f8a8ca9-Abstract.html. Deviation: without the
        penalty on the length of the embeddings, which a term of its own can add.

    Use when:
        Batches built as two rows of each of many classes. Without normalisation lengths can grow: watch them, or prefer
        `nt_xent`.

    Relatives:
        Equals `normalized_softmax` of the first rows with the partners as proxies, at temperature 1 and the same
        `normalize`. `nt_xent` uses all rows and all pairs.

    Elsewhere:
        pytorch-metric-learning: the same pairs; normalises unless given `DotProductSimilarity(normalize_embeddings=
        False)`. sentence-transformers: MultipleNegativesRankingLoss is this on given pairs, of cosines times 20.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
        >>> n_pairs_loss(rows, torch.tensor([4, 7, 4, 7, 5]))
        tensor([0.3133, 0.3133])
    """
    rows = at_least_float32(embeddings)
    first, second = _first_two_rows(labels)
    if normalize:
        rows = F.normalize(rows, dim=-1)
    similarities = rows[first] @ rows[second].T
    own = torch.eye(len(first), dtype=torch.bool, device=labels.device)
    return softplus(masked_logsumexp(similarities, ~own) - similarities.diagonal())


def _first_two_rows(labels: Int[Tensor, " anchors"]) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Where the first and the second row of every class with two rows or more stand, by class id."""
    order = torch.argsort(labels, stable=True)
    ranked = labels[order]
    same_as_next = ranked[1:] == ranked[:-1]
    starts = torch.ones_like(same_as_next)
    starts[1:] = ~same_as_next[:-1]
    places = (starts & same_as_next).nonzero().squeeze(-1)
    return order[places], order[places + 1]
