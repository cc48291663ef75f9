"""`check`: one candidate, one verdict; whatever it is given, it does not raise."""

from lossmith.discovery.checks.battery import CHECKS, Candidate, slopes_agree
from lossmith.discovery.checks.memory import Memory
from lossmith.discovery.checks.properties import properties_of
from lossmith.discovery.checks.verdict import Verdict
from lossmith.discovery.compiler import SIGNATURES, CompileError, compile_candidate
from lossmith.discovery.identity import DUPLICATE, FIRST, NEIGHBOUR, Nearest, atlas, fingerprint
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

    A candidate that does what the control does (`dpo`, `cross_entropy`, `supcon`, whatever its strength or spelling) is
    refused as `duplicate-of-NAME`: racing it against the control could show noise alone. A copy of another published
    loss is sound, and worth measuring against the control: it is accepted with the flag `known:NAME`, unless
    `against="library"` makes a duplicate of it too. Programs in `memory` always count.

    Args:
        source: One Python function as text, or a `Program`.
        family: `preference`, `token` or `metric`.
        signature: `native`, or `discopop` for the names of Lu et al. 2024 and `self.beta`.
        against: `control` or `library`: which published losses a candidate may not repeat.
        direction: Whether descent must push the right way; False for a penalty that is added to a loss.
        memory: Programs that a run knows already.

    Returns:
        The verdict. `nearest` is the closest published loss over grids of hyper-parameters, with its distance: 0 for a
        rewrite, 0.02 for a beta 10% off.

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
    candidate = Candidate(program, direction=direction)
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


def _nearest(program: Program, names: tuple[str, ...] | None = None) -> Nearest | None:
    found = fingerprint(program) if program.root.type == "item" else None
    return None if found is None else atlas(program.family).nearest(found, names=names)


def _compare(candidate: Candidate, against: str, memory: Memory | None, flags: tuple[str, ...]) -> Verdict:
    program = candidate.program
    found = fingerprint(program)
    assert found is not None, "a finite gradient that is not zero has a fingerprint"
    near = atlas(program.family).nearest(found)
    repeated = memory.same_behaviour(program, found) if memory is not None else None
    if repeated is not None:
        return _duplicate(program, repeated[0], f"It does the same (distance {repeated[1]:.1g})", near, flags)
    control = atlas(program.family).nearest(found, names=(FIRST[program.family],))
    rival = near if against == "library" else control
    if rival is not None and rival.distance < DUPLICATE:
        said = f"Its gradients are those of `{rival.loss}` but for their scale (distance {rival.distance:.1g})"
        return _duplicate(program, rival.name, said, near if against == "library" else rival, flags)
    if near is not None and near.distance < DUPLICATE:
        flags, said = (*flags, f"known:{near.name}"), f"All checks passed; it is `{near.loss}`."
    elif near is not None and near.distance < NEIGHBOUR:
        flags = (*flags, f"neighbour:{near.name}")
        said = f"All checks passed; close to `{near.loss}` (distance {near.distance:.2g})."
    elif near is not None:
        said = f"All checks passed; the nearest known loss is `{near.loss}` (distance {near.distance:.2g})."
    else:
        said = "All checks passed."
    return Verdict(accepted=True, category="ok", reason=said, flags=flags, nearest=near, program=program)


def _duplicate(program: Program, name: str, said: str, near: Nearest | None, flags: tuple[str, ...]) -> Verdict:
    reason = f"{said}: `{name}` is known already."
    return Verdict(
        accepted=False, category=f"duplicate-of-{name}", reason=reason, flags=flags, nearest=near, program=program
    )
