"""Preference objectives of sorted log-ratios: they compare distributions over the batch, quantile by quantile."""

from lossmith._checks import check_below_half, check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import log_ratios, smoothed_logistic


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.05882", batch_coupled=True, sorts=True)
def aot_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " pairs"]:
    r"""Widen the policy's margins beyond the reference's, as distributions over the batch and not pair by pair.

    With $u_{(i)}$ the $i$-th smallest policy margin $\log\pi(y_\mathrm{chosen}) - \log\pi(y_\mathrm{rejected})$,
    $v_{(i)}$ the $i$-th smallest reference margin and $e$ the label smoothing,

    $$\ell_i = -(1-e)\log\sigma(\beta(u_{(i)} - v_{(i)})) - e\log\sigma(-\beta(u_{(i)} - v_{(i)})).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).

    Returns:
        One loss per quantile, in nats, from the smallest policy margin to the largest: entry i does not belong to pair
        i, so weights per pair have no meaning here. Equal to log 2 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `label_smoothing` is outside [0, 0.5).

    Source:
        Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", section 3,
        https://arxiv.org/abs/2406.05882. Deviation: none; `label_smoothing` is not in the paper.

    Use when:
        Batches are large and the distribution of margins matters more than each pair; a batch of one pair is `cdpo`,
        and micro-batches sort each on its own.

    Relatives:
        Equals `cdpo` (and `dpo` at `label_smoothing=0`) for one pair, and wherever policy and reference rank the pairs
        alike. Never above `cdpo` in the mean, which matches worse.

    Elsewhere:
        TRL: `loss_type="aot"`, same value; older releases called it `aot_pair`. It refuses its per-pair weighting
        there.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> aot_loss(torch.tensor([-1.0, -3.0]), zero, torch.tensor([-3.0, -1.0]), zero)
        tensor([0.6931, 0.6931])
    """
    check_positive("beta", beta)
    check_below_half("label_smoothing", label_smoothing)
    policy = at_least_float32(chosen_logps) - at_least_float32(rejected_logps)
    reference = at_least_float32(ref_chosen_logps) - at_least_float32(ref_rejected_logps)
    gained = policy.sort(stable=True).values - reference.sort(stable=True).values
    return smoothed_logistic(beta * gained, label_smoothing)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.05882", batch_coupled=True, sorts=True)
def aot_unpaired_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " pairs"]:
    r"""Lift the distribution of chosen log-ratios above that of the rejected ones, whoever is paired with whom.

    With $c_{(i)}$, $r_{(i)}$ the $i$-th smallest chosen and rejected log-ratio and $e$ the label smoothing,

    $$\ell_i = -(1-e)\log\sigma(\beta(c_{(i)} - r_{(i)})) - e\log\sigma(-\beta(c_{(i)} - r_{(i)})).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).

    Returns:
        One loss per quantile, in nats, from the smallest log-ratios to the largest: entry i does not belong to pair i,
        so weights per pair have no meaning here. Equal to log 2 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `label_smoothing` is outside [0, 0.5).

    Source:
        Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", section 3,
        https://arxiv.org/abs/2406.05882. Deviation: as many chosen as rejected completions, so that quantiles
        need no interpolation; `label_smoothing` is not in the paper.

    Use when:
        Good and bad completions come from different prompts, in batches large enough to have quantiles; with real
        pairs `aot` keeps what the prompt explains.

    Relatives:
        Equals `cdpo` (and `dpo` at `label_smoothing=0`) for one pair, and wherever the chosen and the rejected
        log-ratios rank the pairs alike. Never above `cdpo` in the mean.

    Elsewhere:
        TRL: `loss_type="aot_unpaired"`, same value; older releases called it `aot`.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> aot_unpaired_loss(torch.tensor([-1.0, -3.0]), torch.tensor([-3.0, -1.0]), zero, zero)
        tensor([0.6931, 0.6931])
    """
    check_positive("beta", beta)
    check_below_half("label_smoothing", label_smoothing)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    gap = chosen.sort(stable=True).values - rejected.sort(stable=True).values
    return smoothed_logistic(beta * gap, label_smoothing)
