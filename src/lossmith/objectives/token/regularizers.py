"""Token objectives of the whole row: how sure the model may be, and how large its logits may grow."""

from lossmith._checks import check_not_negative
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective


@objective(
    family="token",
    item="token",
    source="https://arxiv.org/abs/1701.06548",
    needed_when={"entropy": "coefficient"},
)
def confidence_penalty_loss(
    token_logps: Float[Tensor, " tokens"],
    entropy: Float[Tensor, " tokens"],
    *,
    coefficient: float = 0.1,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label and keep the rest of the distribution spread out.

    With $H$ the entropy of the row and $c$ the coefficient,

    $$\ell = -\log p - c\,H.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        entropy: Entropy of each row, in nats, >= 0; gradients flow through it.
        coefficient: Price of certainty, >= 0; 0 is cross-entropy.

    Returns:
        One loss per token, in nats. (1 - c) log V on uniform logits; may be negative where a likely label comes with a
        spread rest or c is large.

    Raises:
        ObjectiveInputError: If `coefficient` is negative.

    Source:
        Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions", section 3,
        https://arxiv.org/abs/1701.06548. Deviation: none.

    Use when:
        Few examples and a model that becomes certain too early, or an answer distribution that must stay diverse. Not
        where probabilities must be sharp (exact arithmetic): label smoothing or this will cost accuracy there.

    Relatives:
        `cross_entropy` at `coefficient=0`. Label smoothing (`cross_entropy` with `label_smoothing`) penalises the
        divergence to the uniform distribution in the other direction.

    Elsewhere:
        TRL 1.16 has an entropy bonus only in trainers of reinforcement learning, none for fine-tuning.

    Example:
        >>> import torch
        >>> confidence_penalty_loss(torch.tensor([0.5]).log(), torch.tensor([2.0]))
        tensor([0.4931])
    """
    check_not_negative("coefficient", coefficient)
    logps = at_least_float32(token_logps)
    if coefficient == 0:
        return -logps
    return -logps - coefficient * at_least_float32(entropy)


@objective(family="token", item="token", source="https://arxiv.org/abs/2204.02311")
def z_loss_loss(
    log_normalizer: Float[Tensor, " tokens"],
    *,
    coefficient: float = 1e-4,
) -> Float[Tensor, " tokens"]:
    r"""Keep the log-normaliser near 0, so that logits do not drift: a term, not a loss of its own.

    With $Z = \log \sum_v e^{z_v}$ of the row and $c$ the coefficient,

    $$\ell = c\,Z^2.$$

    Args:
        log_normalizer: Log-sum-exp of each row of logits.
        coefficient: Weight of the square, >= 0.

    Returns:
        One loss per token, >= 0; 0 where the exponentials of the logits sum to 1. At Z = 10 and the default 0.01.

    Raises:
        ObjectiveInputError: If `coefficient` is negative.

    Source:
        Chowdhery et al. 2022, "PaLM", section 5 (auxiliary loss), https://arxiv.org/abs/2204.02311. Deviation: none.

    Use when:
        As `cross_entropy + z_loss`, in half precision or long training, where logits grow without changing any
        probability. It says nothing about labels, so never alone.

    Relatives:
        The only objective here that changes when all logits of a row are shifted. Added to `cross_entropy` it moves
        every logit by its probability times 2cZ.

    Elsewhere:
        Liger: `lse_square_scale`, default 0, same value. OLMo-core: `z_loss_multiplier`, off by default, 1e-5 in its
        scripts. The router z-loss of mixture-of-experts models is another term, on router logits. TRL 1.16 has none.

    Example:
        >>> import torch
        >>> z_loss_loss(torch.tensor([10.0]))
        tensor([0.0100])
    """
    check_not_negative("coefficient", coefficient)
    return coefficient * at_least_float32(log_normalizer).square()
