"""Token objectives that are functions of the label's log-probability: one loss per token (or row of a classifier)."""

import math

import torch

from lossmith._checks import check_not_negative, check_positive, check_unit_interval
from lossmith._numerics import at_least_float32, safe_pow
from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.objectives._registry import objective


@objective(
    family="token",
    item="token",
    source="https://arxiv.org/abs/1512.00567",
    needed_when={"mean_class_logps": "label_smoothing"},
)
def cross_entropy_loss(
    token_logps: Float[Tensor, " tokens"],
    mean_class_logps: Float[Tensor, " tokens"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label, the baseline that every other loss is measured against.

    With $p_k$ the probability of class $k$ among $V$ and $e$ the label smoothing,

    $$\ell = -(1-e)\log p_y - \frac{e}{V}\sum_k \log p_k = (1-e)(-\log p_y) + e\,(Z - \bar z),$$

    where $Z$ is the log-normaliser and $\bar z$ the mean logit of the row; the two are never subtracted, since logits
    of size 1e4 would lose their digits in that.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        mean_class_logps: Mean over all classes of the log-probabilities of each row, in nats, <= -log V.
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).

    Returns:
        One loss per token, in nats, >= 0. Equal to log V on uniform logits.

    Raises:
        ObjectiveInputError: If `label_smoothing` is outside [0, 1).

    Source:
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7,
        https://arxiv.org/abs/1512.00567. Deviation: none. Class weights go through `weights`.

    Use when:
        Always first: a loss that does not beat it over paired seeds on your task is not worth its setting. Not the last
        word where labels are noisy or the model already knows much of the task.

    Relatives:
        `focal` at `gamma=0`, `poly1` at `epsilon=0`, `tailr` at `gamma=0`, `mile` at `gamma=0`, `entropy_adaptive` at
        `alpha=0` and `confidence_penalty` at `coefficient=0` all equal it; `generalized_cross_entropy` tends to it
        as q goes to 0. A term of its own for the size of the log-normaliser is `z_loss`.

    Elsewhere:
        PyTorch: `cross_entropy`, same value, but NaN for a mean over no valid row. transformers: `LabelSmoother`, the
        same share e/V for every class. TRL 1.16: `loss_type="nll"`; its `label_smoothing_factor` is deprecated.

    Example:
        >>> half = torch.tensor([0.5]).log()
        >>> cross_entropy_loss(half, half)
        tensor([0.6931])
    """
    check_unit_interval("label_smoothing", label_smoothing)
    likelihood = -at_least_float32(token_logps)
    if label_smoothing == 0:
        return likelihood
    return (1 - label_smoothing) * likelihood - label_smoothing * at_least_float32(mean_class_logps)


@objective(family="token", item="token", source="https://arxiv.org/abs/1708.02002")
def focal_loss(token_logps: Float[Tensor, " tokens"], *, gamma: float = 2.0) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label, mostly where it is still low: confident tokens count less.

    With $p$ the probability of the label,

    $$\ell = -(1-p)^\gamma \log p.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        gamma: How strongly confident tokens are discounted, >= 0; 0 is cross-entropy.

    Returns:
        One loss per token, in nats, >= 0. At p = 1/2 and gamma = 2 a quarter of log 2.

    Raises:
        ObjectiveInputError: If `gamma` is negative.

    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4, https://arxiv.org/abs/1708.02002.
        Deviation: no class balance factor inside (give `weights`); for gamma < 1 the gradient at p = 1 is 0,
        where the formula's own is infinite.

    Use when:
        Most tokens are easy and the few hard ones carry the answer. Not with noisy labels: a wrong label is the hardest
        token of all (`dft`, `tailr` and `generalized_cross_entropy` do the opposite).

    Relatives:
        `cross_entropy` at `gamma=0`; `poly1` also weighs the powers of 1 - p anew. `mile` finds hard tokens by the
        entropy of the row instead of by the label's probability.

    Elsewhere:
        torchvision: `sigmoid_focal_loss`, for independent binary outputs and with a balance factor of 0.25.
        The released language-model code (segmentation-losses-nlp) zeroes the logits of ignored rows and still counts
        them in the mean, which dilutes it. TRL has none.

    Example:
        >>> focal_loss(torch.tensor([0.5]).log())
        tensor([0.1733])
    """
    check_not_negative("gamma", gamma)
    logps = at_least_float32(token_logps)
    # 1 - p = -expm1(log p) is exact near p = 1, where 1 - exp(log p) rounds to 0.
    return -safe_pow(-torch.expm1(logps), gamma) * logps


@objective(family="token", item="token", source="https://arxiv.org/abs/1911.02855")
def self_adjusting_dice_loss(
    token_logps: Float[Tensor, " tokens"],
    *,
    alpha: float = 1.0,
    gamma: float = 1.0,
) -> Float[Tensor, " tokens"]:
    r"""Raise the label's probability to 1/(1 + alpha), and lower it again above: at the default towards one half.

    With $p$ the probability of the label and $f = (1-p)^\alpha p$,

    $$\ell = 1 - \frac{2f + \gamma}{f + 1 + \gamma} = \frac{1 - f}{f + 1 + \gamma}.$$

    As $f$ has its maximum at $p = 1/(1+\alpha)$, so has this loss its minimum: with the published $\alpha = 1$ a token
    above 1/2 is pulled down. Take $\alpha$ well below 1 to keep confident tokens ($\alpha = 0.1$: up to 0.91; 0: to 1).

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        alpha: How strongly confident tokens are discounted, >= 0; 0 is the plain Dice loss of one token.
        gamma: Smoothing of numerator and denominator, >= 0.

    Returns:
        One loss per token, in (0, 1/(1 + gamma)] for alpha > 0: 1/(1 + gamma) at p = 0 and again at p = 1. With the
        defaults 1/3 at its minimum, p = 1/2.

    Raises:
        ObjectiveInputError: If `alpha` or `gamma` is negative.

    Source:
        Li et al. 2020, "Dice Loss for Data-imbalanced NLP Tasks", the self-adjusting DSC loss of section 3,
        https://arxiv.org/abs/1911.02855. Deviation: for 0 < alpha < 1 the gradient at p = 1 is 0, where the formula's
        own is infinite. The paper says that the factor makes easy examples count less; that it turns their gradient
        is not in it.

    Use when:
        You reproduce the segmentation losses for language models, or want a bounded loss that leaves confident tokens
        alone (`alpha` about 0.1). Not at `alpha=1` where the model should be sure of its answers.

    Relatives:
        At `alpha=0, gamma=0` it is (1 - p)/(1 + p): `dice` at `smooth=0` of a region of this token alone. `focal` has
        the same factor and no reversal.

    Elsewhere:
        The released language-model code (segmentation-losses-nlp): same formula and defaults, ignored rows zeroed and
        counted (as a uniform row labelled 0), no setting below alpha 1 offered. TRL has none.

    Example:
        >>> self_adjusting_dice_loss(torch.tensor([0.1, 0.5, 0.9]).log())
        tensor([0.4354, 0.3333, 0.4354])
    """
    check_not_negative("alpha", alpha)
    check_not_negative("gamma", gamma)
    logps = at_least_float32(token_logps)
    probs, missing = logps.exp(), -torch.expm1(logps)
    # Above power 1 the slope at p = 1 is finite and must stay; below it is infinite and becomes 0.
    discount = missing.pow(alpha) if alpha >= 1 else safe_pow(missing, alpha)
    # 1 - f as a sum of two terms >= 0: exact where alpha is near 0 and f near 1.
    return (missing + probs * (1 - discount)) / (discount * probs + 1 + gamma)


@objective(family="token", item="token", source="https://arxiv.org/abs/2204.12511")
def poly1_loss(token_logps: Float[Tensor, " tokens"], *, epsilon: float = 1.0) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label with an extra pull, or less of one, on tokens that are nearly right.

    With $p$ the probability of the label,

    $$\ell = -\log p + \epsilon (1 - p).$$

    Cross-entropy is $\sum_j (1-p)^j / j$; this changes the first coefficient from 1 to $1 + \epsilon$.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        epsilon: Change of the first coefficient, >= -1; 0 is cross-entropy.

    Returns:
        One loss per token, in nats, >= 0. At p = 1/2 and epsilon = 1 log 2 + 1/2.

    Raises:
        ObjectiveInputError: If `epsilon` is below -1 (which would lower the label's probability near 1).

    Source:
        Leng et al. 2022, "PolyLoss", the Poly-1 loss, https://arxiv.org/abs/2204.12511. Deviation: none.

    Use when:
        You want one number to tune around cross-entropy: positive `epsilon` sharpens confident tokens further, negative
        leaves them earlier. Not to resist noise, as the logarithm stays.

    Relatives:
        `cross_entropy` at `epsilon=0`; minus `cross_entropy` and divided by `epsilon` it is
        `generalized_cross_entropy` at `q=1`. `focal` shifts the powers of 1 - p instead of one coefficient.

    Elsewhere:
        TRL and pytorch-metric-learning have none.

    Example:
        >>> poly1_loss(torch.tensor([0.5]).log())
        tensor([1.1931])
    """
    if not -1 <= epsilon < math.inf:
        raise ObjectiveInputError(f"`epsilon` must be >= -1, got {epsilon}.")
    logps = at_least_float32(token_logps)
    return -logps - epsilon * torch.expm1(logps)


@objective(family="token", item="token", source="https://arxiv.org/abs/1805.07836")
def generalized_cross_entropy_loss(
    token_logps: Float[Tensor, " tokens"],
    *,
    q: float = 0.7,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label, with less weight on the tokens that the model finds unlikely.

    With $p$ the probability of the label,

    $$\ell = \frac{1 - p^q}{q},$$

    whose gradient is $p^q$ times that of cross-entropy.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        q: How strongly unlikely labels are discounted, > 0. Towards 0 it is cross-entropy, 1 is 1 - p, and above 1 only
            labels that are likely already still learn.

    Returns:
        One loss per token, in [0, 1/q]. At p = 1/2 and q = 1 one half.

    Raises:
        ObjectiveInputError: If `q` is not positive.

    Source:
        Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss", the L_q loss, https://arxiv.org/abs/1805.07836.
        Deviation: q > 1 is allowed, as in the objectives "-p^k" of Li et al. 2025, https://arxiv.org/abs/2510.00526.

    Use when:
        Labels are noisy (q of 0.5 to 0.8), or a strong model should keep what it knows (q of 1 and more). Not for
        a task that is new to the model: where p is near 0 the gradient is too.

    Relatives:
        Tends to `cross_entropy` as q goes to 0. At `q=1` it is 1 - p, with exactly the gradient of `dft` (the values
        differ). `deft` sets q per token from the row's concentration.

    Elsewhere:
        Beyond-Log-Likelihood: `GeneralFamily-q`, same value. For an objective written -p^k take q = k: its gradient is
        k times ours. TRL has none.

    Example:
        >>> generalized_cross_entropy_loss(torch.tensor([0.5]).log(), q=1.0)
        tensor([0.5000])
    """
    check_positive("q", q)
    # 1 - p^q = -expm1(q log p) keeps its digits for small q and for p near 1.
    return -torch.expm1(q * at_least_float32(token_logps)) / q


@objective(family="token", item="token", source="https://arxiv.org/abs/1908.04319")
def unlikelihood_loss(complement_logps: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    r"""Lower the probability of the label: a loss for tokens that should not be said.

    With $p$ the probability of the (negative) label,

    $$\ell = -\log(1 - p).$$

    Args:
        complement_logps: Log of one minus the probability of each token's label, in nats, <= 0.

    Returns:
        One loss per token, in nats, >= 0. Equal to log 2 at p = 1/2; about the logit gap where p rounds to 1; 0 where
        no other class is possible (all masked by -inf), as no gradient could lower it.

    Source:
        Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training", the token-level loss of section 5,
        https://arxiv.org/abs/1908.04319. Deviation: which tokens are negative is the caller's choice (the labels); the
        paper takes the earlier tokens of the context and adds the loss to cross-entropy. A row whose only possible
        class is the label gives 0, where the formula is infinite and would spoil the mean of the batch.

    Use when:
        You know tokens that are wrong (repetitions, contradictions, unsafe words), next to a loss that says what is
        right; not alone, since nothing in it makes text good. All terms of a sum share `labels`, so it needs a call of
        its own, `loss("unlikelihood")(logits, wrong_labels)`, added to the other loss; a sum with scopes,
        `cross_entropy[right] + unlikelihood[wrong]`, does where each position is either right or wrong.

    Relatives:
        The mirror of `cross_entropy`: on a row of two classes it equals `cross_entropy` of the other class.

    Elsewhere:
        The authors' fairseq code clamps 1 - p at 1e-5, so that a token with p above 0.99999 stops learning; here the
        gradient stays 1. TRL has none.

    Example:
        >>> unlikelihood_loss(torch.tensor([0.5]).log())
        tensor([0.6931])
    """
    logps = at_least_float32(complement_logps)
    return -logps.masked_fill(logps == -torch.inf, 0.0)
