"""What every preference objective starts from: log-ratios of the policy to the reference, in at least float32."""

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
