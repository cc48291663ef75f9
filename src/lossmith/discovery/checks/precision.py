"""Whether a candidate stays finite on numbers with fewer digits; this forbids nothing."""

import torch

from lossmith.discovery.checks import points
from lossmith.discovery.checks.battery import Candidate, tensors_of


def half_precision_finite(candidate: Candidate) -> bool:
    """Whether value and gradient are finite on bfloat16 and float16 inputs."""
    given = tensors_of(candidate, 3)
    return all(_finite_in(candidate, given, dtype) for dtype in (torch.bfloat16, torch.float16))


def single_precision_finite(candidate: Candidate) -> bool:
    """Whether value and gradient are finite on float32 inputs at the ends, where float64 was asked for."""
    for where in points.far(candidate.program.family):
        if candidate.program.family == "metric" or candidate.program.batch_coupled:
            parts = [where.tensors(batch) for batch in range(len(next(iter(where.inputs.values()))))]
        else:
            parts = [where.joined()]
        for part in parts:
            given = {name: part[name] for name in candidate.program.inputs}
            if not _finite_in(candidate, given, torch.float32):
                return False
    return True


def _finite_in(candidate: Candidate, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> bool:
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    trained = points.ordinary(candidate.program.family).trained
    leaves = [given[name].requires_grad_() for name in given if name in trained]
    value = candidate.function(**given)
    slopes = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if value.requires_grad else ()
    finite = [value, *(slope for slope in slopes if slope is not None)]
    return all(bool(part.isfinite().all()) for part in finite)
