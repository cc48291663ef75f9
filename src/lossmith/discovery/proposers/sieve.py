"""The sieve of the proposers that make thousands of programs: what the checks would refuse is not even proposed."""

from hashlib import blake2b

import numpy as np

from lossmith.discovery.program import Program

DIGITS = 4
"""Of a fingerprint that count: two spellings of one loss agree to 3e-8, and the gate finds what is merely close."""


def behaviour(program: Program) -> str | None:
    """A name for what a program does; None where it is not finite, reaches or moves nothing, or pulls wrongly.

    It looks at the public probe points alone, so it is a filter and no check: the gate checks everything again.

    Example:
        >>> from lossmith.discovery.compiler import compile_source
        >>> one, other, wrong = (
        ...     compile_source(f"def f(chosen_logps, rejected_logps): return {text}")
        ...     for text in (
        ...         "F.softplus(rejected_logps - chosen_logps)",
        ...         "-F.logsigmoid(chosen_logps - rejected_logps)",
        ...         "chosen_logps - rejected_logps",
        ...     )
        ... )
        >>> behaviour(one) == behaviour(other), behaviour(wrong)
        (True, None)
    """
    from lossmith.discovery.checks import Candidate
    from lossmith.discovery.checks.battery import moves_at_the_reference, one_item_alone, right_direction, the_ends
    from lossmith.discovery.identity import fingerprint

    if program.root.type != "item":
        return None
    found = fingerprint(program)
    if found is None:
        return None
    candidate = Candidate(program)
    rules = (right_direction, the_ends, one_item_alone, moves_at_the_reference)
    if any(rule(candidate) is not None for rule in rules):
        return None
    # Adding 0 makes every zero positive.
    return blake2b((np.round(found.vector, DIGITS) + 0.0).tobytes(), digest_size=8).hexdigest()
