"""The Lovász extension of the Jaccard loss: errors of a class's tokens, sorted."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_one_of
from lossmith._numerics import at_least_float32
from lossmith._typing import Bool, Float, Int, Tensor
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

    Use when:
        The score that counts is an intersection over union of token classes, or a few rare classes would drown in a
        mean over tokens; added to `cross_entropy` (0.6 + 0.4 in the language-model paper) rather than alone, since it
        asks for the order of the errors and says little while every probability is near 0.

    Relatives:
        `jaccard` at `smooth=0` equals it where every probability is 0 or 1 and differs in between: it is a ratio of
        sums, this a piecewise linear extension. `dice` and `generalized_dice` aim at the same overlap. On a region of
        one token it is 1 - p, as is `generalized_cross_entropy` at `q=1`.

    Elsewhere:
        The authors' code loops over the classes and gives the same value. The released language-model code
        (segmentation-losses-nlp) sets ignored rows to probability 0 and label 0 where ours are removed, which adds a
        false class 0, and visits all classes of the vocabulary. segmentation_models_pytorch: `LovaszLoss`. TRL and
        pytorch-metric-learning have none.

    Example:
        >>> lovasz_softmax_loss(torch.tensor([[0.75]]), torch.tensor([0]))
        tensor(0.2500)
    """
    check_one_of("classes", classes, ("present",))
    class_probs = at_least_float32(class_probs)
    tokens, present = class_probs.shape
    rows = torch.arange(tokens, device=class_probs.device)
    own = class_probs.flatten().index_select(0, rows * present + class_ids)
    # Sorted decreasingly, an error below the smallest one of its class's own tokens has slope 0: only larger ones are
    # looked at, and as the probabilities of a token sum to 1, there are few of them.
    floor = 1 - torch.zeros_like(class_probs[0]).scatter_reduce(0, class_ids, own.detach(), "amax")
    larger = class_probs.detach() > floor
    larger[rows, class_ids] = False
    others = larger.flatten().nonzero().squeeze(1)
    errors = torch.cat([1 - own, class_probs.flatten().index_select(0, others)])
    segments = torch.cat([class_ids, others % present])
    # By class, and within it decreasingly: two stable sorts. The slope is constant between ties, so the order carries
    # no gradient.
    order = errors.detach().argsort(descending=True)
    order = order[segments[order].argsort(stable=True)]
    slopes = _jaccard_slopes(order < tokens, segments[order], class_ids.bincount(minlength=present))
    return (errors[order] * slopes.to(errors.dtype)).sum() / max(present, 1)


def _jaccard_slopes(
    foreground: Bool[Tensor, " entries"], segments: Int[Tensor, " entries"], sizes: Int[Tensor, " classes"]
) -> Float[Tensor, " entries"]:
    """Increase of the Jaccard loss of each class as its tokens turn wrong one after the other, largest error first.

    With f of the N own tokens and b others wrong the loss is 1 - (N - f)/(N + b); the differences are written out, so
    that nothing cancels.

    Args:
        foreground: Whether an entry is a token of its class; entries are sorted by class, then by falling error.
        segments: Class of each entry.
        sizes: Number of own tokens of each class.
    """
    starts = F.pad(segments.bincount(minlength=len(sizes)).cumsum(0), (1, 0))[:-1]
    own_starts = F.pad(sizes.cumsum(0), (1, 0))[:-1]
    place = torch.arange(1, len(segments) + 1, device=segments.device) - starts[segments]
    own_wrong = foreground.cumsum(0) - own_starts[segments]
    size = sizes[segments].double()
    union = size + place - own_wrong
    return torch.where(foreground, 1 / union, (size - own_wrong) / (union * (union - 1)).clamp(min=1))
