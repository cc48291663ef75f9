"""Region objectives that read, of each class present, how much probability its tokens and all tokens give it."""

from typing import NamedTuple

import torch

from lossmith._checks import check_not_negative, check_one_of, check_positive
from lossmith._numerics import at_least_float32, safe_pow
from lossmith._typing import Float, Int, Tensor
from lossmith.objectives._registry import objective


@objective(
    family="region",
    item="region",
    source="https://arxiv.org/abs/1707.03237",
    batch_coupled=True,
    aliases=("gdice",),
)
def generalized_dice_loss(
    token_logps: Float[Tensor, " tokens"],
    class_ids: Int[Tensor, " tokens"],
    class_mass: Float[Tensor, " classes"],
    *,
    smooth: float = 0.0,
    classes: str = "present",
    form: str = "published",
) -> Float[Tensor, ""]:
    r"""Raise one Dice overlap over all classes of the region in which every class weighs the same, however rare.

    With $N_c$ the tokens labelled $c$, $I_c$ their summed probability of $c$, $M_c$ the summed probability of $c$ over
    all tokens, $s$ the smoothing and $w_c = 1 / N_c^2$,

    $$\ell = 1 - \frac{2\sum_c w_c I_c + s}{\sum_c w_c (M_c + N_c) + s}.$$

    `form="released"` is the function of the released language-model code, for the record:

    $$\ell = -2\,\frac{\sum_c w_c I_c + s}{\sum_c w_c (M_c + N_c) + s}, \qquad w_c = (N_c + 10^{-10})^{-2},$$

    over *all* classes of the vocabulary. A class without a label weighs 1e20 there, so that value and gradients vanish
    (1e-20 and less) until every token's whole probability lies on the region's own labels: it trains nothing.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        class_ids: Column of each token's label among the present classes.
        class_mass: Probability of each present class, summed over the tokens of the region.
        smooth: Added to numerator and denominator, >= 0.
        classes: Which classes the sums run over; only "present". (`form="released"` adds the absent ones, from the
            probability that the present ones leave.)
        form: "published" or "released".

    Returns:
        One loss for the region. Published: in [0, 1], (1 - p)/(1 + p) for a region of one token. Released: in [-1, 0]
        at `smooth=0`. 0 for an empty region.

    Raises:
        ObjectiveInputError: If `smooth` is negative, or `classes` or `form` is none of the above.

    Source:
        Sudre et al. 2017, "Generalised Dice overlap as a deep learning loss function", section 2.1,
        https://arxiv.org/abs/1707.03237. Deviation: present classes only; the paper knows no absent ones. Released
        form: ignored rows are removed (the code keeps them as uniform rows labelled 0); the absent classes count as
        none where their probability is within rounding of 0; the code takes `smooth=1e-5` and the mean over sequences.

    Use when:
        Overlap counts and classes are very uneven. `dice` is the gentler choice: with 1/N^2 a class of one token weighs
        100 times one of ten, and the region's value jumps as rare tokens come and go.

    Relatives:
        `dice` at `smooth=0` where the region has a single class; on one token also `self_adjusting_dice` at
        `alpha=0, gamma=0`. `lovasz_softmax` treats classes evenly by a mean of losses instead of weights.

    Elsewhere:
        segmentation-losses-nlp: `GDiceLoss`, the released form. MONAI: `GeneralizedDiceLoss`, smoothing 1e-5 and per
        sample; absent classes take the largest weight of the others. TRL has none.

    Example:
        >>> generalized_dice_loss(torch.tensor([0.5]).log(), torch.tensor([0]), torch.tensor([0.5]))
        tensor(0.3333)
    """
    check_not_negative("smooth", smooth)
    check_one_of("classes", classes, ("present",))
    check_one_of("form", form, ("published", "released"))
    part = _overlap(token_logps, class_ids, class_mass)
    if class_ids.numel() == 0:
        return part.hits.sum() + part.leaked.sum()
    if form == "released":
        return _released_dice(part, smooth)
    weights = part.counts.pow(-2)
    total = part.hits + part.leaked + part.counts
    return (weights * (part.missed + part.leaked)).sum() / ((weights * total).sum() + smooth)


@objective(family="region", item="region", source="https://arxiv.org/abs/1606.04797", batch_coupled=True)
def dice_loss(
    token_logps: Float[Tensor, " tokens"],
    class_ids: Int[Tensor, " tokens"],
    class_mass: Float[Tensor, " classes"],
    *,
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Raise the Dice overlap of every class present in the region, averaged over the classes.

    With $N_c$ the tokens labelled $c$, $I_c$ their summed probability of $c$, $M_c$ the summed probability of $c$ over
    all tokens and $s$ the smoothing,

    $$\ell = \frac{1}{|C|}\sum_{c \in C} \left(1 - \frac{2 I_c + s}{M_c + N_c + s}\right).$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        class_ids: Column of each token's label among the present classes.
        class_mass: Probability of each present class, summed over the tokens of the region.
        smooth: Added to numerator and denominator, >= 0; it discounts classes of few tokens.

    Returns:
        One loss for the region, in [0, 1). (1 - p)/(2 + p) for a region of one token at the default; 0 for an empty
        region.

    Raises:
        ObjectiveInputError: If `smooth` is negative.

    Source:
        Milletari et al. 2016, "V-Net", section 3, https://arxiv.org/abs/1606.04797. Deviation: probabilities in the
        denominator where the paper has their squares, the mean over present classes where it has one foreground, and
        the smoothing.

    Use when:
        The score is an F1 of classes and some are rare: each class counts once, however many tokens it has. Not for
        free text, where most classes have one token in a region and little but `smooth` is left.

    Relatives:
        `tversky` at `alpha=0.5, beta=0.5` and half the smoothing. With `smooth=0`, each class's `jaccard` is 2d/(1 + d)
        of its Dice loss d. `generalized_dice` makes one ratio of all classes.

    Elsewhere:
        MONAI: `DiceLoss`, smoothing 1e-5, per sample and over all classes, absent ones too.
        segmentation_models_pytorch: `DiceLoss`, no smoothing; the loss of absent classes is 0 but counts in the mean.

    Example:
        >>> dice_loss(torch.tensor([0.5]).log(), torch.tensor([0]), torch.tensor([0.5]))
        tensor(0.2000)
    """
    check_not_negative("smooth", smooth)
    part = _overlap(token_logps, class_ids, class_mass)
    return _class_mean((part.missed + part.leaked) / (part.hits + part.leaked + part.counts + smooth))


@objective(family="region", item="region", source="https://doi.org/10.1007/978-3-319-50835-1_22", batch_coupled=True)
def jaccard_loss(
    token_logps: Float[Tensor, " tokens"],
    class_ids: Int[Tensor, " tokens"],
    class_mass: Float[Tensor, " classes"],
    *,
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Raise the intersection over union of every class present in the region, averaged over the classes.

    With $N_c$ the tokens labelled $c$, $I_c$ their summed probability of $c$, $M_c$ the summed probability of $c$ over
    all tokens and $s$ the smoothing,

    $$\ell = \frac{1}{|C|}\sum_{c \in C} \left(1 - \frac{I_c + s}{M_c + N_c - I_c + s}\right).$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        class_ids: Column of each token's label among the present classes.
        class_mass: Probability of each present class, summed over the tokens of the region.
        smooth: Added to numerator and denominator, >= 0; it discounts classes of few tokens.

    Returns:
        One loss for the region, in [0, 1). (1 - p)/2 for a region of one token at the default; 0 for an empty region.

    Raises:
        ObjectiveInputError: If `smooth` is negative.

    Source:
        Rahman and Wang 2016, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation", the
        IoU loss, https://doi.org/10.1007/978-3-319-50835-1_22. Deviation: the mean over present classes where the paper
        has one foreground, and the smoothing.

    Use when:
        The score is an intersection over union and speed matters more than its tight extension (`lovasz_softmax`). Not
        for free text, for the reason given at `dice`.

    Relatives:
        `tversky` at `alpha=1, beta=1` and the same smoothing. `lovasz_softmax` equals it at `smooth=0` where every
        probability is 0 or 1.

    Elsewhere:
        MONAI: `DiceLoss(jaccard=True)` doubles the union, so its smoothing s is our s/2.
        segmentation_models_pytorch: `JaccardLoss`, no smoothing.

    Example:
        >>> jaccard_loss(torch.tensor([0.5]).log(), torch.tensor([0]), torch.tensor([0.5]))
        tensor(0.2500)
    """
    check_not_negative("smooth", smooth)
    part = _overlap(token_logps, class_ids, class_mass)
    return _class_mean((part.missed + part.leaked) / (part.counts + part.leaked + smooth))


@objective(family="region", item="region", source="https://arxiv.org/abs/1706.05721", batch_coupled=True)
def tversky_loss(
    token_logps: Float[Tensor, " tokens"],
    class_ids: Int[Tensor, " tokens"],
    class_mass: Float[Tensor, " classes"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Raise an overlap of every present class in which missed tokens and false alarms have their own price.

    With $N_c$ the tokens labelled $c$, $I_c$ their summed probability of $c$ and $M_c$ the summed probability of $c$
    over all tokens, so that $M_c - I_c$ is the false alarm and $N_c - I_c$ what is missed,

    $$\ell = \frac{1}{|C|}\sum_{c \in C}
    \left(1 - \frac{I_c + s}{I_c + \alpha (M_c - I_c) + \beta (N_c - I_c) + s}\right).$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        class_ids: Column of each token's label among the present classes.
        class_mass: Probability of each present class, summed over the tokens of the region.
        alpha: Price of false alarms (probability of the class on tokens of others), >= 0.
        beta: Price of missed probability on the class's own tokens, > 0. Above `alpha` it favours recall.
        smooth: Added to numerator and denominator, >= 0; it discounts classes of few tokens.

    Returns:
        One loss for the region, in [0, 1). beta(1 - p)/(p + beta(1 - p) + smooth) for a region of one token; 0 for an
        empty region.

    Raises:
        ObjectiveInputError: If `alpha` or `smooth` is negative, or `beta` not positive.

    Source:
        Salehi et al. 2017, "Tversky loss function for image segmentation", eq. 3, https://arxiv.org/abs/1706.05721.
        Deviation: the mean over present classes where the paper has one foreground; the smoothing; beta = 0 is refused,
        as it is 0/0 where a class has lost its probability.

    Use when:
        A missed rare class costs more than a false alarm, or the other way round. Otherwise take `dice`.

    Relatives:
        `dice` with twice the smoothing at `alpha=0.5, beta=0.5`; `jaccard` at `alpha=1, beta=1`; `focal_tversky` raises
        each class's loss to a power.

    Elsewhere:
        MONAI and segmentation_models_pytorch: `TverskyLoss`, alpha and beta with the same meaning, both 0.5 by default,
        smoothing 1e-5 and 0.

    Example:
        >>> tversky_loss(torch.tensor([0.5]).log(), torch.tensor([0]), torch.tensor([0.5]))
        tensor(0.1892)
    """
    return _class_mean(_tversky(token_logps, class_ids, class_mass, alpha=alpha, beta=beta, smooth=smooth))


@objective(family="region", item="region", source="https://arxiv.org/abs/1810.07842", batch_coupled=True)
def focal_tversky_loss(
    token_logps: Float[Tensor, " tokens"],
    class_ids: Int[Tensor, " tokens"],
    class_mass: Float[Tensor, " classes"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    gamma: float = 4 / 3,
) -> Float[Tensor, ""]:
    r"""Raise the Tversky overlap of every present class, with a power that bends how much poor classes count.

    With $t_c$ the Tversky loss of class $c$ (see `tversky`),

    $$\ell = \frac{1}{|C|}\sum_{c \in C} t_c^{1/\gamma}.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        class_ids: Column of each token's label among the present classes.
        class_mass: Probability of each present class, summed over the tokens of the region.
        alpha: Price of false alarms, >= 0.
        beta: Price of missed probability on the class's own tokens, > 0.
        smooth: Added to numerator and denominator, >= 0; it discounts classes of few tokens.
        gamma: Inverse of the power, > 0. Above 1 classes that are nearly right keep a strong gradient; below 1 the poor
            classes dominate; 1 is `tversky`.

    Returns:
        One loss for the region, in [0, 1). The Tversky loss to the power 3/4 at the default for a region of one token;
        0 for an empty region.

    Raises:
        ObjectiveInputError: If `alpha` or `smooth` is negative, or `beta` or `gamma` not positive.

    Source:
        Abraham and Khan 2018, "A Novel Focal Tversky Loss Function", eq. 4, https://arxiv.org/abs/1810.07842.
        Deviation: as for `tversky`; a class that is exactly right has gradient 0, where the power's own is infinite.

    Use when:
        As `tversky`, in late training, when most classes are nearly right and their gradient fades. Not from a poor
        start: with gamma above 1 it is flatter than `tversky` there.

    Relatives:
        `tversky` at `gamma=1`.

    Elsewhere:
        The authors' Keras code: one foreground, smoothing 1, power 0.75 (our 1/gamma), and its alpha 0.7 weighs what is
        missed (our beta). Many ports raise to the power gamma instead of 1/gamma.

    Example:
        >>> focal_tversky_loss(torch.tensor([0.5]).log(), torch.tensor([0]), torch.tensor([0.5]))
        tensor(0.2869)
    """
    check_positive("gamma", gamma)
    per_class = _tversky(token_logps, class_ids, class_mass, alpha=alpha, beta=beta, smooth=smooth)
    return _class_mean(safe_pow(per_class, 1 / gamma))


class _Overlap(NamedTuple):
    """Sums over the tokens of a region, one number per present class."""

    counts: Tensor
    """Tokens labelled with the class, N."""
    hits: Tensor
    """Probability of the class on those tokens, I."""
    missed: Tensor
    """N - I."""
    leaked: Tensor
    """Probability of the class on all other tokens, M - I."""


def _overlap(
    token_logps: Float[Tensor, " tokens"],
    class_ids: Int[Tensor, " tokens"],
    class_mass: Float[Tensor, " classes"],
) -> _Overlap:
    logps, mass = at_least_float32(token_logps), at_least_float32(class_mass)
    nothing = torch.zeros_like(mass)
    hits = nothing.index_add(0, class_ids, logps.exp())
    leaked = mass - hits
    return _Overlap(
        counts=nothing.index_add(0, class_ids, torch.ones_like(logps)),
        hits=hits,
        # The losses are written as (missed + leaked) / ..., never 1 - ratio: a sum of 1 - p = -expm1(log p) keeps the
        # digits that 1 - I/N loses where p is near 1.
        missed=nothing.index_add(0, class_ids, -torch.expm1(logps)),
        # M - I may round below 0. The value is lifted to 0, the gradient stays that of M - I.
        leaked=leaked - leaked.detach().clamp(max=0),
    )


def _tversky(
    token_logps: Tensor, class_ids: Tensor, class_mass: Tensor, *, alpha: float, beta: float, smooth: float
) -> Float[Tensor, " classes"]:
    check_not_negative("alpha", alpha)
    check_positive("beta", beta)
    check_not_negative("smooth", smooth)
    part = _overlap(token_logps, class_ids, class_mass)
    wrong = alpha * part.leaked + beta * part.missed
    return wrong / (part.hits + wrong + smooth)


def _class_mean(per_class: Float[Tensor, " classes"]) -> Float[Tensor, ""]:
    """Mean over the classes; 0 with its graph where the region is empty and has none."""
    return per_class.sum() / max(per_class.shape[0], 1)


def _released_dice(part: _Overlap, smooth: float) -> Float[Tensor, ""]:
    tokens = part.counts.sum()
    absent = tokens - (part.hits + part.leaked).sum()
    # Rounding of the two sums; times 1e20 it would swamp a region whose labels cover the vocabulary.
    noise = 16 * torch.finfo(absent.dtype).eps * tokens
    absent = torch.where(absent > noise, absent, torch.zeros_like(absent))
    # Numerator and denominator times 1e-20, the inverse of an absent class's weight: float32 squares neither.
    weights = (1e-10 / (part.counts + 1e-10)).square()
    overlap = (weights * part.hits).sum() + 1e-20 * smooth
    total = absent + (weights * (part.hits + part.leaked + part.counts)).sum() + 1e-20 * smooth
    return -2 * overlap / total
