"""Token objectives whose weight is a constant: a detached function of the model's own prediction times -log p."""

import torch

from lossmith._checks import check_not_negative, check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.objectives._registry import objective


@objective(family="token", item="token", source="https://arxiv.org/abs/2508.05629")
def dft_loss(token_logps: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label in proportion to that probability: unlikely tokens are left alone.

    With $p$ the probability of the label and $\mathrm{sg}$ a constant (no gradient),

    $$\ell = -\mathrm{sg}(p) \log p.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.

    Returns:
        One loss per token, in [0, 1/e] nats, the most at p = 1/e. Half of log 2 at p = 1/2. The value falls again below
        p = 1/e though the gradient never turns: follow the cross-entropy, not this number, during training.

    Source:
        Wu et al. 2025, "On the Generalization of SFT", the token-level DFT loss, https://arxiv.org/abs/2508.05629.
        Deviation: none.

    Use when:
        A strong base model is fine-tuned on answers of which some tokens are arbitrary or wrong. Not for facts or
        formats that the model does not know yet: at p near 0 nothing is learnt.

    Relatives:
        The gradient is exactly that of `generalized_cross_entropy` at `q=1`. `tailr` at `gamma=1` equals it.

    Elsewhere:
        TRL 1.16: `SFTConfig(loss_type="dft")`, same value per token. LLaMA-Factory: `use_dft_loss`; axolotl:
        `enable_dft_loss`.

    Example:
        >>> dft_loss(torch.tensor([0.5]).log())
        tensor([0.3466])
    """
    logps = at_least_float32(token_logps)
    return -logps.detach().exp() * logps


@objective(
    family="token",
    item="token",
    source="https://arxiv.org/abs/2601.02151",
    needed_when={"entropy": "alpha", "top_20_entropy": "truncated"},
)
def entropy_adaptive_loss(
    token_logps: Float[Tensor, " tokens"],
    entropy: Float[Tensor, " tokens"],
    top_20_entropy: Float[Tensor, " tokens"],
    *,
    alpha: float = 1.0,
    normalizer: float = 1.0,
    truncated: bool = False,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label where the model is undecided, and spare what it is sure of.

    With $H$ the entropy of the row, $n$ the normaliser and $\mathrm{sg}$ a constant (no gradient),

    $$\ell = -\mathrm{sg}(H / n)^\alpha \log p.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        entropy: Entropy of each row, in nats, >= 0.
        top_20_entropy: Entropy of the 20 most probable classes of each row, renormalised, in nats, in [0, log 20].
        alpha: Sharpness of the gate, >= 0; 0 is cross-entropy.
        normalizer: Entropy at which the weight is 1, > 0, in nats; log V makes the weight at most 1.
        truncated: Whether $H$ is the entropy of the 20 most probable classes instead of that of the whole row. The
            paper has `truncated=True, normalizer=2.9957` (log 20).

    Returns:
        One loss per token, >= 0. On uniform logits over V classes (log V)^2 with the defaults, and log V with
        `normalizer` log V.

    Raises:
        ObjectiveInputError: If `alpha` is negative or `normalizer` not positive.

    Source:
        "Entropy-Adaptive Fine-Tuning" (EAFT) 2026, https://arxiv.org/abs/2601.02151, the gated loss. Deviation: the
        entropy of the whole row and no normaliser by default; the paper's is one of the settings.

    Use when:
        Fine-tuning makes the model forget: tokens where it is sure and the label disagrees ("confident conflicts") do
        most of that damage. Not where such conflicts are the point of the training (unlearning, new facts).

    Relatives:
        `cross_entropy` at `alpha=0`. `mile` weighs by 1 + H, so that no token is switched off, and divides by the mean
        weight. `dft` judges by the label's probability, so it also mutes an unlikely label in an undecided row.

    Elsewhere:
        All on the top-20 entropy, alpha 1: LLaMA-Factory `use_eaft_loss` divides it by 3.0 (about log 20); axolotl
        `use_eaft` divides by log k since it has a setting for it and did not before. TRL 1.16 has none (a request is
        open).

    Example:
        >>> entropy_adaptive_loss(torch.tensor([0.5]).log(), torch.tensor([2.0]), torch.tensor([1.5]))
        tensor([1.3863])
    """
    check_not_negative("alpha", alpha)
    check_positive("normalizer", normalizer)
    logps = at_least_float32(token_logps)
    if alpha == 0:
        return -logps
    # An engine may round the entropy of a certain row below 0, and a fractional power of that is NaN.
    undecided = top_20_entropy if truncated else entropy
    relative = at_least_float32(undecided).detach().clamp(min=0) / normalizer
    return -relative.pow(alpha) * logps


@objective(family="token", item="token", source="https://arxiv.org/abs/2602.11424")
def deft_loss(
    token_logps: Float[Tensor, " tokens"],
    log_sum_sq_probs: Float[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label like cross-entropy in undecided rows and like 1 - p in decided ones.

    With $a = \mathrm{sg}(\sum_v p_v^2)$ the concentration of the row as a constant (no gradient),

    $$\ell = \frac{1 - p^a}{a},$$

    whose gradient is $p^a$ times that of cross-entropy.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        log_sum_sq_probs: Log of the sum of squared probabilities of each row, in [-log V, 0] (minus the Rényi entropy
            of order 2).

    Returns:
        One loss per token, >= 0: between 1 - p (a certain row) and -log p. On a row of two equal probabilities
        2 - sqrt(2).

    Source:
        Wang et al. 2026, "Gradients Must Earn Their Influence" (DEFT), https://arxiv.org/abs/2602.11424, the
        parameter-free objective. Deviation: none.

    Use when:
        You want the discount of unlikely labels only where the model is sure, with nothing to tune. Not to compare
        values between runs: the scale of each token's loss changes with its row.

    Relatives:
        `generalized_cross_entropy` with q set per token to the concentration; tends to `cross_entropy` as the row
        spreads. `entropy_adaptive` weighs with the opposite sign of certainty and mutes all labels of a sure row.

    Elsewhere:
        The authors' code divides by a + 1e-6 and takes exp(x) - 1, which loses the digits near p = 1. TRL 1.16 has
        none.

    Example:
        >>> deft_loss(torch.tensor([0.5]).log(), torch.tensor([0.5]).log())
        tensor([0.5858])
    """
    # Below 1e-30 the quotient is -log p to the last digit; at 0 it would be 0/0.
    concentration = at_least_float32(log_sum_sq_probs).detach().exp().clamp(min=1e-30)
    return -torch.expm1(concentration * at_least_float32(token_logps)) / concentration


@objective(family="token", item="token", source="https://arxiv.org/abs/2302.13344")
def tailr_loss(
    token_logps: Float[Tensor, " tokens"],
    *,
    gamma: float = 1e-5,
    min_weight: float = 0.0,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label unless the model gives it next to none: outliers are left out.

    With $p$ the probability of the label and $\mathrm{sg}$ a constant (no gradient),

    $$\ell = -\mathrm{sg}(w) \log p, \qquad w = \frac{p}{\gamma + (1-\gamma) p},$$

    $w$ clamped to [`min_weight`, 1]. The weight is about 1/2 where $p = \gamma$.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        gamma: Trade-off between cross-entropy (0) and total variation (1), in [0, 1]: labels below this probability
            count little.
        min_weight: Least weight of a token, in [0, 1]; 1 is cross-entropy.

    Returns:
        One loss per token, in nats, >= 0. At p = 1/2 and gamma = 1 half of log 2.

    Raises:
        ObjectiveInputError: If `gamma` or `min_weight` is outside [0, 1].

    Source:
        Ji et al. 2023, "Tailoring Language Generation Models under Total Variation Distance", the TaiLr objective,
        https://arxiv.org/abs/2302.13344. Deviation: none.

    Use when:
        The corpus holds some wrong tokens that the model rightly finds absurd; the default only touches those near
        p = 1e-5 and is safe almost everywhere. Not to protect a strong model's knowledge: that needs `gamma` near 1 or
        `dft`.

    Relatives:
        `cross_entropy` at `gamma=0` or `min_weight=1`; `dft` at `gamma=1`.

    Elsewhere:
        The authors' fairseq criterion has the same weight with gamma (`density-ratio-threshold`) 1.0 by default, and
        label smoothing inside. TRL 1.16 has none.

    Example:
        >>> tailr_loss(torch.tensor([0.5]).log(), gamma=1.0)
        tensor([0.3466])
    """
    _check_share("gamma", gamma)
    _check_share("min_weight", min_weight)
    logps = at_least_float32(token_logps)
    # At gamma = 0 the weight is p/p: a p that underflowed to 0 would give 0/0.
    probs = logps.detach().exp().clamp(min=torch.finfo(logps.dtype).tiny)
    weight = (probs / (gamma + (1 - gamma) * probs)).clamp(min=min_weight, max=1.0)
    return -weight * logps


@objective(
    family="token",
    item="token",
    source="https://arxiv.org/abs/2310.19531",
    batch_coupled=True,
    needed_when={"entropy": "gamma"},
)
def mile_loss(
    token_logps: Float[Tensor, " tokens"],
    entropy: Float[Tensor, " tokens"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label, more where the model is undecided, at the scale of cross-entropy.

    With $H_t$ the entropy of row $t$ of $T$ and $\mathrm{sg}$ a constant (no gradient),

    $$\ell_t = -\mathrm{sg}\left(\frac{(1+H_t)^\gamma}{\frac{1}{T}\sum_s (1+H_s)^\gamma}\right) \log p_t.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        entropy: Entropy of each row, in nats, >= 0.
        gamma: Sharpness of the weights, >= 0; 0 is cross-entropy.

    Returns:
        One loss per token, in nats, >= 0; the weights of a batch average to 1. Equal to cross-entropy for a single
        token or rows of equal entropy.

    Raises:
        ObjectiveInputError: If `gamma` is negative.

    Source:
        Su et al. 2023, "MiLe Loss", https://arxiv.org/abs/2310.19531, the loss with offset 1. Deviation: the mean runs
        over the valid tokens of the call; see Elsewhere.

    Use when:
        Pre-training or long fine-tuning in which frequent, easy tokens drown rare ones. Under gradient accumulation the
        mean weight is that of each micro-batch, so k micro-batches are not quite one batch.

    Relatives:
        `cross_entropy` at `gamma=0`. `entropy_adaptive` weighs by H alone and does not rescale. `focal` judges a token
        by its label, which calls every token with many good continuations hard.

    Elsewhere:
        The authors' code averages 1/mean over the ranks and lets ignored rows into that mean. TRL 1.16 has none.

    Example:
        >>> mile_loss(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 2.0]))
        tensor([0.3466, 1.0397])
    """
    check_not_negative("gamma", gamma)
    logps = at_least_float32(token_logps)
    if gamma == 0:
        return -logps
    powers = gamma * torch.log1p(at_least_float32(entropy).detach().clamp(min=0))
    # weight / mean weight is T times a softmax of log weights, which cannot overflow at a large gamma.
    return -logps.shape[0] * torch.softmax(powers, dim=0) * logps


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ObjectiveInputError(f"`{name}` must be in [0, 1], got {value}.")
