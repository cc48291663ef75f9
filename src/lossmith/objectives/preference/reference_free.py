"""Preference objectives without a reference model: they see the policy's own log-probabilities."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_not_negative, check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import mean_logps

# Largest mean log-probability of a rejected completion whose odds orpo computes: at 0 they are infinite.
ORPO_CEILING = -1e-6


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2405.14734",
    instead={"nll_coefficient": "cpo"},
)
def simpo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    chosen_lengths: Float[Tensor, " pairs"],
    rejected_lengths: Float[Tensor, " pairs"],
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Float[Tensor, " pairs"]:
    r"""Make the chosen completion more likely per token than the rejected one, by a margin, with no reference.

    With $\bar c$, $\bar r$ the mean log-probabilities per token of the chosen and the rejected completion,

    $$\ell = -\log\sigma(\beta\bar c - \beta\bar r - \gamma).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        chosen_lengths: Tokens of each chosen completion, > 0.
        rejected_lengths: The same for the rejected completions.
        beta: Scale of the reward per token, > 0.
        gamma: Wanted margin between the two rewards, in nats, >= 0; the margin per token is $\gamma/\beta$.

    Returns:
        One loss per pair, in nats, >= 0. Equal to log 2 where the mean log-probabilities differ by exactly
        $\gamma/\beta$.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `gamma` is negative.

    Source:
        Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", eq. 6,
        https://arxiv.org/abs/2405.14734. Deviation: none.

    Use when:
        Memory or time for a reference model is missing and completions have uneven lengths; with few steps and a small
        learning rate, because nothing ties the policy to where it started.

    Relatives:
        Equals `dpo_length_normalized` with a reference of 0 nats at `gamma=0`. `cpo` sums over tokens and adds a
        likelihood term; `orpo` compares odds.

    Elsewhere:
        TRL: `CPOConfig(loss_type="simpo")`, beta 0.1 and `simpo_gamma` 0.5 by default, and a likelihood term unless
        `cpo_alpha=0`. Liger: beta 0.1, gamma 0.5, likelihood term on by default.

    Example:
        >>> import torch
        >>> simpo_loss(torch.tensor([-5.0]), torch.tensor([-15.0]), torch.tensor([10.0]), torch.tensor([15.0]))
        tensor([0.6931])
    """
    check_positive("beta", beta)
    check_not_negative("gamma", gamma)
    return -F.logsigmoid(
        beta * (mean_logps(chosen_logps, chosen_lengths) - mean_logps(rejected_logps, rejected_lengths)) - gamma
    )


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2403.07691")
def orpo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    chosen_lengths: Float[Tensor, " pairs"],
    rejected_lengths: Float[Tensor, " pairs"],
    *,
    coefficient: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Fit the chosen completion and raise its odds above those of the rejected one, in one stage.

    With $\bar c$, $\bar r$ the mean log-probabilities per token, $p = e^{\bar c}$, $q = e^{\bar r}$ and
    $\mathrm{odds}(p) = p/(1-p)$,

    $$\ell = -\bar c - \lambda\log\sigma\left(\log\frac{\mathrm{odds}(p)}{\mathrm{odds}(q)}\right)
      = -\bar c + \lambda\log\left(1 + \frac{e^{-\bar c} - 1}{e^{-\bar r} - 1}\right).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        chosen_lengths: Tokens of each chosen completion, > 0.
        rejected_lengths: The same for the rejected completions.
        coefficient: Weight of the odds ratio, $\lambda$, >= 0; 0 leaves the likelihood of the chosen completion.

    Returns:
        One loss per pair, in nats per token, >= 0. Equal to $-\bar c + \lambda\log 2$ where both are equally likely per
        token. Mean log-probabilities of the rejected completion above -1e-6 are read as -1e-6.

    Raises:
        ObjectiveInputError: If `coefficient` is negative.

    Source:
        Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", eq. 6 and 7,
        https://arxiv.org/abs/2403.07691. Deviation: the floor of 1e-6 under $-\bar r$, where the odds are infinite; the
        slope does not stop there, so that a rejected completion of probability 1 is still pushed down.

    Use when:
        You start from a base model and want fine-tuning and preferences in one run; not after a good supervised stage,
        where the likelihood term dominates.

    Relatives:
        `cpo` and `simpo` are the other losses without a reference. At `coefficient=0` it is `cross_entropy` averaged
        over the tokens of each chosen completion.

    Elsewhere:
        TRL: `ORPOTrainer`, the weight is called `beta`, the likelihood covers the prompt too and averages over the
        tokens of the batch; its gradient is NaN where a mean probability rounds to 1. LLaMA-Factory and Liger:
        `log1p(-exp(x))`, infinite there.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([10.0])
        >>> orpo_loss(torch.tensor([-5.0]), torch.tensor([-5.0]), tokens, tokens, coefficient=1.0)
        tensor([1.1931])
    """
    check_not_negative("coefficient", coefficient)
    chosen = mean_logps(chosen_logps, chosen_lengths)
    # Rounding in an engine can lift a probability just above 1; odds need it at most 1.
    c = _at_most(chosen, 0.0)
    r = _at_most(mean_logps(rejected_logps, rejected_lengths), ORPO_CEILING)
    # (e^-c - 1)/(e^-r - 1) = e^(r-c) expm1(c)/expm1(r), whose last factor is exact near p = 1. Where c < r the
    # exponential is taken out of the logarithm, as it overflows beyond 88 in float32; the factor is then at least 1.
    ratio, gap = torch.expm1(c) / torch.expm1(r), r - c
    lead = torch.relu(gap)
    odds_term = lead + torch.log1p(ratio * torch.exp(gap.clamp(max=0)) + torch.expm1(-lead))
    return -chosen + coefficient * odds_term


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2401.08417",
    needed_when={"chosen_lengths": "nll_coefficient"},
    instead={"gamma": "simpo"},
)
def cpo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    chosen_lengths: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    nll_coefficient: float = 1.0,
) -> Float[Tensor, " pairs"]:
    r"""Prefer the chosen completion to the rejected one, with no reference, and keep fitting the chosen one.

    With $\log\pi$ summed over a completion's tokens and $n_c$ the tokens of the chosen one,

    $$\ell = -\log\sigma\bigl(\beta\log\pi(y_\mathrm{chosen}) - \beta\log\pi(y_\mathrm{rejected})\bigr)
      - \lambda\,\frac{\log\pi(y_\mathrm{chosen})}{n_c}.$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        chosen_lengths: Tokens of each chosen completion, > 0; read only where `nll_coefficient` is not 0.
        beta: Scale of the reward, > 0.
        nll_coefficient: Weight of the chosen completion's negative log-likelihood per token, $\lambda$, >= 0.

    Returns:
        One loss per pair, in nats, >= 0. Equal to log 2 plus the likelihood term where both are equally likely.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `nll_coefficient` is negative.

    Source:
        Xu et al. 2024, "Contrastive Preference Optimization", eq. 3 and the likelihood term added to it,
        https://arxiv.org/abs/2401.08417. Deviation: the likelihood is averaged over the tokens, where the paper sums,
        so that its weight does not grow with the length.

    Use when:
        References are good but not perfect (translation) and there is no memory for a second model; not with uneven
        lengths, since sums favour short completions.

    Relatives:
        At `nll_coefficient=0` it equals `dpo` with a reference of 0 nats, and `simpo` with `gamma=0` and lengths 1.

    Elsewhere:
        TRL: `CPOTrainer`, `cpo_alpha` for the coefficient, 1 too; its likelihood averages over the tokens of the batch.
        Liger's `LigerFusedLinearCPOLoss` calls it `alpha`.

    Example:
        >>> import torch
        >>> cpo_loss(torch.tensor([-5.0]), torch.tensor([-5.0]), torch.tensor([10.0]))
        tensor([1.1931])
    """
    check_positive("beta", beta)
    check_not_negative("nll_coefficient", nll_coefficient)
    preferred = -F.logsigmoid(beta * (at_least_float32(chosen_logps) - at_least_float32(rejected_logps)))
    if nll_coefficient == 0:
        return preferred
    return preferred - nll_coefficient * mean_logps(chosen_logps, chosen_lengths)


def _at_most(x: Tensor, ceiling: float) -> Tensor:
    """`min(x, ceiling)` with the gradient of x: what is cut off must still be pushed."""
    return x - torch.relu(x - ceiling).detach()
