"""Token objectives: one loss per token (or per row of a classifier), from statistics of its logits."""

import torch

from lossmith._checks import check_not_negative, check_unit_interval
from lossmith._numerics import safe_pow
from lossmith._typing import Float, Tensor
from lossmith.objectives._registry import objective


@objective(
    family="token",
    item="token",
    source="https://arxiv.org/abs/1512.00567",
    needed_when={"log_normalizer": "label_smoothing", "mean_logits": "label_smoothing"},
)
def cross_entropy_loss(
    token_logps: Float[Tensor, " tokens"],
    log_normalizer: Float[Tensor, " tokens"],
    mean_logits: Float[Tensor, " tokens"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label, the baseline that every other loss is measured against.

    With $p_k$ the probability of class $k$ among $V$ and $e$ the label smoothing,

    $$\ell = -(1-e)\log p_y - \frac{e}{V}\sum_k \log p_k = (1-e)(-\log p_y) + e\,(Z - \bar z),$$

    where $Z$ is the log-normaliser and $\bar z$ the mean logit of the row.

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        log_normalizer: Log-sum-exp of each row of logits.
        mean_logits: Mean of each row of logits.
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).

    Returns:
        One loss per token, in nats, >= 0. Equal to log V on uniform logits.

    Raises:
        ObjectiveInputError: If `label_smoothing` is outside [0, 1).

    Source:
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7,
        https://arxiv.org/abs/1512.00567. Deviation: none. Class weights go through `weights`.

    Example:
        >>> half = torch.tensor([0.5]).log()
        >>> cross_entropy_loss(half, torch.tensor([0.6931]), torch.tensor([0.0]))
        tensor([0.6931])
    """
    check_unit_interval("label_smoothing", label_smoothing)
    if label_smoothing == 0:
        return -token_logps
    return (1 - label_smoothing) * -token_logps + label_smoothing * (log_normalizer - mean_logits)


@objective(family="token", item="token", source="https://arxiv.org/abs/1708.02002")
def focal_loss(token_logps: Float[Tensor, " tokens"], *, gamma: float = 2.0) -> Float[Tensor, " tokens"]:
    r"""Raise the probability of the label, mostly where it is still low: confident tokens count less.

    With $p$ the probability of the label,

    $$\ell = -(1-p)^\gamma \log p.$$

    Args:
        token_logps: Log-probability of each token's label, in nats, <= 0.
        gamma: How strongly confident tokens are discounted, >= 0; 0 is cross-entropy.

    Returns:
        One loss per token, in nats, >= 0. At p = 1/2 and gamma = 2 a quarter of log 2.

    Raises:
        ObjectiveInputError: If `gamma` is negative.

    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4, https://arxiv.org/abs/1708.02002.
        Deviation: no class balance factor inside (give `weights`); for gamma < 1 the gradient at p = 1 is 0,
        where the formula's own is infinite.

    Example:
        >>> focal_loss(torch.tensor([0.5]).log())
        tensor([0.1733])
    """
    check_not_negative("gamma", gamma)
    # 1 - p = -expm1(log p) is exact near p = 1, where 1 - exp(log p) rounds to 0.
    return -safe_pow(-torch.expm1(token_logps), gamma) * token_logps
