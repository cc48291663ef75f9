"""Preference objectives of the sides: each completion of a pair has its own target, not only their difference."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import log_ratios, saturating_sigmoid


@objective(
    family="preference",
    item="completion",
    source="https://arxiv.org/abs/2402.01306",
    batch_coupled=True,
    instead={"desirable_weight": "kto", "undesirable_weight": "kto"},
)
def kto_pair_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    detach_kl: bool = True,
) -> Float[Tensor, " completions"]:
    r"""Raise chosen completions above the mean gain of the rejected ones, and push the rejected below the chosen.

    With $c$, $r$ the chosen and rejected log-ratios and, from their means, $K_c = \max(0, \bar c)$ and
    $K_r = \max(0, \bar r)$,

    $$\ell_\mathrm{chosen} = 1 - \sigma(\beta(c - K_r)), \qquad \ell_\mathrm{rejected} = 1 - \sigma(\beta(K_c - r)).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        detach_kl: Whether the two means are constants; with False gradients also flow through them.

    Returns:
        Two losses per pair, in [0, 1]: those of all chosen completions, then those of all rejected ones. Equal to 1/2
        where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", eq. 7 with the divergence
        estimated as in the report that preceded it, https://arxiv.org/abs/2402.01306. Deviation: the divergence is that
        of the other half of the batch, so both weights are 1 and the halves have equal size.

    Use when:
        You have pairs and want to repeat the KTO column of the DiscoPOP study (with `detach_kl=False`); with batches of
        few pairs the means are noise, and for data that is not paired take `kto`.

    Relatives:
        Equals `kto` on the 2B completions with `kl` the clamped mean of the other half; with both means at or below 0 a
        pair's two losses add up to `apo_zero`.

    Elsewhere:
        TRL removed `loss_type="kto_pair"` and points to its KTO trainer. The DiscoPOP code and OpenRLHF's
        `VanillaKTOLoss` are `detach_kl=False`.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> kto_pair_loss(*same, *same)
        tensor([0.5000, 0.5000])
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    chosen_kl, rejected_kl = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
    if detach_kl:
        chosen_kl, rejected_kl = chosen_kl.detach(), rejected_kl.detach()
    # 1 - sigmoid(x) = sigmoid(-x); the left side cancels to 0 for large x.
    return saturating_sigmoid(beta * torch.cat([rejected_kl - chosen, rejected - chosen_kl]))


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2402.05369")
def nca_pair_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Tell both completions from samples of the reference, so that the chosen likelihood itself rises.

    With $c$, $r$ the chosen and rejected log-ratios,

    $$\ell = -\log\sigma(\beta c) - \tfrac12\log\sigma(-\beta c) - \tfrac12\log\sigma(-\beta r).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.

    Returns:
        One loss per pair, in nats, > 0. Equal to 2 log 2 where policy and reference agree. In $c$ it is smallest at
        $\beta c = \log 2$: the chosen completion is held there too.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", section 4.1,
        https://arxiv.org/abs/2402.05369. Deviation: none.

    Use when:
        `dpo` lowers the likelihood of chosen answers and that hurts (reasoning, code); not when the chosen answers
        should become much more likely than under the reference, since their gain is bounded.

    Relatives:
        `bco_pair` without shift has the same two outer terms and no pull on a chosen completion that is already likely.

    Elsewhere:
        TRL: `loss_type="nca_pair"`, same value; the authors train at beta 0.01.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> nca_pair_loss(*same, *same)
        tensor([1.3863])
    """
    check_positive("beta", beta)
    chosen = beta * log_ratios(chosen_logps, ref_chosen_logps)
    rejected = beta * log_ratios(rejected_logps, ref_rejected_logps)
    return -F.logsigmoid(chosen) - F.logsigmoid(-chosen) / 2 - F.logsigmoid(-rejected) / 2


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2404.04656",
    needed_when={"reward_shift": "running_delta"},
)
def bco_pair_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    reward_shift: Float[Tensor, ""],
    *,
    beta: float = 0.1,
    running_delta: bool = False,
) -> Float[Tensor, " pairs"]:
    r"""Classify chosen completions as good and rejected ones as bad, each alone, by their implicit reward.

    With $c$, $r$ the chosen and rejected log-ratios and $\delta$ the reward shift (0 unless `running_delta`),

    $$\ell = -\log\sigma(\beta c - \delta) - \log\sigma(-(\beta r - \delta)).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        reward_shift: Running mean of all implicit rewards, in nats; a constant, read only with `running_delta`.
        beta: Strength of the tie to the reference, > 0.
        running_delta: Whether the shift is used; it tightens the bound on `dpo` once rewards drift away from 0.

    Returns:
        One loss per pair, in nats, > 0. Equal to 2 log 2 where policy and reference agree and the shift is 0.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", section 4,
        https://arxiv.org/abs/2404.04656. Deviation: no shift by default and no weights for a change of prompts.

    Use when:
        Completions should be good or bad in themselves, or pairs and single ratings are mixed with `bco`; not when only
        the comparison within a pair can be trusted.

    Relatives:
        Never below `dpo`, at any shift: that is the bound the paper proves. Equals `bco` of the chosen completion plus
        `bco` of the rejected one. `apo_zero` is its bounded counterpart.

    Elsewhere:
        TRL: `loss_type="bco_pair"` has no shift (the default here). LLaMA-Factory adds the shifted loss to another one
        by `pref_bco_weight`, with the mean of this batch already inside the shift.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> bco_pair_loss(*same, *same, torch.tensor(0.0))
        tensor([1.3863])
    """
    check_positive("beta", beta)
    chosen = beta * log_ratios(chosen_logps, ref_chosen_logps)
    rejected = beta * log_ratios(rejected_logps, ref_rejected_logps)
    if running_delta:
        shift = at_least_float32(reward_shift.detach())
        chosen, rejected = chosen - shift, rejected - shift
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2405.00675")
def sppo_hard_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Bring the chosen log-ratio to +1/(2 beta) and the rejected one to -1/(2 beta).

    With $c$, $r$ the chosen and rejected log-ratios,

    $$\ell = \left(c - \frac{1}{2\beta}\right)^2 + \left(r + \frac{1}{2\beta}\right)^2.$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0; the paper's $\eta$ is $1/\beta$.

    Returns:
        One loss per pair, in nats squared, >= 0. Equal to $1/(2\beta^2)$ (50 at the default) where policy and reference
        agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", eq. 4.7,
        https://arxiv.org/abs/2405.00675. Deviation: the win probabilities are 1 and 0 instead of estimates.

    Use when:
        Pairs are sampled anew from the policy each round, as in self-play; not with fixed pairs of uneven lengths,
        since the targets are the same for all.

    Relatives:
        Never below half of `ipo` at half the beta, and equal to it where the two sides mirror each other ($r = -c$).

    Elsewhere:
        TRL: `loss_type="sppo_hard"`, same value.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> sppo_hard_loss(*same, *same)
        tensor([50.])
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    target = 1 / (2 * beta)
    return (chosen - target).square() + (rejected + target).square()


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2408.06266")
def apo_zero_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Raise the chosen completion above the reference and push the rejected one below it.

    With $c$, $r$ the chosen and rejected log-ratios,

    $$\ell = 1 - \sigma(\beta c) + \sigma(\beta r).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.

    Returns:
        One loss per pair, in [0, 2]. Equal to 1 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", eq. 7,
        https://arxiv.org/abs/2408.06266. Deviation: none.

    Use when:
        The chosen answers are better than what the policy writes; if the policy is already better than both, take
        `apo_down`. Not from a poor start: a completion far on the wrong side has almost no slope.

    Relatives:
        Equals `kto` with kl 0 of the chosen completion plus the same of the rejected one; `bco_pair` without shift is
        its logistic counterpart.

    Elsewhere:
        TRL: `loss_type="apo_zero"`, same value; its KTO trainer has the unpaired halves as `apo_zero_unpaired`.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> apo_zero_loss(*same, *same)
        tensor([1.])
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    return saturating_sigmoid(-beta * chosen) + saturating_sigmoid(beta * rejected)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2408.06266")
def apo_down_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Push the chosen completion below the reference and the rejected one further below.

    With $c$, $r$ the chosen and rejected log-ratios,

    $$\ell = \sigma(\beta c) + 1 - \sigma(\beta(c - r)).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.

    Returns:
        One loss per pair, in [0, 2]. Equal to 1, with no gradient for the chosen side, where policy and reference
        agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", eq. 8,
        https://arxiv.org/abs/2408.06266. Deviation: none.

    Use when:
        The policy already writes better answers than both completions, so that only their order is worth learning; in
        any other case it makes good answers less likely.

    Relatives:
        `apo_zero` raises the chosen completion instead. Its second term alone is a bounded `dpo`.

    Elsewhere:
        TRL: `loss_type="apo_down"`, same value.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> apo_down_loss(*same, *same)
        tensor([1.])
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    return saturating_sigmoid(beta * chosen) + saturating_sigmoid(beta * (rejected - chosen))
