"""Find a loss that nobody has written down, and believe it: candidates compiled, checked, raced and confirmed."""

from lossmith.discovery.checks import Memory, Verdict, check
from lossmith.discovery.compiler import CompileError, compile_source
from lossmith.discovery.program import Program, as_objective
from lossmith.discovery.program.functions import mean_masked, number, std_batch, var_batch

__all__ = [
    "CompileError",
    "Memory",
    "Program",
    "Verdict",
    "as_objective",
    "check",
    "compile_source",
    "mean_masked",
    "number",
    "std_batch",
    "var_batch",
]
