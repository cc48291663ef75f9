"""What every preference objective starts from: log-ratios of the policy to the reference, in at least float32."""

import torch.nn.functional as F

from lossmith._checks import check_positive
from lossmith._numerics import at_least_float32
from lossmith._typing import Float, Tensor


def log_ratios(logps: Float[Tensor, " items"], ref_logps: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """Log-ratio of policy to reference of each completion, in nats."""
    return at_least_float32(logps) - at_least_float32(ref_logps)


def log_ratio_margin(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """Chosen minus rejected log-ratio of each pair, rho in the catalogue, in nats."""
    return log_ratios(chosen_logps, ref_chosen_logps) - log_ratios(rejected_logps, ref_rejected_logps)


def mean_logps(logps: Float[Tensor, " items"], lengths: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """Log-probability per token of each completion, in nats."""
    return at_least_float32(logps) / at_least_float32(lengths)


def saturating_sigmoid(x: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """`sigmoid(x)` whose gradient survives at both ends.

    `torch.sigmoid` differentiates as y(1 - y), which is exactly 0 once y has rounded to 1 (x = 17 in float32), where
    the true slope is 4e-8; a completion that has lost by that much would never be pushed back.

    Example:
        >>> import torch
        >>> x = torch.tensor([40.0], requires_grad=True)
        >>> torch.autograd.grad(saturating_sigmoid(x), x)[0] > 4e-18
        tensor([True])
    """
    return F.logsigmoid(x).exp()


def smoothed_logistic(x: Float[Tensor, " pairs"], label_smoothing: float) -> Float[Tensor, " pairs"]:
    """Cross-entropy of a pair whose label is right with probability 1 - `label_smoothing`, at logit x."""
    return -(1 - label_smoothing) * F.logsigmoid(x) - label_smoothing * F.logsigmoid(-x)


def implicit_rewards(
    logps: Float[Tensor, " items"], ref_logps: Float[Tensor, " items"], *, beta: float
) -> Float[Tensor, " items"]:
    r"""Reward that a policy assigns implicitly, $\beta \log \frac{\pi(y \mid x)}{\pi_\mathrm{ref}(y \mid x)}$; to log.

    Args:
        logps: Policy log-probability of each completion, summed over its tokens, in nats.
        ref_logps: The same under the frozen reference.
        beta: Strength of the tie to the reference, > 0.

    Returns:
        One reward per completion, in nats, without gradient; 0 where policy and reference agree. The margin of a pair
        is the chosen minus the rejected reward.

    Raises:
        ObjectiveInputError: If `beta` is not positive.

    Example:
        >>> import torch
        >>> implicit_rewards(torch.tensor([-10.0]), torch.tensor([-12.0]), beta=0.5)
        tensor([1.])
    """
    check_positive("beta", beta)
    return beta * log_ratios(logps, ref_logps).detach()


def preference_accuracy(
    chosen_logps: Float[Tensor, " pairs"],
    rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
) -> Float[Tensor, ""]:
    """Share of pairs whose chosen completion gained more over the reference than the rejected one; to log.

    A tie counts one half, so that a policy that still equals its reference scores 0.5, as chance does. TRL counts ties
    as errors and starts such a run at 0.

    Args:
        chosen_logps: Policy log-probability of each chosen completion, summed over its tokens, in nats.
        rejected_logps: The same for the rejected completions.
        ref_chosen_logps: Log-probability of each chosen completion under the frozen reference, in nats.
        ref_rejected_logps: The same for the rejected completions.

    Returns:
        Mean over the pairs, a scalar in [0, 1] without gradient; NaN where there are no pairs.

    Example:
        >>> import torch
        >>> policy = torch.tensor([-5.0, -9.0, -8.0]), torch.tensor([-8.0, -9.0, -8.0])
        >>> preference_accuracy(*policy, torch.full((3,), -8.0), torch.tensor([-8.0, -10.0, -8.0]))
        tensor(0.5000)
    """
    rho = log_ratio_margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps).detach()
    return ((rho.sign() + 1) / 2).mean()
