"""Region objectives: one loss per region (a batch or a sequence) over the classes present among its labels."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_one_of
from lossmith._typing import Float, Int, Tensor
from lossmith.objectives._registry import objective


@objective(
    family="region",
    item="region",
    source="https://arxiv.org/abs/1705.08790",
    batch_coupled=True,
    aliases=("lovasz",),
)
def lovasz_softmax_loss(
    class_probs: Float[Tensor, "tokens classes"],
    class_ids: Int[Tensor, " tokens"],
    *,
    classes: str = "present",
) -> Float[Tensor, ""]:
    r"""Raise the Jaccard index (intersection over union) of every class present in the region.

    With errors $m_i = 1 - p_{ic}$ on the tokens labelled $c$ and $m_i = p_{ic}$ on the others, sorted decreasingly by
    the permutation $\pi$,

    $$\ell = \frac{1}{|C|}\sum_{c \in C} \sum_i m_{\pi_i}\,
    \bigl(\Delta_c(\pi_1..\pi_i) - \Delta_c(\pi_1..\pi_{i-1})\bigr),$$

    where $\Delta_c$ is the Jaccard loss of class $c$ when exactly those tokens are wrong.

    Args:
        class_probs: Probability of each present class at each token of the region, in [0, 1].
        class_ids: Column of each token's label among the present classes.
        classes: Which classes the mean runs over; only "present": every absent class would add its largest
            probability, some 50,000 terms that drown the few that matter.

    Returns:
        One loss for the region, in [0, 1]. Equal to 1 - p for a region of one token; 0 for an empty region.

    Raises:
        ObjectiveInputError: If `classes` is not "present".

    Source:
        Berman et al. 2018, "The Lovász-Softmax loss", eq. 9 and algorithm 1, https://arxiv.org/abs/1705.08790.
        Deviation: none (`classes="present"` as in the authors' code).

    Example:
        >>> lovasz_softmax_loss(torch.tensor([[0.75]]), torch.tensor([0]))
        tensor(0.2500)
    """
    check_one_of("classes", classes, ("present",))
    if class_ids.numel() == 0:
        return class_probs.sum()
    foreground = F.one_hot(class_ids, class_probs.shape[1]).to(class_probs.dtype)
    errors, order = torch.sort((foreground - class_probs).abs(), dim=0, descending=True)
    # The gradient of the Lovász extension is constant between ties, so the sort order carries no gradient.
    slope = _jaccard_steps(foreground.gather(0, order))
    return (errors * slope).sum(0).mean()


def _jaccard_steps(foreground_sorted: Float[Tensor, "tokens classes"]) -> Float[Tensor, "tokens classes"]:
    """Increase of the Jaccard loss of each class as tokens turn wrong one after the other, largest error first."""
    total = foreground_sorted.sum(0)
    intersection = total - foreground_sorted.cumsum(0)
    union = total + (1 - foreground_sorted).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard.diff(dim=0)])
