"""Preference objectives of the margin: they see a pair only through its chosen minus its rejected log-ratio."""

import torch.nn.functional as F

from lossmith._checks import check_positive
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._ratios import log_ratio_margin


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
