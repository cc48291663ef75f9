"""Preference objectives that a language model wrote, those that look at one pair alone; Lu et al. 2024.

`form="discovered"` is the function as the model wrote it, with beta = 0.05; `form="released"` is the authors' corrected
code, in which every use of the margin scales with beta.
"""

import torch
import torch.nn.functional as F

from lossmith._checks import check_one_of, check_positive
from lossmith._typing import Float, Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._discovered_parts import (
    DISCOVERY_BETA,
    FORMS,
    exp_or_tangent,
    hinge,
    logistic,
)
from lossmith.objectives.preference._ratios import log_ratio_margin


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414", aliases=("discopop",))
def lrml_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    tau: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Learn wrong pairs by the logistic loss and right ones by the exponential; hold undecided ones in a dent.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference and $x = \beta\rho$,

    $$\ell = (1 - \sigma(z))\,(-\log\sigma(x)) + \sigma(z)\,e^{-x}, \qquad
    z_\mathrm{released} = x/\tau, \quad z_\mathrm{discovered} = \rho.$$

    At beta = tau = 0.05 it first pushes a fresh pair *down*: the slope by $\rho$ is +0.039 at 0, and pairs between the
    minimum at -2.371 and the maximum at +1.440 fall back to the minimum.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        tau: Width of the switch between the two losses, in units of $x$, > 0; the discovered form has none.
        form: "released" (the switch reads $x/\tau$) or "discovered" (it reads $\rho$); equal where beta = tau.

    Returns:
        One loss per pair, in nats, >= 0. Equal to (1 + log 2)/2 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` or `tau` is not positive, `form` is unknown or has no `tau`.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 5 and
        appendix E.6 (whose eq. 27 misprints the sign inside the exponential), https://arxiv.org/abs/2406.08414.
        Deviation: $\sigma(z)e^{-x}$ is computed as one exponential and goes over into its tangent where the exponent
        passes 50, which needs tau > 1 (discovered form: beta > 1); for smaller ones it never does.

    Use when:
        Labels are noisy and close pairs carry the noise: those are held near the dent. Not for few or short steps from
        policy = reference, where it moves the wrong way first.

    Relatives:
        `dpo` far below the dent; `cell` blends the same two losses evenly; `dbaql` blends by the spread of the batch.

    Elsewhere:
        TRL: `loss_type="discopop"`, `discopop_tau=0.05`, beta 0.1 by default; NaN below a beta times margin of -88 in
        float32 (infinity times 0), as in the authors' code. EasyDeL: the same name, tau 1 unless it is passed.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> lrml_loss(*same, *same)
        tensor([0.8466])
    """
    check_positive("beta", beta)
    check_positive("tau", tau)
    check_one_of("form", form, FORMS)
    if form == "discovered" and tau != DISCOVERY_BETA:
        raise ObjectiveInputError(f"`tau` is not in form 'discovered', whose switch reads the bare margin; got {tau}.")
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    x = beta * rho
    switch = x / tau if form == "released" else rho
    # sigma(z) e^{-x} in one exponent: where e^{-x} overflows alone, sigma(z) would be 0 and the product NaN.
    return torch.sigmoid(-switch) * logistic(x) + exp_or_tangent(F.logsigmoid(switch) - x)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414")
def padll_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin as `dpo` does, with half the force on pairs that the policy still gets wrong.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference and $x = \beta\rho$, in both forms,

    $$\ell = -0.9\,\bigl(1 - 0.5\,[\rho < 0]\bigr)\,\log\sigma(x).$$

    The loss jumps *up*, from 0.31 to 0.62, where a pair becomes right; its gradient does not see the jump.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        form: "released" or "discovered", which are the same here.

    Returns:
        One loss per pair, in nats, >= 0. Equal to 0.9 log 2 where policy and reference agree.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `form` is unknown.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 15 to
        19, https://arxiv.org/abs/2406.08414. Deviation: none.

    Use when:
        Labels may be flipped: pairs far on the wrong side pull half as hard. Compare gradients, not values: the jump
        makes the loss a poor guide.

    Relatives:
        Equals 0.9 times `dpo` at $\rho \ge 0$ and 0.45 times `dpo` below. `cdpo` and `robust_dpo` model flipped labels.

    Elsewhere:
        Neither TRL nor LLaMA-Factory has it; same value in the authors' code.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> padll_loss(*same, *same)
        tensor([0.6238])
    """
    check_positive("beta", beta)
    check_one_of("form", form, FORMS)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    losses = logistic(beta * rho)
    return torch.where(rho < 0, 0.45 * losses, 0.9 * losses)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414")
def cell_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin by the mean of the logistic and the exponential loss: wrong pairs pull ever harder.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference and $x = \beta\rho$, in both forms,

    $$\ell = \tfrac12\,(-\log\sigma(x)) + \tfrac12\,e^{-x}.$$

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        form: "released" or "discovered", which are the same here.

    Returns:
        One loss per pair, in nats, >= 0. Equal to (1 + log 2)/2, with slope -0.75 beta, where policy and reference
        agree. Its slope grows to beta e^50 / 2 on pairs lost by far, beyond the range of float16: give float32.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `form` is unknown.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 26,
        https://arxiv.org/abs/2406.08414. Deviation: the exponential continues as its tangent below x = -50.

    Use when:
        Labels are clean and wrong pairs must be put right first. Not with noisy labels or a large beta: one pair at
        x = -20 weighs as much as 300 million at 0; clip gradients.

    Relatives:
        `dpo` is its logistic part; `lrml` makes the exponential part count on the right side only.

    Elsewhere:
        Neither TRL nor LLaMA-Factory has it; the authors' code overflows to infinity below x = -88 in float32.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> cell_loss(*same, *same)
        tensor([0.8466])
    """
    check_positive("beta", beta)
    check_one_of("form", form, FORMS)
    x = beta * log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return 0.5 * logistic(x) + 0.5 * exp_or_tangent(-x)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414")
def pfl_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin: four times harder, by a hinge, where the policy itself still prefers the rejected completion.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference, $y_\mathrm{released} = \beta\rho$ and
    $y_\mathrm{discovered} = \rho$,

    $$\ell = \begin{cases} -\tfrac12 \log\sigma(y) & \text{if the policy gives chosen more than rejected,} \\
    2\max(0, 1-y) & \text{otherwise.}\end{cases}$$

    The case depends on the policy alone, not on the reference: the loss jumps where the policy changes its mind.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0. Not used in the discovered form, which was written without it.
        form: "released" ($y = \beta\rho$) or "discovered" ($y = \rho$); equal at beta = 1.

    Returns:
        One loss per pair, in nats, >= 0. Where policy and reference agree, half of log 2 if the policy prefers the
        chosen completion, else 2.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `form` is unknown.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 29,
        https://arxiv.org/abs/2406.08414. Deviation: follows the released code, which has no division by 0.05.

    Use when:
        The ranking by the policy's own likelihood is what counts. Not where lengths differ much: the case compares
        sums over tokens, so a long chosen completion is "wrong" whatever its quality.

    Relatives:
        Half of `dpo` on pairs that the policy ranks right, twice `hinge` on the others.

    Elsewhere:
        Neither TRL nor LLaMA-Factory has it; same value in the authors' code.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> pfl_loss(*same, *same)
        tensor([0.3466])
    """
    check_positive("beta", beta)
    check_one_of("form", form, FORMS)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = beta * rho if form == "released" else rho
    return torch.where(chosen_logps > rejected_logps, 0.5 * logistic(margin), 2 * hinge(margin))
