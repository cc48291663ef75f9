"""Preference objectives that a language model wrote, those that look at the whole batch; Lu et al. 2024.

`form="discovered"` is the function as the model wrote it, with beta = 0.05; `form="released"` is the authors' corrected
code, in which every use of the margin scales with beta. Gradients flow through the statistics of the batch in both.
"""

import torch

from lossmith._checks import check_one_of, check_positive
from lossmith._numerics import safe_sqrt
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective
from lossmith.objectives.preference._discovered_parts import (
    FORMS,
    batch_gauge,
    batch_variance,
    exp_or_tangent,
    hinge,
    logistic,
)
from lossmith.objectives.preference._ratios import log_ratio_margin


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414", batch_coupled=True)
def dbaql_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin by a logistic loss where the batch disagrees, by an exponential one where its pairs are alike.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference, $x = \beta\rho$ and the variance over
    the batch,

    $$\ell = v\,(-\log\sigma(x/0.9)) + (1-v)\,e^{-0.9x}, \qquad
    v_\mathrm{released} = \sigma(\mathrm{Var}[x/0.05]), \quad v_\mathrm{discovered} = \sigma(\mathrm{Var}[\rho]).$$

    A spread of 4 nats already gives $1-v < 10^{-6}$: on most batches this is the logistic loss alone.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        form: "released" (variance of $x/0.05$) or "discovered" (variance of $\rho$); equal at beta = 0.05.

    Returns:
        One loss per pair, in nats, >= 0. Equal to (1 + log 2)/2 where policy and reference agree on all pairs. Its
        slope can grow to 0.45 beta e^50 on pairs lost by far, beyond the range of float16: give float32.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `form` is unknown.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 9,
        https://arxiv.org/abs/2406.08414. Deviation: one pair alone has variance 0 with gradient 0 (there: NaN); the
        exponential continues as its tangent where 0.9x is below -50. Its unused quantile is left out.

    Use when:
        To reproduce the paper, whose search gave it the best MT-Bench score. Not under gradient accumulation, where
        the variance is that of a micro-batch.

    Relatives:
        Equals `dpo` at beta/0.9 where the margins spread widely. `cell` has no temperature and a fixed share of 1/2,
        which is this loss's share on a batch without spread.

    Elsewhere:
        Neither TRL nor LLaMA-Factory has it; the authors' code takes the variance with divisor n - 1 and lets gradients
        flow through it, as here.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> dbaql_loss(*same, *same)
        tensor([0.8466])
    """
    check_positive("beta", beta)
    check_one_of("form", form, FORMS)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    x = beta * rho
    spread = batch_variance(batch_gauge(rho, beta, form))
    # 1 - sigma(Var) rounds to 0 in float32 from 17 on; sigma(-Var) does not.
    return torch.sigmoid(spread) * logistic(x / 0.9) + torch.sigmoid(-spread) * exp_or_tangent(-0.9 * x)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414", batch_coupled=True)
def aql_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin by a logistic loss below a slowly moving threshold and by a hinge above it.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference, $x = \beta\rho$, $t_\mathrm{released} =
    x/0.05$, $t_\mathrm{discovered} = \rho$ and the mean over the batch,

    $$\ell = q\,(-\log\sigma(x)) + (1-q)\,\max(0, 1-x), \qquad m = 0.5 + 0.01\,(\sigma(\mathrm{mean}\,t) - 0.5),$$

    $$q_\mathrm{released} = \sigma(-(t - m)), \quad q_\mathrm{discovered} = \sigma(-\beta(t - m)).$$

    The released switch is 20 times steeper at beta = 0.05, steep enough to turn the slope: on one pair alone it is
    +0.037 at $\rho = 0$, with a minimum at -1.840 and a maximum at +1.787. The discovered form falls everywhere.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        form: "released" or "discovered", as above; never equal.

    Returns:
        One loss per pair, in nats, >= 0. Equal to 0.8090 (discovered: 0.8447) where policy and reference agree
        on all pairs.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `form` is unknown.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 11 to
        14, https://arxiv.org/abs/2406.08414. Deviation: follows the released code where the equations differ from it
        (they take the mean of the sigmoid, and a switch 20 times less steep).

    Use when:
        To reproduce the paper. Not from policy = reference with the released form, which moves the wrong way first; not
        under gradient accumulation, where the mean is that of a micro-batch.

    Relatives:
        `dpo` and `hinge` are its two parts; `aqfl` lets the distance from the threshold decide, not the side.

    Elsewhere:
        Neither TRL nor LLaMA-Factory has it; in the authors' code gradients flow through the threshold, as here.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> aql_loss(*same, *same)
        tensor([0.8090])
    """
    check_positive("beta", beta)
    check_one_of("form", form, FORMS)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    gauge = batch_gauge(rho, beta, form)
    threshold = 0.5 + 0.01 * (torch.sigmoid(gauge.mean()) - 0.5)
    above = (gauge - threshold) * (1.0 if form == "released" else beta)
    return torch.sigmoid(-above) * logistic(beta * rho) + torch.sigmoid(above) * hinge(beta * rho)


@objective(family="preference", item="pair", source="https://arxiv.org/abs/2406.08414", batch_coupled=True)
def aqfl_loss(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.05,
    form: str = "released",
) -> Float[Tensor, " pairs"]:
    r"""Widen the margin by a logistic loss far from a threshold of the batch, with a hinge mixed in close to it.

    With $\rho$ the chosen minus the rejected log-ratio of policy to reference, $x = \beta\rho$, $t_\mathrm{released} =
    x/0.05$, $t_\mathrm{discovered} = \rho$, mean and standard deviation over the batch,

    $$\ell = b\,(-\log\sigma(x)) + (1-b)\,\max(0, 1-x), \qquad b = \sigma(0.1\,|t - a|),$$

    $$a = a_0 + 0.05\,(\sigma(\mathrm{mean}\,t) - a_0), \qquad a_0 = \mathrm{std}(t)\;\mathrm{mean}\,\sigma(-t).$$

    The hinge has at most half of the weight, at the threshold itself, where the loss has a kink.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.
        beta: Strength of the tie to the reference, > 0.
        form: "released" ($t = x/0.05$) or "discovered" ($t = \rho$); equal at beta = 0.05.

    Returns:
        One loss per pair, in nats, >= 0. Equal to 0.8464 where policy and reference agree on all pairs.

    Raises:
        ObjectiveInputError: If `beta` is not positive or `form` is unknown.

    Source:
        Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", eq. 20 to
        25, https://arxiv.org/abs/2406.08414. Deviation: follows the released code where the equations differ from it
        (they have the variance for the standard deviation); where the margins have no spread its gradient is 0 and one
        pair alone has spread 0 (there: NaN).

    Use when:
        To reproduce the paper. Not under gradient accumulation, where the statistics are those of a micro-batch.

    Relatives:
        `dpo` and `hinge` are its two parts, `dpo` alone far from the threshold; `aql` switches by the side of it.

    Elsewhere:
        Neither TRL nor LLaMA-Factory has it; in the authors' code gradients flow through all statistics, as here.

    Example:
        >>> same = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> aqfl_loss(*same, *same)
        tensor([0.8464])
    """
    check_positive("beta", beta)
    check_one_of("form", form, FORMS)
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    gauge = batch_gauge(rho, beta, form)
    start = safe_sqrt(batch_variance(gauge)) * torch.sigmoid(-gauge).mean()
    threshold = start + 0.05 * (torch.sigmoid(gauge.mean()) - start)
    distance = 0.1 * (gauge - threshold).abs()
    return torch.sigmoid(distance) * logistic(beta * rho) + torch.sigmoid(-distance) * hinge(beta * rho)
