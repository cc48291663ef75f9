"""Preference objectives of the margin: how much more the chosen completion gained over the reference."""

import torch
import torch.nn.functional as F

from lossmith._checks import check_not_negative, check_positive
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import log_ratio_margin, log_ratios, mean_logps


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2305.18290",
    instead={"label_smoothing": "cdpo"},
)
def dpo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Widen the policy's preference for the chosen completion beyond the reference's.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference,

    $$\ell = -\log \sigma(\beta \rho).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0. Small values let the policy drift further from it.

    Returns:
        One loss per pair, in nats, >= 0. Equal to log 2 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Rafailov et al. 2023, "Direct Preference Optimization", eq. 7, https://arxiv.org/abs/2305.18290.
        Deviation: none.

    Use when:
        You have clean pairs and a reference model: the baseline that every other preference loss is compared with.

    Relatives:
        `cdpo` and `robust_dpo` equal it at `label_smoothing=0`; `simpo` drops the reference; `dpop` equals it where no
        chosen log-ratio is negative.

    Elsewhere:
        TRL: `loss_type="sigmoid"`, same value at the same beta; its `label_smoothing` is ignored there without a word.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> dpo_loss(*same, *same, beta=0.5)
        tensor([0.6931])
    """
    check_positive("beta", beta)
    return -F.logsigmoid(beta * log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps))


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2305.10425",
    aliases=("slic",),
    instead={"label_smoothing": "cdpo"},
)
def hinge_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin to 1/beta at a constant rate and then leave the pair alone.

    With $\rho$ the chosen minus the rejected log-ratio,

    $$\ell = \max(0,\, 1 - \beta\rho).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Reciprocal of the wanted margin, in 1/nats, > 0.

    Returns:
        One loss per pair, without unit, >= 0. Equal to 1 where policy and reference agree; 0, with gradient 0, from
        $\rho = 1/\beta$ on.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", section 2,
        https://arxiv.org/abs/2305.10425. Deviation: log-probabilities are taken relative to the reference and the
        margin is $1/\beta$, as in Liu et al. 2023 (RSO, https://arxiv.org/abs/2309.06657); no likelihood term.

    Use when:
        You want pairs that are already right to stop moving the policy; not when all pairs must keep contributing.

    Relatives:
        `dpo` is its smooth version: on pairs far on the wrong side both slopes are $-\beta$. `ipo` also aims at a
        margin, but pulls back from beyond it.

    Elsewhere:
        TRL: `loss_type="hinge"`, same value. HALOs' `SLiCTrainer` keeps the paper's form: `beta` is the margin
        itself, no reference, and a likelihood term.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> hinge_loss(*same, *same)
        tensor([1.])
    """
    check_positive("beta", beta)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return torch.relu(1 - beta * rho)


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2310.12036",
    needed_when={"chosen_lengths": "average", "rejected_lengths": "average"},
    instead={"label_smoothing": "cdpo"},
)
def ipo_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    chosen_lengths: Float[Tensor, " pairs"],
    rejected_lengths: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    average: bool = False,
) -> Float[Tensor, " pairs"]:
    r"""Bring the margin to 1/(2 beta), from either side.

    With $\rho$ the chosen minus the rejected log-ratio (with `average`, each divided by its number of tokens),

    $$\ell = \left(\rho - \frac{1}{2\beta}\right)^2.$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        chosen_lengths: Tokens of each chosen completion, > 0; read only with `average`.
        rejected_lengths: The same for the rejected completions.
        beta: Strength of the tie to the reference ($\tau$ in the paper), > 0.
        average: Whether log-ratios are means over tokens instead of sums, so that the target margin is per token.

    Returns:
        One loss per pair, in nats squared, >= 0. Equal to $1/(4\beta^2)$ (25 at the default) where policy and
        reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17,
        https://arxiv.org/abs/2310.12036. Deviation: none; `average` is not in the paper.

    Use when:
        Preferences are nearly deterministic and `dpo` would push margins without end; not with very uneven lengths
        unless `average=True`, since the target is the same for long and short completions.

    Relatives:
        `sppo_hard` applies the same square to each side alone. With all lengths 1, `average` changes nothing.

    Elsewhere:
        TRL: `loss_type="ipo"` always averages (`average=True` here), and so does LLaMA-Factory; the DiscoPOP code sums.
        The same beta therefore means different things.

    Example:
        >>> import torch
        >>> same, tokens = (torch.tensor([-10.0]), torch.tensor([-12.0])), torch.tensor([5.0])
        >>> ipo_loss(*same, *same, tokens, tokens)
        tensor([25.])
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    if average:
        chosen, rejected = mean_logps(chosen, chosen_lengths), mean_logps(rejected, rejected_lengths)
    return (chosen - rejected - 1 / (2 * beta)).square()


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2402.13228",
    instead={"label_smoothing": "cdpo"},
)
def dpop_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    coefficient: float = 50.0,
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin without letting the chosen completion become less likely than under the reference.

    With $c$ the chosen log-ratio and $\rho$ the chosen minus the rejected one,

    $$\ell = -\log \sigma\bigl(\beta(\rho - \lambda\max(0, -c))\bigr).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        coefficient: How many nats of margin each lost nat of the chosen completion costs ($\lambda$), >= 0.

    Returns:
        One loss per pair, in nats, >= 0. Equal to log 2 where policy and reference agree; at c = 0 exactly the penalty
        has gradient 0.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `coefficient` is negative.

    Source:
        Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", the definition of
        $\mathcal{L}_\mathrm{DPOP}$, https://arxiv.org/abs/2402.13228. Deviation: none.

    Use when:
        The two completions differ in a few tokens and `dpo` lowers the likelihood of both; not when the chosen
        completions are themselves worse than what the policy writes.

    Relatives:
        Equals `dpo` at `coefficient=0` and wherever no chosen log-ratio is negative. `cpo` and `orpo` hold the chosen
        likelihood up with a likelihood term instead.

    Elsewhere:
        TRL has no such loss. PaddleNLP has the penalty inside the sigmoid, as here; several MLX trainers add it
        outside, not scaled by beta, which is another loss.

    Example:
        >>> import torch
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> dpop_loss(*same, *same)
        tensor([0.6931])
    """
    check_positive("beta", beta)
    check_not_negative("coefficient", coefficient)
    chosen, rejected = log_ratios(chosen_logps, ref_chosen_logps), log_ratios(rejected_logps, ref_rejected_logps)
    return -F.logsigmoid(beta * (chosen - rejected - coefficient * torch.relu(-chosen)))


@objective(
    family="preference",
    item="pair",
    source="https://arxiv.org/abs/2411.15124",
    instead={"label_smoothing": "cdpo"},
)
def dpo_length_normalized_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    chosen_lengths: Float[Tensor, " pairs"],
    rejected_lengths: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " pairs"]:
    r"""Widen the preference per token, so that a long completion does not win by its length.

    With $c$, $r$ the chosen and rejected log-ratios and $n_c$, $n_r$ their numbers of tokens,

    $$\ell = -\log \sigma\left(\beta\left(\frac{c}{n_c} - \frac{r}{n_r}\right)\right).$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        chosen_lengths: Tokens of each chosen completion, > 0.
        rejected_lengths: The same for the rejected completions.
        beta: Strength of the tie to the reference per token, > 0. Ratios per token are small: Tulu 3 trains with 5.

    Returns:
        One loss per pair, in nats, >= 0. Equal to log 2 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Source:
        Lambert et al. 2024, "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", section 5,
        https://arxiv.org/abs/2411.15124. Deviation: none; the default beta is that of `dpo`, not theirs.

    Use when:
        Preferred completions are systematically longer and `dpo` makes the policy verbose; raise `beta` by about the
        usual length when you come from `dpo`.

    Relatives:
        Equals `dpo` with all lengths 1, and `dpo` at `beta / n` where all completions have n tokens. `simpo` drops the
        reference and adds a margin.

    Elsewhere:
        TRL: `loss_type="sigmoid_norm"`, same value. HALOs' `length_normalization` multiplies by 100 in addition.

    Example:
        >>> import torch
        >>> same, tokens = (torch.tensor([-10.0]), torch.tensor([-12.0])), torch.tensor([5.0])
        >>> dpo_length_normalized_loss(*same, *same, tokens, tokens)
        tensor([0.6931])
    """
    check_positive("beta", beta)
    chosen = mean_logps(log_ratios(chosen_logps, ref_chosen_logps), chosen_lengths)
    rejected = mean_logps(log_ratios(rejected_logps, ref_rejected_logps), rejected_lengths)
    return -F.logsigmoid(beta * (chosen - rejected))
