"""Metric objectives that are a softmax over the other rows of the batch."""

import torch

from lossmith._checks import check_positive
from lossmith._numerics import at_least_float32, masked_logsumexp
from lossmith._typing import Bool, Float, Tensor
from lossmith.objectives._registry import objective


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
        pytorch-metric-learning: same value at temperature 0.1. sentence-transformers has no such loss; SetFit gives NaN
        for a class with one sample. The authors' code multiplies by temperature / base_temperature (0.07 / 0.07).

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
