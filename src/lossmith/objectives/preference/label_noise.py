"""Preference objectives of the margin that count on flipped labels: the target odds of a pair are finite."""

import math

import torch.nn.functional as F

from lossmith._checks import check_below_half, check_positive
from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import log_ratio_margin, saturating_sigmoid, smoothed_logistic


@objective(family="preference", item="pair", source="https://ericmitchell.ai/cdpo.pdf")
def cdpo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin until the odds of the pair match the trust in its label, and no further.

    With $\rho$ the chosen minus the rejected log-ratio and $e$ the label smoothing,

    $$\ell = -(1-e)\log \sigma(\beta \rho) - e\log \sigma(-\beta \rho).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).

    Returns:
        One loss per pair, in nats, at least the entropy of the label noise, which it reaches at
        $\beta\rho = \log\frac{1-e}{e}$. Equal to log 2 where policy and reference agree, at any $e$.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `label_smoothing` is outside [0, 0.5).

    Source:
        Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", eq. 3,
        https://ericmitchell.ai/cdpo.pdf. Deviation: none.

    Use when:
        Some labels are wrong and you want the policy to stop at a finite margin; for clean labels take `dpo`.

    Relatives:
        Equals `dpo` at `label_smoothing=0`. `robust_dpo` corrects for the same noise without a finite optimum;
        `exo_pair` compares the same distributions by the reverse divergence; `aot` is this loss on sorted log-ratios.

    Elsewhere:
        TRL's DPO trainer has it no more: `label_smoothing` has no effect on its `loss_type="sigmoid"`. OpenRLHF's
        `DPOLoss` and HALOs' `CDPOTrainer` have it (the latter calls the noise `epsilon`).

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> cdpo_loss(*same, *same, label_smoothing=0.3)
        tensor([0.6931])
    """
    check_positive("beta", beta)
    check_below_half("label_smoothing", label_smoothing)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed_logistic(beta * rho, label_smoothing)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2403.00409")
def robust_dpo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin as `dpo` would on clean labels, by subtracting what flipped labels add on average.

    With $\rho$ the chosen minus the rejected log-ratio and $e$ the probability of a flip,

    $$\ell = \frac{-(1-e)\log \sigma(\beta \rho) + e\log \sigma(-\beta \rho)}{1-2e}.$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        label_smoothing: Probability that a label is flipped, in [0, 0.5).

    Returns:
        One loss per pair, in nats. Not bounded below: it falls like $-\frac{e}{1-2e}\beta\rho$ for large margins.
        Equal to log 2 where policy and reference agree, at any $e$.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `label_smoothing` is outside [0, 0.5).

    Source:
        Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback", section 3.1,
        https://arxiv.org/abs/2403.00409. Deviation: none.

    Use when:
        You know roughly which share of labels is flipped at random; not with a guess far above it, since the
        reward for large margins never ends.

    Relatives:
        Equals `dpo` at `label_smoothing=0`. Averaged over the flips it equals `dpo` on the true labels: (1-e) times the
        loss of a pair plus e times that of the swapped pair. `cdpo` is the bounded alternative.

    Elsewhere:
        TRL: `loss_type="robust"`, same value, but `label_smoothing` is 0 by default, where it is plain DPO; outside
        [0, 0.5) it only warns.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> robust_dpo_loss(*same, *same, label_smoothing=0.3)
        tensor([0.6931])
    """
    check_positive("beta", beta)
    check_below_half("label_smoothing", label_smoothing)
    x = beta * log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (label_smoothing * F.logsigmoid(-x) - (1 - label_smoothing) * F.logsigmoid(x)) / (1 - 2 * label_smoothing)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2402.00856")
def exo_pair_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.001,
) -> Float[Tensor, " pairs"]:
    r"""Match the policy's odds of a pair to the label's by the reverse divergence, which seeks the mode.

    With $x = \beta\rho$, $\rho$ the chosen minus the rejected log-ratio, and $e$ the label smoothing,

    $$\ell = \sigma(x)\,\bigl(\log\sigma(x) - \log(1-e)\bigr) + \sigma(-x)\,\bigl(\log\sigma(-x) - \log e\bigr).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        label_smoothing: Probability given to the rejected completion, in (0, 0.5).

    Returns:
        One loss per pair, in nats, >= 0: a Kullback-Leibler divergence, 0 at $x = \log\frac{1-e}{e}$ and never above
        $-\log e$. Equal to $-\log 2 - \frac12\log(e(1-e))$ where policy and reference agree (2.761 at the default).

    Raises:
        ObjectiveInputError: If `beta` is not positive or `label_smoothing` is outside (0, 0.5).

    Source:
        Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", eq. 16,
        https://arxiv.org/abs/2402.00856. Deviation: none.

    Use when:
        A policy too small to cover all good answers should settle on some of them; not from a start where pairs
        are far on the wrong side, since the slope vanishes there ($x \ll 0$).

    Relatives:
        `cdpo` is the forward divergence between the same two distributions plus a constant, with the same minimum.

    Elsewhere:
        TRL: `loss_type="exo_pair"`, same value; its `label_smoothing` defaults to 0, which it refuses for this loss.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> exo_pair_loss(*same, *same)
        tensor([2.7612])
    """
    check_positive("beta", beta)
    if label_smoothing == 0:
        raise ObjectiveInputError(
            "`label_smoothing` of 'exo_pair' must be in (0, 0.5), got 0, whose logarithm the loss contains: "
            "give a small value such as 0.001 or use `dpo`."
        )
    if not 0 < label_smoothing < 0.5:
        raise ObjectiveInputError(f"`label_smoothing` must be in (0, 0.5), got {label_smoothing}.")
    x = beta * log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    right = saturating_sigmoid(x) * (F.logsigmoid(x) - math.log1p(-label_smoothing))
    wrong = saturating_sigmoid(-x) * (F.logsigmoid(-x) - math.log(label_smoothing))
    return right + wrong
