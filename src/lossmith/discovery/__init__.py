"""Find a loss that nobody has written down, and believe it: candidates compiled, checked, raced and confirmed."""

from lossmith.discovery.program import Program, as_objective
from lossmith.discovery.program.functions import mean_masked, std_batch, var_batch

__all__ = ["Program", "as_objective", "mean_masked", "std_batch", "var_batch"]
