"""Unpaired objectives: one loss per completion that somebody found good or bad."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_not_negative, check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Bool, Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import log_ratios, saturating_sigmoid


@objective(
    family="unpaired",
    item="completion",
    source="https://arxiv.org/abs/2402.01306",
    module_hyperparameters={"running_kl": False},
)
def kto_loss(
    logps: Float[Tensor, " completions"],
    ref_logps: Float[Tensor, " completions"],
    desirable: Bool[Tensor, " completions"],
    kl: Float[Tensor, ""],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " completions"]:
    r"""Raise desirable completions above the policy's drift from the reference, and push undesirable ones below.

    With $v$ the log-ratio of policy to reference, $K = \max(0, \mathrm{kl})$ constant and $w$ the weight of its kind,

    $$\ell = w\,(1 - \sigma(\beta(v - K))) \text{ if desirable, else } w\,(1 - \sigma(\beta(K - v))).$$

    Args:
        logps: Policy log-probability of each completion, summed over its tokens, in nats.
        ref_logps: The same under the frozen reference.
        desirable: Whether each completion was found good.
        kl: Divergence of policy from reference, in nats: mean log-ratio of prompts with answers to other prompts, of
            this batch or, with the module's `running_kl`, of all so far. Read as a constant, and as 0 where negative.
        beta: Strength of the tie to the reference, > 0.
        desirable_weight: Weight of good completions, >= 0. With many more good than bad ones lower it to balance.
        undesirable_weight: Weight of bad completions, >= 0.

    Returns:
        One loss per completion, between 0 and its weight. Equal to half the weight where policy and reference agree and
        `kl` is 0.

    Raises:
        ObjectiveInputError: If `beta` is not positive or a weight is negative.

    Source:
        Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", eq. 7,
        https://arxiv.org/abs/2402.01306. Deviation: $w(1-\sigma)$ as in the authors' code, which is the paper's
        $\lambda_y - v(x, y)$.

    Use when:
        You have thumbs up and down instead of pairs, or far more of one kind; not from a start where bad answers are
        already far more likely than under the reference, since the slope vanishes there.

    Relatives:
        With kl 0 the two kinds are the two halves of `apo_zero`; `kto_pair` takes kl from the other half of the batch.
        `bco` is the logistic counterpart, with a shift in the place of the divergence.

    Elsewhere:
        TRL: `KTOTrainer`, same value and defaults; it estimates kl from this batch by shifting the answers by one, and
        refuses a batch of one. HALOs has the same loss.

    Example:
        >>> same = torch.tensor([-10.0, -12.0])
        >>> kto_loss(same, same, torch.tensor([True, False]), torch.tensor(0.0))
        tensor([0.5000, 0.5000])
    """
    check_positive("beta", beta)
    check_not_negative("desirable_weight", desirable_weight)
    check_not_negative("undesirable_weight", undesirable_weight)
    gained = log_ratios(logps, ref_logps) - at_least_float32(kl.detach()).clamp(min=0)
    # 1 - sigmoid(x) = sigmoid(-x); the left side cancels to 0 for large x.
    good = desirable_weight * saturating_sigmoid(-beta * gained)
    bad = undesirable_weight * saturating_sigmoid(beta * gained)
    return torch.where(desirable, good, bad)


@objective(
    family="unpaired",
    item="completion",
    source="https://arxiv.org/abs/2404.04656",
    batch_coupled=True,
    instead={"desirable_weight": "kto", "undesirable_weight": "kto"},
)
def bco_loss(
    logps: Float[Tensor, " completions"],
    ref_logps: Float[Tensor, " completions"],
    desirable: Bool[Tensor, " completions"],
    reward_shift: Float[Tensor, ""],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " completions"]:
    r"""Classify completions as good or bad by their implicit reward.

    With $v$ the log-ratio of policy to reference and $\delta$ the reward shift, a constant,

    $$\ell = -\log\sigma(\beta v - \delta) \text{ if desirable, else } -\log\sigma(-(\beta v - \delta)).$$

    Args:
        logps: Policy log-probability of each completion, summed over its tokens, in nats.
        ref_logps: The same under the frozen reference.
        desirable: Whether each completion was found good.
        reward_shift: Running mean of the implicit rewards of all completions, in nats; read as a constant.
        beta: Strength of the tie to the reference, > 0.

    Returns:
        One loss per completion, in nats, >= 0. Equal to log 2 where its reward equals the shift.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", section 4,
        https://arxiv.org/abs/2404.04656. Deviation: no weights for a change of prompts between good and bad
        completions.

    Use when:
        You have thumbs up and down instead of pairs and completions that are judged wrongly must keep a full slope,
        which `kto` does not give; not when many labels are wrong, since outliers then pull without limit.

    Relatives:
        `bco_pair` with `running_delta=True` is the sum of this loss for both completions of a pair. `kto` is the
        bounded counterpart.

    Elsewhere:
        TRL 1.16 has no BCO trainer any more; its former `BCOTrainer` computed this value and updated the shift with the
        batch before using it.

    Example:
        >>> same = torch.tensor([-10.0, -12.0])
        >>> bco_loss(same, same, torch.tensor([True, False]), torch.tensor(0.0))
        tensor([0.6931, 0.6931])
    """
    check_positive("beta", beta)
    logit = beta * log_ratios(logps, ref_logps) - at_least_float32(reward_shift.detach())
    return -F.logsigmoid(torch.where(desirable, logit, -logit))
