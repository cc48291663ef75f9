"""`check`: one candidate, one verdict; whatever it is given, it does not raise."""

from functools import partial

from lossmith.discovery.checks.battery import CHECKS, Candidate
from lossmith.discovery.checks.memory import Memory
from lossmith.discovery.checks.properties import properties_of
from lossmith.discovery.checks.slopes import slopes_agree
from lossmith.discovery.checks.verdict import Verdict
from lossmith.discovery.compiler import SIGNATURES, CompileError, compile_candidate
from lossmith.discovery.identity import (
    DUPLICATE,
    NEIGHBOUR,
    Fingerprint,
    Nearest,
    atlas,
    fingerprint,
    fingerprint_at,
    refitted,
    same_beyond,
)
from lossmith.discovery.program import INPUTS, Program

AGAINST = ("control", "library")


def check(
    source: object,
    family: str = "preference",
    *,
    signature: str = "native",
    against: str = "control",
    direction: bool = True,
    memory: Memory | None = None,
) -> Verdict:
    """Compile one candidate, check it, and compare it with what is known; nothing of it is ever executed.

    A candidate that does what the control does (`dpo` at any `beta` from 0.001 to 100, `cross_entropy`, `supcon` at any
    `temperature` from 0.01 to 10, in any spelling) is refused as `duplicate-of-NAME`: a race against the control at its
    own strength would tune that strength and find no loss. The control's other settings are not its strength: label
    smoothing makes another loss. A copy of another published loss is sound, and worth measuring against the control: it
    is accepted with the flag `known:NAME`, unless `against="library"` makes a duplicate of it too. Programs in `memory`
    always count, each at its own constants alone. What agrees at the probe points is compared at the ends, at
    completions of 1 to 2,000 tokens and at the secret points of `memory` too before it is called a duplicate.

    Args:
        source: One Python function as text, or a `Program`.
        family: `preference`, `token` or `metric`.
        signature: `native`, or `discopop` for the names of Lu et al. 2024 and `self.beta`.
        against: `control` or `library`: which published losses a candidate may not repeat.
        direction: Whether descent must push the right way; False for a penalty that is added to a loss.
        memory: Programs that a run knows already; its secret probe points serve the direction and duplicates too.

    Returns:
        The verdict. `nearest` is the closest published loss over grids of hyper-parameters, with its distance; where
        nothing was refused its `beta`, `temperature` or `scale` is fitted.

    Example:
        >>> verdict = check("def f(chosen_logps, rejected_logps): return chosen_logps - rejected_logps")
        >>> verdict.accepted, verdict.category
        (False, 'wrong-sign')
    """
    try:
        wrong = _wrong_use(family, signature, against)
        if wrong is not None:
            return wrong
        if isinstance(source, Program):
            return check_program(source, against=against, direction=direction, memory=memory)
        if type(source) is not str and isinstance(source, str):
            # Its methods are code of the candidate's.
            reason = "The source must be a plain str or a Program, not a subclass of str."
            return Verdict(accepted=False, category="usage", reason=reason)
        compiled = compile_candidate(source, family, signature)
        return check_program(
            compiled.program, against=against, direction=direction, memory=memory, flags=compiled.flags
        )
    except CompileError as error:
        return Verdict(accepted=False, category=error.category, reason=error.reason, line=error.line)
    except Exception as error:
        return Verdict(accepted=False, category="internal", reason=f"The checks failed on it: {type(error).__name__}.")


def _wrong_use(family: object, signature: object, against: object) -> Verdict | None:
    for name, value, known in (
        ("family", family, INPUTS),
        ("signature", signature, SIGNATURES),
        ("against", against, AGAINST),
    ):
        if not isinstance(value, str) or value not in known:
            reason = f"`{name}` must be one of {', '.join(known)}, got {ascii(value)[:60]}."
            return Verdict(accepted=False, category="usage", reason=reason)
    return None


def check_program(
    program: Program,
    *,
    against: str = "control",
    direction: bool = True,
    memory: Memory | None = None,
    flags: tuple[str, ...] = (),
) -> Verdict:
    """The verdict on a program; exact duplicates first, since they cost microseconds."""
    same = memory.same_key(program) if memory is not None else None
    if same is not None:
        return _duplicate(program, same, "It is the same formula", None, flags)
    seeds = memory.seeds if memory is not None else ()
    candidate = Candidate(program, direction=direction, seeds=seeds)
    for rule in CHECKS.values():
        broken = rule(candidate)
        if broken is not None:
            near = _nearest(program)
            return Verdict(
                accepted=False, category=broken[0], reason=broken[1], flags=flags, nearest=near, program=program
            )
    if not candidate.holds and (broken := slopes_agree(candidate)):
        return Verdict(accepted=False, category=broken[0], reason=broken[1], flags=flags, program=program)
    return _compare(candidate, against, memory, (*flags, *properties_of(candidate)))


def _nearest(program: Program) -> Nearest | None:
    found = fingerprint(program) if program.root.type == "item" else None
    return None if found is None else atlas(program.family).nearest(found)


def _compare(candidate: Candidate, against: str, memory: Memory | None, flags: tuple[str, ...]) -> Verdict:
    program = candidate.program
    found = fingerprint(program)
    if found is None:
        reason = "Its losses or gradients at ordinary inputs are too large or too small to be compared with others."
        return Verdict(accepted=False, category="nonfinite", reason=reason, flags=flags, program=program)
    known = atlas(program.family)
    control = known.control(found)
    near = known.closest(found, control)
    repeated = memory.same_behaviour(program, found) if memory is not None else None
    if repeated is not None:
        return _duplicate(program, repeated[0], f"It does the same (distance {repeated[1]:.1g})", near, flags)
    seeds = memory.seeds if memory is not None else ()
    rival = near if against == "library" else control
    if (same := _confirmed(program, found, rival, seeds)) is not None:
        rival = same
        said = f"Its gradients are those of `{rival.loss}` but for their scale (distance {rival.distance:.1g})"
        return _duplicate(program, rival.name, said, rival, flags)
    same = None if near is rival else _confirmed(program, found, near, seeds)
    if same is not None:
        near = same
        flags, said = (*flags, f"known:{near.name}"), f"All checks passed; it is `{near.loss}`."
    elif near.distance < DUPLICATE:
        flags = (*flags, f"neighbour:{near.name}")
        said = f"All checks passed; at ordinary inputs it is `{near.loss}`, beyond them it is not."
    elif near.distance < NEIGHBOUR:
        flags = (*flags, f"neighbour:{near.name}")
        said = f"All checks passed; close to `{near.loss}` (distance {near.distance:.2g})."
    else:
        said = f"All checks passed; the nearest known loss is `{near.loss}` (distance {near.distance:.2g})."
    return Verdict(accepted=True, category="ok", reason=said, flags=flags, nearest=near, program=program)


def _confirmed(program: Program, found: Fingerprint, near: Nearest, seeds: tuple[int, ...]) -> Nearest | None:
    """The loss that a program is, farther out and elsewhere too; None where it is merely close at the probe points."""
    elsewhere = partial(fingerprint_at, program)
    if near.distance >= DUPLICATE:
        return None
    if same_beyond(program.family, elsewhere, near.known.fingerprint, seeds):
        return near
    other = refitted(near, found, elsewhere)
    if other is None or other.distance >= DUPLICATE:
        return None
    return other if same_beyond(program.family, elsewhere, other.known.fingerprint, seeds) else None


def _duplicate(program: Program, name: str, said: str, near: Nearest | None, flags: tuple[str, ...]) -> Verdict:
    reason = f"{said}: `{name}` is known already."
    return Verdict(
        accepted=False, category=f"duplicate-of-{name}", reason=reason, flags=flags, nearest=near, program=program
    )
