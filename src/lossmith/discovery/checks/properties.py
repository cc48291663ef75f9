"""What a sound candidate is like; nothing of it forbids anything, since LRML, IPO and cDPO are all non-monotone."""

import numpy as np

from lossmith.discovery.checks import points
from lossmith.discovery.checks.battery import Candidate, duplicates_with_its_batch
from lossmith.discovery.checks.precision import half_precision_finite, single_precision_finite
from lossmith.discovery.checks.slopes import slopes_agree
from lossmith.discovery.program.arrays import Array

SATURATED, GROWING = 1e-3, 0.05


def properties_of(candidate: Candidate) -> tuple[str, ...]:
    """Flags of a candidate that has passed the hard checks, in a fixed order."""
    program = candidate.program
    flags: list[str] = []
    if program.batch_coupled and program.family != "metric":
        flags.append("batch-coupled")
        if not duplicates_with_its_batch(candidate):
            flags.append("batch-size-dependent")
    if candidate.holds:
        flags.append("detach")
        if slopes_agree(candidate):
            flags.append("grad-mismatch")
    if not half_precision_finite(candidate):
        flags.append("half-nonfinite")
    if not single_precision_finite(candidate):
        flags.append("float32-nonfinite")
    if program.family == "preference":
        if not any(name.startswith("ref_") for name in program.inputs):
            flags.append("reference-free")
        flags += _shape_flags(candidate)
    if program.family == "token" and _lowers_sure_labels(candidate):
        flags.append("lowers-sure-labels")
    return tuple(flags)


def _lowers_sure_labels(candidate: Candidate) -> bool:
    """Whether a label that is all but certain is pushed down, as by label smoothing."""
    sure = points.far("token")[0]
    assert sure.labels is not None
    own = sure.chained(candidate.at(sure)[1]).reshape(sure.labels.shape)[sure.labels == 1]
    return bool(own.max() > SATURATED * np.abs(own).max())


def margin_line(candidate: Candidate) -> tuple[Array, Array, Array]:
    """Margins, losses of a pair at each, and the gradient along the margin."""
    where = points.line()
    value, gradients = candidate.at(where)
    zero = np.zeros(where.inputs["chosen_logps"].shape)
    along = (gradients.get("chosen_logps", zero) - gradients.get("rejected_logps", zero)) / 2
    return points.LINE, np.broadcast_to(value, zero.shape)[:, 0, 0], along[:, 0, 0]


def _shape_flags(candidate: Candidate) -> list[str]:
    _, losses, slopes = margin_line(candidate)
    steepest = float(np.abs(slopes).max())
    flags: list[str] = []
    if float(slopes.max()) > SATURATED * steepest:
        flags.append("non-monotone")
    if _is_convex(losses, slopes):
        flags.append("convex")
    # The ends of the line say whether the loss still grows, and whether it still pulls, far on either side.
    if abs(float(losses[0] - losses[30])) <= GROWING * float(np.ptp(losses)) and abs(
        float(losses[-1] - losses[-31])
    ) <= GROWING * float(np.ptp(losses)):
        flags.append("bounded")
    if abs(float(slopes[-1])) <= SATURATED * steepest:
        flags.append("saturating")
    return flags


def _is_convex(losses: Array, slopes: Array) -> bool:
    bends = np.diff(slopes)
    jumps = np.abs(np.diff(losses)) > 2 * np.abs(slopes).max() * (points.LINE[1] - points.LINE[0])
    return bool((bends >= -1e-9 * np.abs(slopes).max()).all() and not jumps.any())
